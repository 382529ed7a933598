"""Two pictures of a sweep: accuracy against MACs, and which layers ran for which input."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from ..files import atomic_path
from ..methods.looks import MEAN, looks
from ..tasks import metric_title
from .shown import in_plot
from .sweep import Sweep
from .table import sorted_rows


def plot_accuracy(sweep: Sweep, path: Path | str) -> None:
    """Plot accuracy (or WER) over MACs, a line a method, with its 95 % interval.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; the text says how to install it.
    """
    figure, axes = subplots(1, 1, (7, 4.5))
    axis = axes[0, 0]
    for method, look in looks().items():
        rows = [row for row in sorted_rows(sweep) if row.method == method]
        if not rows:
            continue
        x = [row.macs / 1e6 for row in rows]
        y = [100 * row.value for row in rows]
        low, high = [100 * r.ci_low for r in rows], [100 * r.ci_high for r in rows]
        if len(rows) == 1:
            axis.errorbar(
                x, y, yerr=[[y[0] - low[0]], [high[0] - y[0]]], fmt="D", ms=7, capsize=3,
                color=look.color, label=look.label, zorder=3,
            )  # fmt: skip
        else:
            axis.plot(x, y, "o-", ms=5, lw=2, color=look.color, label=look.label)
            axis.fill_between(x, low, high, color=look.color, alpha=0.12, lw=0)
    axis.set_xlabel("million multiply-accumulates per clip (front end, selector and head included)")
    metric = sweep.rows[0].metric
    axis.set_ylabel(f"{metric_title(metric)} (%)")
    data = sweep.header["data"]
    axis.set_title(
        f"{in_plot(data['name'])}: {sweep.header['clips']} {data['split']} clips", loc="left"
    )
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="lower right" if metric == "accuracy" else "upper right")
    _save(figure, path)


def plot_layers(sweep: Sweep, path: Path | str) -> None:
    """Plot the layers that ran for each clip, a panel a budget; clips of a class stand together.

    Budgets at which all clips run the same layers are left out, if there are others.

    Raises:
        UsageError: the sweep has no input-driven rows.
        ModuleNotFoundError: as `plot_accuracy`.
    """
    panels = _chosen_masks(sweep)
    if not panels:
        raise UsageError("the sweep has no budget at which the layers depend on the input")
    labels = np.array(sweep.masks["labels"])
    figure, axes = subplots(1, len(panels), (1.6 + 1.5 * len(panels), 6))
    for axis, (name, masks) in zip(axes[0], panels.items(), strict=True):
        ran = np.array([[digit == "1" for digit in mask] for mask in masks])
        order = np.lexsort((np.array(masks), labels))
        axis.imshow(
            ran[order], aspect="auto", interpolation="nearest", cmap="PuRd", vmin=0, vmax=1.2
        )
        method, _, k = name.partition("/")
        axis.set_title(f"mean {k}" if method.endswith(MEAN) else f"k = {k}")
        axis.set_xticks(range(ran.shape[1]))
        axis.set_xlabel("layer")
        names, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
        for line in first[1:]:
            axis.axhline(line - 0.5, color="black", lw=0.4)
        shown = [in_plot(name) for name in names] if axis is axes[0, 0] else []
        axis.set_yticks(first + counts / 2 - 0.5, shown)
    figure.suptitle("Layers that ran, one line a clip", x=0.02, ha="left")
    _save(figure, path)


def _chosen_masks(sweep: Sweep) -> dict[str, list[str]]:
    """Return the masks that the method chose, by row, for the rows where they vary.

    They are those of the last method of the table that keeps which layers it chose.
    """
    names = [name for name in looks() if any(n.startswith(f"{name}/") for n in sweep.masks)]
    methods = [name for name in names if not name.endswith(MEAN)]
    if not methods:
        return {}
    shown = (methods[-1], methods[-1] + MEAN)
    panels = {n: m for n, m in sweep.masks.items() if n.split("/")[0] in shown}
    return {n: m for n, m in panels.items() if len(set(m)) > 1} or panels


def need_matplotlib() -> None:
    """Say at once that plots cannot be drawn, not after the work that they show.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; the text says how to install it.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "plots need matplotlib: pip install 'sounding[demo]'", name="matplotlib"
        ) from None


def subplots(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Make a figure and its axes, [rows, columns].

    Raises:
        ModuleNotFoundError: as `need_matplotlib`.
    """
    need_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Any, out: Any, **options: Any) -> None:
    """Draw a figure into a file, its texts as they are: a dollar sign begins no formula.

    A character that the font lacks becomes a box, without a warning for each.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)
        figure.savefig(out, **options)


def _save(figure: Any, path: Path | str) -> None:
    with atomic_path(path) as temporary:
        save(figure, temporary, format=Path(path).suffix.lstrip(".") or "png", dpi=140)
