"""Figures of a study as SVG texts for a page; black follows the page's text colour."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..evaluation.plots import save, subplots
from ..evaluation.shown import in_plot
from ..methods import OURS
from ..runs.validations import best_of
from .names import color_of, label_of
from .study import Arm, Study

SHUFFLED = "#d98c1f"
PANELS = 5  # in a line of figures
CONTROLS = {  # rules of the input method, beside its best blind mask
    "exact": ("its own choice", "#c2255c", "o-"),
    "shuffled": ("another clip's features", SHUFFLED, "s--"),
    "constant": ("mean features", "#0f9bab", "^--"),
    "static": ("best static mask", "#2b9348", "D--"),
    "oracle": ("oracle (counts luck)", "#808080", "v:"),
    "ceiling": ("ceiling on a noisy copy", "#8a63d2", "P:"),
    "ceiling-reference": ("its choice, that copy", "#3b7dd8", "x:"),
}


def plot_pareto(study: Study, where: str) -> str:
    """Plot accuracy over MACs, a line a method, with its interval.

    Mean budgets are diamonds and stars.
    """
    figure, axes = subplots(1, 1, (7.5, 4.6))
    axis = axes[0, 0]
    for variant, name in _names(study).items():
        _curve(axis, study, where, (variant, "exact"), fmt="o-", label=name)
        _curve(axis, study, where, (variant, "mean"), fmt="D", mfc="none")
        _curve(axis, study, where, (variant, "mean-entropy"), fmt="*", mfc="none")
    axis.set_xlabel("MACs, share of full depth (%)")
    _finish(axis, _accuracy(study))
    axis.legend(frameon=False, loc="lower right", title="open marks: mean budgets")
    return _svg(figure)


def _names(study: Study) -> dict[str, str]:
    """Return what the methods are called, by variant, or their ablations where nothing else is."""
    methods = {v: in_plot(label_of(m)) for v, m in study.variants.items() if v == m}
    return methods or {variant: in_plot(variant) for variant in study.variants}


def _curve(axis: Any, study: Study, where: str, arm: Arm, **style: Any) -> None:
    budgets = study.budgets(where, arm)
    x = [100 * study.share(where, arm, b) for b in budgets]
    _points(axis, study, where, arm, budgets, x, color=color_of(study.variants[arm[0]]), **style)


def _points(
    axis: Any, study: Study, where: str, arm: Arm, budgets: Sequence[float], x: Any, **style: Any
) -> None:
    """Plot accuracy with its interval at each x."""
    found = np.array([study.interval(where, arm, b) for b in budgets])
    if len(found):
        y, ends = found[:, 0], found[:, 1:].T
        axis.errorbar(
            x, 100 * y, yerr=100 * abs(ends - y), ms=5, capsize=2, elinewidth=0.8, **style
        )


def _accuracy(study: Study) -> str:
    return "word accuracy (%)" if study.metric == "wer" else "accuracy (%)"


def plot_gains(verdict: dict[str, Any], where: str) -> str:
    """Plot what the selector gains at each budget over a blind mask, and over its shuffled self."""
    figure, axes = subplots(1, 1, (7.5, 3))
    axis, budgets = axes[0, 0], verdict["sets"][where]["budgets"]
    sides = (
        ("blind", "over the best blind mask", color_of(OURS), -0.08),
        ("shuffled", "over another clip's features", SHUFFLED, 0.08),
    )
    for name, label, color, shift in sides:
        found = {i + shift: b[name] for i, b in enumerate(budgets.values()) if b[name]}
        for ends, width in (("_corrected", 1), ("", 3)):
            for x, gain in found.items():
                axis.plot([x, x], [gain["low" + ends], gain["high" + ends]], lw=width, color=color)
        gains = [gain["gain"] for gain in found.values()]
        axis.plot(list(found), gains, "o", color=color, label=label)
    axis.axhline(0, color="black", lw=0.8)
    axis.set_xticks(range(len(budgets)), [f"k = {k}" for k in budgets])
    _finish(axis, "gain (points)")
    axis.legend(frameon=False)
    return _svg(figure)


def plot_controls(study: Study, where: str) -> str:
    """Plot the accuracy of the input method by budget, with what it saw replaced."""
    figure, axes = subplots(1, 1, (7.5, 4))
    axis = axes[0, 0]
    for rule, (label, color, fmt) in CONTROLS.items():
        arm = (OURS, rule)
        budgets = study.budgets(where, arm)
        _points(axis, study, where, arm, budgets, budgets, fmt=fmt, color=color, label=label)
    axis.set_xlabel("kept layers")
    _finish(axis, _accuracy(study))
    axis.legend(frameon=False)
    return _svg(figure)


def plot_trainings(study: Study) -> str:
    """Plot the errors on validation clips over the steps: a line a run, a panel a variant."""
    measured = [run for run in study.runs if run.validations]
    shown = [v for v in study.variants if any(run.variant == v for run in measured)]
    columns, rows = min(len(shown), PANELS), -(-len(shown) // PANELS)
    figure, axes = subplots(rows, columns, (1.5 + 2.1 * columns, 0.5 + 2 * rows))
    panels = dict(zip(shown, axes.flat, strict=False))
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for run in measured:
        steps, errors, _ = zip(*run.validations, strict=True)
        best = best_of(run.validations)
        axis, color = panels[run.variant], color_of(run.method)
        axis.plot(steps, [100 * error for error in errors], color=color, lw=1)
        axis.plot(best.step, 100 * best.error, "o", color=color)
    for variant, axis in panels.items():
        axis.sharey(axes[0, 0])
        axis.set_title(in_plot(variant))
        axis.set_xlabel("steps")
        _finish(axis, "errors (%)" if axis in axes[:, 0] else "")
    return _svg(figure)


def plot_noise(study: Study) -> str:
    """Plot accuracy by set of clips, a panel a budget, a line a method."""
    names, variants = _names(study), study.variants
    arms = [(variant, "exact") for variant in names]
    budgets = sorted({b for arm in arms for s in study.sets for b in study.budgets(s, arm)})
    figure, axes = subplots(1, len(budgets), (1.5 + 1.6 * len(budgets), 3.6))
    for axis, budget in zip(axes[0], budgets, strict=True):
        if axis is not axes[0, 0]:
            axis.sharey(axes[0, 0])
        for arm in arms:
            found = [
                (s, a) for s in study.sets if (a := study.accuracy(s, arm, budget)) is not None
            ]
            x = [study.sets.index(name) for name, _ in found]
            axis.plot(x, [100 * a for _, a in found], "o-", ms=4, color=color_of(variants[arm[0]]),
                      label=names[arm[0]])  # fmt: skip
        sets = [in_plot(name.removeprefix("test at ")) for name in study.sets]
        axis.set_xticks(range(len(sets)), sets, rotation=60)
        axis.set_title(f"k = {budget:g}")
        _finish(axis, _accuracy(study) if axis is axes[0, 0] else "")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=4)
    return _svg(figure)


def plot_layer_use(use: dict[float, dict[str, dict[str, list[float]]]], kind: str) -> str:
    """Plot the share of the clips that ran each layer, a line a group, a panel a budget.

    Args:
        use: by budget, as `layer_use` returns it.
    """
    panels = {k: groups[kind] for k, groups in use.items() if kind in groups}
    groups = list(next(iter(panels.values())))
    figure, axes = subplots(1, len(panels), (2 + 1.5 * len(panels), 1.1 + 0.25 * len(groups)))
    for axis, (k, shares) in zip(axes[0], panels.items(), strict=True):
        values = [shares[group] for group in groups]
        axis.imshow(values, aspect="auto", cmap="PuRd", vmin=0, vmax=1.2)
        axis.set_title(f"k = {k:g}")
        axis.set_xticks(range(len(values[0])))
        names = [in_plot(group) for group in groups]
        axis.set_yticks(range(len(groups)), names if axis is axes[0, 0] else [])
    return _svg(figure)


def _finish(axis: Any, label: str) -> None:
    axis.set_ylabel(label)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _svg(figure: Any) -> str:
    """Return a figure for use inside a page.

    It has no header, no addresses, and no ids that two figures could share.
    """
    from matplotlib import rc_context

    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "sounding"}):
        save(figure, out, format="svg", transparent=True, metadata=nothing)
    svg = out.getvalue()
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"|(?<=<g) id="[^"]*"', "", svg[svg.index("<svg") :])
    return svg.replace("#000000", "currentColor")
