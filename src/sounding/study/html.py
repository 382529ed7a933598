"""The report of a study: one page that needs no network, the verdict first."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..evaluation.shown import in_markdown
from ..files import write_text
from ..progress import say
from . import tables
from .diagnostics import layer_use
from .pack import check_pack, write_pack
from .study import Study, each_run, load_study
from .study_plots import (
    plot_controls,
    plot_gains,
    plot_layer_use,
    plot_noise,
    plot_pareto,
    plot_trainings,
)
from .verdict import INPUT, SEEDS, in_words, judge, verdict_line

Json = dict[str, Any]
MATTERS = {True: "matters", False: "not shown to matter", None: "not tested"}
INTERVALS = {
    "accuracy": "over clips (Wilson)",
    "wer": "of a bootstrap over speakers where there are 10 or more, else over clips (plots "
    "and gains are in word accuracy, 100 % less the word error rate)",
}


class Figure(NamedTuple):
    """A figure for the page, or why there is none."""

    svg: Markup = Markup()
    error: str = ""


def write_report(
    paths: Sequence[Path | str] | Path | str,
    out: Path | str,
    *,
    verdict: Path | str | None = None,
    table: Path | str | None = None,
    pack: Path | str | None = None,
) -> list[str]:
    """Write the report of all that was measured in `paths` to `out`.

    Args:
        paths: as `load_study` takes them.
        verdict: a JSON file for all comparisons and areas, a data set a line.
        table: a Markdown file for accuracy of every method at every budget.
        pack: a Parquet file for all that was measured, from which this report can be made again.

    Returns:
        For each data set the line VERDICT {...}.

    Raises:
        ValueError: see `load_study` and `check_pack`.
        ModuleNotFoundError: matplotlib is not installed, or pyarrow, for a pack.
    """
    if pack is not None:
        check_pack(pack)
    studies = load_study(paths)
    verdicts = [judge(study) for study in studies]
    if pack is not None:
        write_pack(each_run(paths), pack)
    if verdict is not None:
        write_text(verdict, verdict_text(verdicts))
    if table is not None:
        write_text(table, table_text(studies))
    write_text(out, report(studies, verdicts))
    return [verdict_line(one) for one in verdicts]


def verdict_text(verdicts: list[Json]) -> str:
    """Return the verdicts as JSON, a data set a line."""
    lines = ",\n".join(json.dumps(one, ensure_ascii=False) for one in verdicts)
    return f'{{"format": 1, "verdicts": [\n{lines}\n]}}\n'


def table_text(studies: list[Study]) -> str:
    """Return the accuracies of every data set and set of clips as Markdown."""
    parts = [
        f"## {in_markdown(f'{study.data}, {where}')}\n\n"
        + tables.markdown(tables.accuracies(study, where))
        for study in studies
        for where in study.sets
    ]
    return "\n".join(parts)


def report(studies: list[Study], verdicts: list[Json]) -> str:
    """Return the page as HTML."""
    page = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    ).get_template("report.html")
    return page.render(
        names=", ".join(study.data for study in studies),
        seeds_wanted=SEEDS,
        studies=[_shown(*pair) for pair in zip(studies, verdicts, strict=True)],
    )


def _shown(study: Study, verdict: Json) -> Json:
    """Return all that the page has of one data set."""
    test = verdict["sets"].get("test", {})
    return {
        "study": study,
        "verdict": verdict,
        "words": in_words(verdict),
        "sets": [
            (where, MATTERS[result["matters"]], _drawn(plot_gains, verdict, where),
             tables.gains(result))
            for where, result in verdict["sets"].items()
            if result["budgets"]
        ],
        "drawn": test.get("intervals_over", "clips"),
        "tested": len(test.get("budgets", ())),
        "accuracies": [
            (where, len(study.clips(where).files), _drawn(plot_pareto, study, where),
             tables.accuracies(study, where))
            for where in study.sets
        ],
        "interval": INTERVALS.get(study.metric, "of a bootstrap over clips"),
        "sections": list(_sections(study, verdict)),
        "noise": _drawn(plot_noise, study) if len(study.sets) > 1 else None,
        "layer_use": _layer_use(study),
        "provenance": tables.provenance(study),
        "settings": _settings(study),
    }  # fmt: skip


def _sections(
    study: Study, verdict: Json
) -> Iterator[tuple[str, tables.Table, Callable[[], Figure] | None]]:
    """Yield tables with their titles, and what draws the figure above a table."""
    yield "Input method against the others", tables.over_methods(study, verdict), None
    curves = partial(_drawn, plot_trainings, study)
    yield "When the trainings stopped getting better", tables.trainings(study), curves
    yield "Area under accuracy over MACs", tables.area_table(verdict), None
    yield "Mean budgets", tables.means(study, verdict), None
    yield "Ablations", tables.ablations(study), None
    yield "Controls", tables.controls(study), partial(_drawn, plot_controls, study, "test")
    yield "Masks by clip", tables.varieties(study), None
    yield "Worst label", tables.worst(study, "label"), None
    yield "Worst speaker", tables.worst(study, "speaker"), None


def _layer_use(study: Study) -> list[tuple[str, Figure]] | None:
    """Return by kind of group the layers that ran; None where the input method has no budget."""
    budgets = [k for k in study.budgets("test", INPUT) if k < study.layers]
    use = {k: layer_use(study, INPUT, k) for k in budgets}
    kinds = dict.fromkeys(kind for groups in use.values() for kind in groups)
    return [(kind, _drawn(plot_layer_use, use, kind)) for kind in kinds] if use else None


def _settings(study: Study) -> str:
    first = study.runs[0].info
    configs = {run.variant: run.info["config"] for run in reversed(study.runs)}
    return json.dumps({"versions": first["versions"], "config": configs}, indent=1)


def _drawn(plot: Callable[..., str], *args: Any) -> Figure:
    """Draw a figure, or say why there is none."""
    try:
        return Figure(Markup(plot(*args)))
    except ModuleNotFoundError:
        raise
    except Exception as error:  # of matplotlib, whatever it is: no figure is worth the report
        say(f"a figure of the report cannot be drawn: {error}")
        return Figure(error=str(error) or type(error).__name__)
