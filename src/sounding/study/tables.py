"""The tables of a study's report: what they say, not how it looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..evaluation.shown import in_markdown
from ..methods import FULL_DEPTH, OURS
from ..runs.validations import best_of
from ..statistics import Interval
from .diagnostics import areas, mask_variety, regret, varying_arms, worst_group
from .measured import Search
from .names import label_of
from .study import Arm, Study
from .study_plots import CONTROLS
from .verdict import INPUT, exact_points, stopping_methods

RULES = {  # of the table of accuracies, and what they add to the name of a method
    "exact": "",
    "static": ", best static mask",
    "mean": ", mean budget",
    "mean-entropy": ", mean budget by entropy",
}
Rows = list[Sequence[object]]


class Table(NamedTuple):
    """The lines of a table, and a sentence on what they are; no lines if nothing is known."""

    head: Sequence[str]
    rows: Rows
    note: str = ""


def accuracies(study: Study, where: str) -> Table:
    """Return every variant at every budget: exact, mean, and the best static mask of its model."""
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
    return Table(head, [row for row in rows if set(row[1:]) != {"-"}])


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
    return label_of(method) if variant == method else variant


def gains(result: dict[str, Any]) -> Table:
    """Return what the selector gains at each budget over the best blind mask and controls."""
    head = ["k", "matters", "best blind mask", "gain over it", "over shuffled", "over constant"]
    rows: Rows = [
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
    return Table(head, rows)


def over_methods(study: Study, verdict: dict[str, Any]) -> Table:
    """Return what the input method gains over each other method at as many layers."""
    others = [v for v, method in study.variants.items() if method != OURS]
    rows: Rows = []
    for where, result in verdict["sets"].items():
        for k, b in result["budgets"].items():
            rows.append([where, k, *(_gain(b["methods"][v]) for v in others)])
        if full := result["full_depth"]:
            cells = [_gain(full) if v == FULL_DEPTH else "" for v in others]
            rows.append([where, study.layers, *cells])
    note = "Gain of the input method in points; the last line of a set is full depth."
    head = ["set", "k", *(f"over {_name(study, v)}" for v in others)]
    return Table(head, rows if others else [], note)


def _gain(gain: dict[str, Any] | None, *, corrected: bool = False) -> str:
    if gain is None:
        return "-"
    text = f"{gain['gain']:+.1f} ({gain['low']:+.1f} to {gain['high']:+.1f})"
    if corrected:
        text += f" [{gain['low_corrected']:+.1f} to {gain['high_corrected']:+.1f}]"
    return text if gain["spread"] is None else f"{text} ±{gain['spread']:.1f}"


def trainings(study: Study) -> Table:
    """Return when the validation clips stopped getting better, and what a search chose before."""
    rows: Rows = []
    for variant in study.variants:
        runs = [run for run in study.runs if run.variant == variant and run.validations]
        if not runs:
            continue
        found = runs[0].info["search"]
        best = [best_of(run.validations) for run in runs]
        rows.append([
            _name(study, variant),
            _searched(found) if found else "-",
            ", ".join(f"{run.validations[-1].step}" for run in runs),
            ", ".join(f"{one.step}" for one in best),
            ", ".join(f"{100 * one.error:.1f}" for one in best),
            f"{sum(bool(run.stopped_rising) for run in runs)} of {len(runs)}",
        ])  # fmt: skip
    note = (
        "By seed. Validation errors are the mean over depths, at masks drawn at random where a "
        "method trains with such. Stopped rising: of how many trainings the patience was used up."
    )
    head = ["method", "searched", "steps", "best step", "its validation errors (%)",
            "stopped rising"]  # fmt: skip
    return Table(head, rows, note)


def _searched(found: Search) -> str:
    """Return what was tried, with the validation errors, and what was chosen."""
    texts = []
    for place, trial in enumerate(found.trials):
        text = ", ".join(f"{name} {value}" for name, value in trial.settings.items())
        chosen = ", chosen" if place == found.chosen else ""
        texts.append(f"{text}: {100 * trial.error:.1f} %{chosen}")
    return "; ".join(texts)


def area_table(verdict: dict[str, Any]) -> Table:
    """Return the areas of all arms, by set of clips."""
    cells: dict[str, dict[str, str]] = {}  # by arm, then by set
    ranges = {}
    for where, kinds in verdict["areas"].items():
        for kind, found in kinds.items():
            ranges.update({kind: found["range"]} if found["areas"] else {})
            for arm, area in found["areas"].items():
                cells.setdefault(arm, {})[where] = _span(area)
    sets = list(verdict["areas"])
    rows: Rows = [
        [arm, *(by_set.get(where, "-") for where in sets)] for arm, by_set in cells.items()
    ]
    shared = [
        f"{kind} {100 * low:.0f} to {100 * high:.0f} %" for kind, (low, high) in ranges.items()
    ]
    note = f"Mean accuracy (%) over the MACs that all methods share: {', '.join(shared)}."
    return Table(["method/rule", *sets], rows, note)


def _span(points: Sequence[float]) -> str:
    mean, low, high = points
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def means(study: Study, verdict: dict[str, Any]) -> Table:
    """Return what mean budgets cost and gain."""
    stopping = stopping_methods(study)
    rivals = ["blind", *stopping]
    rows: Rows = []
    for where in study.sets:
        for arm in [(v, r) for v in study.variants for r in ("mean", "mean-entropy")]:
            for m in study.budgets(where, arm):
                ran = [r.executed_layers for r in study.rows(where, arm, m).values()]
                got = sum(ran) / len(ran)
                off = max(abs(x / m - 1) for x in ran)
                over = study.over(where, arm, m, exact_points(study, where, arm[0]))
                exact = _interval(over.interval()) if over.size else "-"
                means = verdict["sets"][where]["mean_budgets"] if arm == (OURS, "mean") else {}
                others = [_gain(means[f"{m:g}"][o]) if means else "" for o in rivals]
                accuracy = _cell(study, where, arm, m)
                share = f"{100 * study.share(where, arm, m):.0f} %"
                rows.append(["/".join(arm), where, f"{m:g}", f"{got:.2f}", f"{100 * off:.1f} %",
                             share, accuracy, exact, *others])  # fmt: skip
    head = ["method/rule", "set", "asked", "got", "worst off", "MACs", "accuracy", "over exact",
            "over blind", *(f"over {label_of(method)}" for method in stopping)]  # fmt: skip
    note = (
        "Layers asked for on average, and got. Gains are over others at as many executed layers "
        "(between their budgets interpolated), so running more than asked gains nothing."
    )
    return Table(head, rows, note)


def _interval(found: Interval) -> str:
    return f"{100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def ablations(study: Study) -> Table:
    """Return the areas of the input method and its ablations, the best on validation marked."""
    arms: list[Arm] = [(v, "exact") for v, method in study.variants.items() if method == OURS]
    _, validation = areas(study, "validation", arms)
    _, test = areas(study, "test", arms)
    best = max(validation, key=lambda arm: validation[arm].by_seed.mean(), default=None)
    rows: Rows = []
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
    return Table(head, rows if len(rows) > 1 else [], note)


def controls(study: Study) -> Table:
    """Return the accuracy of the input method by what chooses its layers, and its regret."""
    budgets = [k for k in study.budgets("test", INPUT) if k < study.layers]
    rules = [rule for rule in CONTROLS if study.budgets("test", (OURS, rule))]
    rows: Rows = [
        [CONTROLS[rule][0], *(_cell(study, "test", (OURS, rule), k) for k in budgets)]
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
    return Table(["layers chosen by", *(f"k = {k:g}" for k in budgets)], rows, note)


def varieties(study: Study) -> Table:
    """Return how much the masks of the clips differ."""
    rows: Rows = []
    for arm in varying_arms(study, "test"):
        budgets = [b for b in study.budgets("test", arm) if b < study.layers]
        rows += [["/".join(arm), f"{b:g}", *_variety(study, arm, b)] for b in budgets]
    head = ["method/rule", "budget", "distinct masks", "entropy (bits)", "commonest", "collapsed"]
    note = "Test clips; one figure for each seed. Collapsed: 99 % have one mask."
    return Table(head, rows, note)


def _variety(study: Study, arm: Arm, budget: float) -> list[str]:
    found = [mask_variety(row.masks) for row in study.rows("test", arm, budget).values()]
    return [
        ", ".join(f"{v['distinct']}" for v in found),
        ", ".join(f"{v['entropy']:.2f}" for v in found),
        ", ".join(f"{100 * v['commonest']:.0f} %" for v in found),
        ", ".join("yes" if v["collapsed"] else "no" for v in found),
    ]


def worst(study: Study, kind: str) -> Table:
    """Return the worst label or speaker of each variant at each budget."""
    arms = [(variant, "exact") for variant in study.variants]
    budgets = sorted({b for arm in arms for b in study.budgets("test", arm)})
    rows: Rows = []
    for arm in arms:
        found = [worst_group(study, "test", arm, b, kind) for b in budgets]
        if any(found):
            cells = [f"{100 * f[1]:.1f} ({f[0]})" if f else "-" for f in found]
            rows.append([_name(study, arm[0]), *cells])
    note = ("Accuracy of the worst group of at least 5 test clips, mean over seeds. The lowest of "
            "many small groups is low by chance alone: compare methods, not levels.")  # fmt: skip
    return Table(["method", *(f"k = {b:g}" for b in budgets)], rows, note)


def markdown(table: Table) -> str:
    """Return a table as Markdown shows it; its note is left out."""
    texts = [[in_markdown(str(cell)) for cell in line] for line in (table.head, *table.rows)]
    texts.insert(1, ["---", *["---:"] * (len(table.head) - 1)])
    return "".join("| " + " | ".join(line) + " |\n" for line in texts)


def provenance(study: Study) -> Table:
    """Return where each run comes from."""
    rows: Rows = []
    for run in study.runs:
        info = run.info
        seconds = [f"{info['seconds'].get(part) or 0:.0f}" for part in ("train", "measure")]
        machine = ", ".join(f"{key} {value}" for key, value in info["machine"].items())
        rows.append([run.variant, run.seed, info["steps"], *seconds, str(info["commit"])[:12],
                     machine])  # fmt: skip
    head = ["variant", "seed", "steps", "train s", "measure s", "commit", "machine"]
    return Table(head, rows)
