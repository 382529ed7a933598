"""The report of a study: one page that needs no network, the verdict first."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..evaluation.shown import in_markdown
from ..evaluation.statistics import Interval
from ..evaluation.table import METHODS
from ..files import write_json, write_text
from ..progress import say
from .diagnostics import areas, layer_use, mask_variety, regret, varying_arms, worst_group
from .study import Arm, Study, load_study
from .study_plots import (
    CONTROLS,
    plot_controls,
    plot_gains,
    plot_layer_use,
    plot_noise,
    plot_pareto,
)
from .verdict import INPUT, SEEDS, exact_points, in_words, judge, verdict_line

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; --loud: #c2255c; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 3rem; border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; margin: 1rem 0; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; } th { background: var(--soft); }
th:first-child, td:first-child { text-align: left; }
td { font-variant-numeric: tabular-nums; } svg { max-width: 100%; height: auto; }
svg text { fill: currentColor; } .loud { border-left: .4rem solid var(--loud); padding: .5rem 1rem;
  background: var(--soft); font-weight: 600; } pre { overflow-x: auto; background: var(--soft);
  padding: .5rem; font-size: .8rem; } .answer { font-size: 1.15rem; font-weight: 600; }
"""
RULES = {  # of the table of accuracies, and what they add to the name of a method
    "exact": "",
    "static": ", best static mask",
    "mean": ", mean budget",
    "mean-entropy": ", mean budget by entropy",
}
Table = tuple[Sequence[str], list[Sequence[object]]]  # head, rows


def write_report(
    paths: Sequence[Path | str] | Path | str,
    out: Path | str,
    *,
    verdict: Path | str | None = None,
    table: Path | str | None = None,
) -> list[str]:
    """Write the report of all `measured.json` in `paths` to `out`.

    Args:
        paths: files, or directories that are searched.
        verdict: a JSON file for all comparisons and areas.
        table: a Markdown file for accuracy of every method at every budget.

    Returns:
        For each data set the line VERDICT {...}.

    Raises:
        ValueError: see `load_study`.
        ModuleNotFoundError: matplotlib is not installed.
    """
    studies = load_study(paths)
    verdicts = [judge(study) for study in studies]
    if verdict is not None:
        write_json(verdict, {"format": 1, "verdicts": verdicts})
    if table is not None:
        parts = [
            f"## {in_markdown(f'{s.data}, {w}')}\n\n{_markdown(accuracies(s, w))}"
            for s in studies
            for w in s.sets
        ]
        write_text(table, "\n".join(parts))
    write_text(out, report(studies, verdicts))
    return [verdict_line(one) for one in verdicts]


def report(studies: list[Study], verdicts: list[dict[str, Any]]) -> str:
    """The page as HTML."""
    names = ", ".join(study.data for study in studies)
    pairs = list(zip(studies, verdicts, strict=True))
    body = [
        f"<h1>Does the input matter? {escape(names)}</h1>",
        *(_verdict(study, verdict) for study, verdict in pairs),
        *(_data_set(study, verdict) for study, verdict in pairs),
        "<h2>Where the numbers come from</h2>",
        *(_provenance(study) for study in studies),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(names)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _verdict(study: Study, verdict: dict[str, Any]) -> str:
    answer, *rest = in_words(verdict)
    parts = [f"<h2>Verdict: {escape(study.data)}</h2>"]
    if verdict["preliminary"]:
        parts.append(
            f'<p class="loud">PRELIMINARY: {verdict["seeds"]} of {SEEDS} seeds. Another training '
            "may turn this verdict round.</p>"
        )
    parts.append(f'<p class="answer">{escape(answer)}</p>' + "".join(map(_paragraph, rest)))
    for where, result in verdict["sets"].items():
        if result["budgets"]:
            told = {True: "matters", False: "not shown to matter", None: "not tested"}
            parts.append(f"<h3>{escape(where)}: {told[result['matters']]}</h3>")
            parts += [_drawn(plot_gains, verdict, where), _html(_gains(result))]
    drawn = verdict["sets"].get("test", {}).get("intervals_over", "clips")
    parts.append(
        _paragraph(
            f"Points; in round brackets the 95 % interval of a paired bootstrap over {drawn}, "
            f"seeds averaged; in square brackets the same, corrected for {_count(verdict)} budgets "
            "(Bonferroni; thin lines); ± standard deviation over seeds. The best blind mask is the "
            "one with the highest validation accuracy. The "
            f"intervals cover other {drawn}, not other trainings (see the spread over seeds)"
            + (" and not other speakers." if drawn == "clips" else ".")
        )
    )
    return "\n".join(parts)


def _count(verdict: dict[str, Any]) -> int:
    return len(verdict["sets"].get("test", {"budgets": ()})["budgets"])


def _gains(result: dict[str, Any]) -> Table:
    head = ["k", "matters", "best blind mask", "gain over it", "over shuffled", "over constant"]
    rows: list[Sequence[object]] = [
        [
            k,
            {True: "yes", False: "no", None: "-"}[b["matters_corrected"]],
            b["blind"]["against"] if b["blind"] else "-",
            _gain(b["blind"], corrected=True),
            _gain(b["shuffled"], corrected=True),
            _gain(b["constant"]),
        ]
        for k, b in result["budgets"].items()
    ]
    return head, rows


def _over_methods(study: Study, verdict: dict[str, Any]) -> tuple[Table, str]:
    """What the input method gains over each other method at as many layers."""
    others = [v for v, method in study.variants.items() if v == method != "input"]
    rows: list[Sequence[object]] = []
    for where, result in verdict["sets"].items():
        for k, b in result["budgets"].items():
            rows.append([where, k, *(_gain(b["methods"][v]) for v in others)])
        if full := result["full_depth"]:
            cells = [_gain(full) if v == "full" else "" for v in others]
            rows.append([where, study.layers, *cells])
    note = "Gain of the input method in points; the last line of a set is full depth."
    return (["set", "k", *(f"over {METHODS[v]}" for v in others)], rows if others else []), note


def _gain(gain: dict[str, Any] | None, *, corrected: bool = False) -> str:
    if gain is None:
        return "-"
    text = f"{gain['gain']:+.1f} ({gain['low']:+.1f} to {gain['high']:+.1f})"
    if corrected:
        text += f" [{gain['low_corrected']:+.1f} to {gain['high_corrected']:+.1f}]"
    return text if gain["spread"] is None else f"{text} ±{gain['spread']:.1f}"


def _data_set(study: Study, verdict: dict[str, Any]) -> str:
    parts = [f"<h2>{escape(study.data)}: all methods</h2>"]
    for where in study.sets:
        count = len(study.clips(where).files)
        title = "Word error rate and compute" if study.metric == "wer" else "Accuracy over compute"
        parts += [f"<h3>{title}: {escape(where)}, {count} clips</h3>"]
        parts += [_drawn(plot_pareto, study, where), _html(accuracies(study, where))]
    interval = {
        "accuracy": "over clips (Wilson)",
        "wer": "of a bootstrap over speakers where there are 10 or more, else over clips (plots "
        "and gains are in word accuracy, 100 % less the word error rate)",
    }.get(study.metric, "of a bootstrap over clips")
    parts.append(
        _paragraph(
            f"Mean over seeds, 95 % interval {interval}, ± standard deviation over seeds "
            "(of three seeds it is itself rough), masks ± over random masks, at: layers that ran "
            "in the mean. In the head: MACs as a share of full depth, of the first method."
        )
    )
    sections = {
        "Input method against the others": _over_methods(study, verdict),
        "Area under accuracy over MACs": _area_table(verdict),
        "Mean budgets": _means(study, verdict),
        "Ablations": _ablations(study),
        "Controls": _controls(study),
        "Masks by clip": _masks(study),
        "Worst label": _worst(study, "label"),
        "Worst speaker": _worst(study, "speaker"),
    }
    for title, (table, note) in sections.items():
        if table[1]:
            parts += [f"<h3>{title}</h3>", _paragraph(note)]
            parts += [_drawn(plot_controls, study, "test")] if title == "Controls" else []
            parts.append(_html(table))
    if len(study.sets) > 1:
        parts += ["<h3>Noise</h3>", _drawn(plot_noise, study)]
    return "\n".join([*parts, _layer_figures(study)])


def accuracies(study: Study, where: str) -> Table:
    """Every variant at every budget: exact, mean, and the best static mask of its model."""
    arms: list[Arm] = [(variant, rule) for variant in study.variants for rule in RULES]
    budgets = sorted({b for arm in arms for b in study.budgets(where, arm)})
    head = ["method"]
    for b in budgets:
        first = next(arm for arm in arms if study.rows(where, arm, b))
        head.append(f"k = {b:g} ({100 * study.share(where, first, b):.0f} %)")
    rows = [
        [_name(study, arm[0]) + RULES[arm[1]], *(_cell(study, where, arm, b) for b in budgets)]
        for arm in arms
    ]
    return head, [row for row in rows if set(row[1:]) != {"-"}]


def _cell(study: Study, where: str, arm: Arm, budget: float) -> str:
    rows = study.rows(where, arm, budget)
    if not rows:
        return "-"
    seeds = [row.accuracy for row in rows.values()]
    mean, low, high = study.interval(where, arm, budget)
    spread = (sum((s - mean) ** 2 for s in seeds) / max(1, len(seeds) - 1)) ** 0.5
    if study.metric == "wer":
        mean, low, high = 1 - mean, 1 - high, 1 - low
    text = f"{100 * mean:.1f} ({100 * low:.1f}-{100 * high:.1f})"
    text += f" ±{100 * spread:.1f}" if len(seeds) > 1 else ""
    masks = [row.spread for row in rows.values() if row.spread is not None]
    if masks:
        text += f", masks ±{100 * sum(masks) / len(masks):.1f}"
    if arm[1].startswith("mean"):
        text += f" at {sum(row.executed_layers for row in rows.values()) / len(rows):.2f}"
    return text


def _name(study: Study, variant: str) -> str:
    method = study.variants[variant]
    return METHODS[method] if variant == method else variant


def _area_table(verdict: dict[str, Any]) -> tuple[Table, str]:
    cells: dict[str, dict[str, str]] = {}  # by arm, then by set
    ranges = {}
    for where, kinds in verdict["areas"].items():
        for kind, found in kinds.items():
            ranges.update({kind: found["range"]} if found["areas"] else {})
            for arm, area in found["areas"].items():
                cells.setdefault(arm, {})[where] = _span(area)
    sets = list(verdict["areas"])
    rows: list[Sequence[object]] = [
        [arm, *(by_set.get(where, "-") for where in sets)] for arm, by_set in cells.items()
    ]
    shared = [
        f"{kind} {100 * low:.0f} to {100 * high:.0f} %" for kind, (low, high) in ranges.items()
    ]
    note = f"Mean accuracy (%) over the MACs that all methods share: {', '.join(shared)}."
    return (["method/rule", *sets], rows), note


def _span(points: Sequence[float]) -> str:
    mean, low, high = points
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def _means(study: Study, verdict: dict[str, Any]) -> tuple[Table, str]:
    rows: list[Sequence[object]] = []
    for where in study.sets:
        for arm in [(v, r) for v in study.variants for r in ("mean", "mean-entropy")]:
            for m in study.budgets(where, arm):
                ran = [r.executed_layers for r in study.rows(where, arm, m).values()]
                got = sum(ran) / len(ran)
                off = max(abs(x / m - 1) for x in ran)
                over = study.over(where, arm, m, exact_points(study, where, arm[0]))
                exact = _interval(over.interval()) if over.size else "-"
                means = verdict["sets"][where]["mean_budgets"] if arm == ("input", "mean") else {}
                others = [
                    _gain(means[f"{m:g}"][o]) if means else "" for o in ("blind", "early-exit")
                ]
                accuracy = _cell(study, where, arm, m)
                share = f"{100 * study.share(where, arm, m):.0f} %"
                rows.append(["/".join(arm), where, f"{m:g}", f"{got:.2f}", f"{100 * off:.1f} %",
                             share, accuracy, exact, *others])  # fmt: skip
    head = ["method/rule", "set", "asked", "got", "worst off", "MACs", "accuracy", "over exact",
            "over blind", "over early exit"]  # fmt: skip
    note = (
        "Layers asked for on average, and got. Gains are over others at as many executed layers "
        "(between their budgets interpolated), so running more than asked gains nothing."
    )
    return (head, rows), note


def _interval(found: Interval) -> str:
    return f"{100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def _ablations(study: Study) -> tuple[Table, str]:
    """Areas of the input method and its ablations; the best on validation is marked."""
    arms: list[Arm] = [(v, "exact") for v, method in study.variants.items() if method == "input"]
    _, validation = areas(study, "validation", arms)
    _, test = areas(study, "test", arms)
    best = max(validation, key=lambda arm: validation[arm].by_seed.mean(), default=None)
    rows: list[Sequence[object]] = []
    for arm in arms:
        cells = [
            _span([100 * x for x in found[arm].interval()]) if arm in found else "-"
            for found in (validation, test)
        ]
        mark = " (best on validation)" if arm == best else ""
        seeds = len(test[arm].by_seed) if arm in test else 0
        rows.append([arm[0] + mark, seeds, *cells])
    note = "Area under accuracy over MACs (%), exact budgets. Choose by validation, not by test."
    head = ["variant", "seeds", "validation area", "test area"]
    return (head, rows if len(rows) > 1 else []), note


def _controls(study: Study) -> tuple[Table, str]:
    budgets = [k for k in study.budgets("test", INPUT) if k < study.layers]
    rules = [rule for rule in CONTROLS if study.budgets("test", ("input", rule))]
    rows: list[Sequence[object]] = [
        [CONTROLS[rule][0], *(_cell(study, "test", ("input", rule), k) for k in budgets)]
        for rule in rules
    ]
    if len(rules) < 2:
        rows = []
    gaps = [regret(study, "test", k) for k in budgets]
    for name in dict.fromkeys(name for gap in gaps for name in gap):
        cells = [_interval(gap[name]) if name in gap else "-" for gap in gaps]
        rows.append([f"regret against the {name}", *cells])
    note = (
        "Test clips, input method. The oracle chooses with the label on the very clip and counts "
        "luck as skill; the ceiling chooses on one noisy copy and is scored on another; its regret "
        "is against the selector on that copy."
    )
    return (["layers chosen by", *(f"k = {k:g}" for k in budgets)], rows), note


def _masks(study: Study) -> tuple[Table, str]:
    rows: list[Sequence[object]] = []
    for arm in varying_arms(study, "test"):
        budgets = [b for b in study.budgets("test", arm) if b < study.layers]
        rows += [["/".join(arm), f"{b:g}", *_variety(study, arm, b)] for b in budgets]
    head = ["method/rule", "budget", "distinct masks", "entropy (bits)", "commonest", "collapsed"]
    return (head, rows), "Test clips; one figure for each seed. Collapsed: 99 % have one mask."


def _variety(study: Study, arm: Arm, budget: float) -> list[str]:
    found = [mask_variety(row.masks) for row in study.rows("test", arm, budget).values()]
    return [
        ", ".join(f"{v['distinct']}" for v in found),
        ", ".join(f"{v['entropy']:.2f}" for v in found),
        ", ".join(f"{100 * v['commonest']:.0f} %" for v in found),
        ", ".join("yes" if v["collapsed"] else "no" for v in found),
    ]


def _worst(study: Study, kind: str) -> tuple[Table, str]:
    arms = [(variant, "exact") for variant in study.variants]
    budgets = sorted({b for arm in arms for b in study.budgets("test", arm)})
    rows: list[Sequence[object]] = []
    for arm in arms:
        found = [worst_group(study, "test", arm, b, kind) for b in budgets]
        if any(found):
            cells = [f"{100 * f[1]:.1f} ({f[0]})" if f else "-" for f in found]
            rows.append([_name(study, arm[0]), *cells])
    note = ("Accuracy of the worst group of at least 5 test clips, mean over seeds. The lowest of "
            "many small groups is low by chance alone: compare methods, not levels.")  # fmt: skip
    return (["method", *(f"k = {b:g}" for b in budgets)], rows), note


def _layer_figures(study: Study) -> str:
    budgets = [k for k in study.budgets("test", INPUT) if k < study.layers]
    use = {k: layer_use(study, INPUT, k) for k in budgets}
    parts = [_paragraph("Input method, from white (no clip ran the layer) to dark (all did).")]
    for kind in dict.fromkeys(kind for groups in use.values() for kind in groups):
        parts += [f"<h3>Layers that ran, by {kind}</h3>", _drawn(plot_layer_use, use, kind)]
    return "\n".join(parts if use else [])


def _provenance(study: Study) -> str:
    rows: list[Sequence[object]] = []
    for run in study.runs:
        info = run.info
        seconds = [f"{info['seconds'].get(part) or 0:.0f}" for part in ("train", "measure")]
        machine = ", ".join(f"{key} {value}" for key, value in info["machine"].items())
        rows.append([run.variant, run.seed, info["steps"], *seconds, str(info["commit"])[:12],
                     machine])  # fmt: skip
    head = ["variant", "seed", "steps", "train s", "measure s", "commit", "machine"]
    first = study.runs[0].info
    configs = {run.variant: run.info["config"] for run in reversed(study.runs)}
    text = json.dumps({"versions": first["versions"], "config": configs}, indent=1)
    return "\n".join(
        [
            f"<h3>{escape(study.data)}</h3>",
            _paragraph(f"Data digest {study.runs[0].digest}."),
            _html((head, rows)),
            f"<details><summary>Versions and settings</summary><pre>{escape(text)}</pre></details>",
        ]
    )


def _drawn(plot: Callable[..., str], *args: Any) -> str:
    """A figure, or why there is none."""
    try:
        return plot(*args)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # of matplotlib, whatever it is: no figure is worth the report
        say(f"a figure of the report cannot be drawn: {error}")
        return _paragraph(f"This figure cannot be drawn: {error}")


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _html(table: Table) -> str:
    head, rows = table
    lines = [_line(head, "th"), *(_line(row, "td") for row in rows)]
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _line(cells: Iterable[object], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"


def _markdown(table: Table) -> str:
    head, rows = table
    texts = [[in_markdown(str(cell)) for cell in line] for line in (head, *rows)]
    texts.insert(1, ["---", *["---:"] * (len(head) - 1)])
    return "".join("| " + " | ".join(line) + " |\n" for line in texts)
