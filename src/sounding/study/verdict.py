"""Does the input matter? The selector against the best mask that does not look, and controls."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from ..methods import FULL_DEPTH, OURS
from ..registry import METHODS
from .diagnostics import areas
from .names import blind_arms, stops_early
from .study import Arm, Point, Scores, Study

INPUT: Arm = (OURS, "exact")
FULL: Arm = (FULL_DEPTH, "exact")
Gain = dict[str, Any]
SEEDS = 3  # with fewer a verdict is preliminary


def best_blind(study: Study, k: float) -> Arm | None:
    """Return the blind mask of k layers with the highest validation accuracy, ties to the first.

    It is chosen on validation clips, because the best on the test clips would be lucky there.
    """
    found = {arm: study.accuracy("validation", arm, k) for arm in blind_arms()}
    known = {arm: value for arm, value in found.items() if value is not None}
    return max(known, key=lambda arm: round(known[arm], 9)) if known else None


def gain(differences: Scores, against: Arm, level: float = 0.95) -> Gain | None:
    """Return the differences in points: mean, 95 % interval, that at `level`, and each seed.

    The result is None where there are no differences.
    """
    if not differences.size:
        return None
    usual, wide = differences.interval(), differences.interval(level)
    seeds = 100 * differences.by_seed
    return {
        "against": "/".join(against),
        "gain": _points(usual.mean),
        "low": _points(usual.low),
        "high": _points(usual.high),
        "low_corrected": _points(wide.low),
        "high_corrected": _points(wide.high),
        "seeds": len(seeds),
        "by_seed": [round(float(x), 2) for x in seeds],
        "spread": round(float(seeds.std(ddof=1)), 2) if len(seeds) > 1 else None,
    }


def _points(share: float) -> float:
    return round(100 * share, 4)


def judge(study: Study) -> dict[str, Any]:
    """Return the verdict on one data set, as JSON; see `judge_set` for each of its sets.

    "matters" and "seeds" are those of the test clips without noise.
    """
    sets = {where: judge_set(study, where) for where in study.sets}
    test = sets.get("test", {"matters": None, "depth_matters": None, "seeds": 0})
    return {
        "data": study.data,
        "digest": study.runs[0].digest,
        "seeds": test["seeds"],
        "preliminary": test["seeds"] < SEEDS,
        "matters": test["matters"],
        "depth_matters": test["depth_matters"],
        "sets": sets,
        "areas": {where: _areas(study, where) for where in ("validation", *study.sets)},
    }


def judge_set(study: Study, where: str) -> dict[str, Any]:
    """Return the verdict on one set of clips.

    A budget "matters" where the lower ends of the gains against the best blind mask and against the
    selector with another clip's features are both above 0. The set as a whole: at one budget at
    least, with intervals corrected for the number of budgets (Bonferroni). It is None where it was
    not tested. "depth_matters" says the same of the mean budgets, where the input chooses how many
    layers run.
    """
    exact = [k for k in study.budgets(where, INPUT) if k < study.layers]
    level = 1 - 0.05 / max(1, len(exact))
    budgets = {f"{k:g}": _exact(study, where, k, level) for k in exact}
    tested = [b for b in budgets.values() if b["matters"] is not None]
    pairs = [b[name] for b in tested for name in ("blind", "shuffled")]
    means = study.budgets(where, (OURS, "mean"))
    by_mean = {f"{m:g}": _mean(study, where, m, 1 - 0.05 / len(means)) for m in means}
    depths = [b["matters_corrected"] for b in by_mean.values() if b["matters"] is not None]
    full = study.difference(where, INPUT, study.layers, FULL)
    return {
        "set": where,
        "clips": len(study.clips(where).files),
        "intervals_over": "clips" if study.speakers(where) is None else "speakers",
        "seeds": min((pair["seeds"] for pair in pairs), default=0),
        "matters": any(b["matters_corrected"] for b in tested) if tested else None,
        "level": level,
        "budgets": budgets,
        "depth_matters": any(depths) if depths else None,
        "mean_budgets": by_mean,
        "full_depth": gain(full, FULL),
    }


def _exact(study: Study, where: str, k: float, level: float) -> dict[str, Any]:
    def against(arm: Arm | None) -> dict[str, Any] | None:
        return arm and gain(study.difference(where, INPUT, k, arm), arm, level)

    blind, shuffled = against(best_blind(study, k)), against((OURS, "shuffled"))
    return {
        "blind": blind,
        "shuffled": shuffled,
        "constant": against((OURS, "constant")),
        "methods": {v: against((v, "exact")) for v, m in study.variants.items() if m != OURS},
        **_matters(blind, shuffled),
    }


def _mean(study: Study, where: str, mean: float, level: float) -> dict[str, Any]:
    """Judge a mean budget: what really ran, against others at as many executed layers."""
    arm = (OURS, "mean")
    blind = [(best_blind(study, k), k) for k in range(1, study.layers)]
    full: list[Point] = [(INPUT, study.layers)]
    rivals: dict[str, tuple[Arm, list[Point]]] = {
        "blind": (("blind", "static"), [(a, k) for a, k in blind if a is not None] + full),
        "exact": (INPUT, exact_points(study, where, OURS)),
    }
    for method in stopping_methods(study):
        stops = (method, "mean")
        rivals[method] = (stops, [(stops, m) for m in study.budgets(where, stops)])
    ran = [row.executed_layers for row in study.rows(where, arm, mean).values()]
    other = (OURS, "mean-shuffled")
    shuffled = gain(study.difference(where, arm, mean, other), other, level)
    found = {
        name: gain(study.over(where, arm, mean, points), rival, level)
        for name, (rival, points) in rivals.items()
    }
    return {
        "executed": round(float(np.mean(ran)), 4),
        "off": [round(layers / mean - 1, 4) for layers in ran],
        **found,
        "shuffled": shuffled,
        **_matters(found["blind"], shuffled),
    }


def stopping_methods(study: Study) -> list[str]:
    """Return the other methods whose inputs stop early: rivals of ours at mean budgets."""
    names = dict.fromkeys([*METHODS, *study.variants])
    return [name for name in names if stops_early(name)]


def _matters(blind: Gain | None, shuffled: Gain | None) -> dict[str, bool | None]:
    """Return whether both gains are above 0, by the plain and by the corrected intervals."""
    if not (blind and shuffled):
        return {"matters": None, "matters_corrected": None}
    return {
        "matters": min(blind["low"], shuffled["low"]) > 0,
        "matters_corrected": min(blind["low_corrected"], shuffled["low_corrected"]) > 0,
    }


def exact_points(study: Study, where: str, variant: str) -> list[Point]:
    """Return the exact budgets of a variant."""
    return [((variant, "exact"), k) for k in study.budgets(where, (variant, "exact"))]


def _areas(study: Study, where: str) -> dict[str, Any]:
    """Return the normalized areas of all arms, in percent, of exact and of mean budgets."""
    result = {}
    for rules in (("exact",), ("mean", "mean-entropy")):
        arms = [(variant, rule) for variant in study.variants for rule in rules]
        (low, high), found = areas(study, where, arms)
        result[rules[0]] = {
            "range": [round(low, 4), round(high, 4)],
            "areas": {
                "/".join(arm): [_points(x) for x in scores.interval()]
                for arm, scores in found.items()
            },
        }
    return result


def verdict_line(verdict: dict[str, Any]) -> str:
    """Return one line of a data set for machines: VERDICT and JSON; gains in points."""
    test = verdict["sets"].get("test", {"budgets": {}, "mean_budgets": {}})
    line = {key: verdict[key] for key in ("data", "seeds", "matters", "depth_matters")}
    for name in ("budgets", "mean_budgets"):
        line[name] = {
            budget: {key: result["blind"][key] for key in ("gain", "low", "high")}
            for budget, result in test[name].items()
            if result["blind"]
        }
    return "VERDICT " + json.dumps({"set": "test", **line}, ensure_ascii=False)


def _depth_in_words(test: dict[str, Any]) -> list[str]:
    tested = {m: b for m, b in test["mean_budgets"].items() if b["matters"] is not None}
    if not tested:
        return []
    sure = [m for m, b in tested.items() if b["matters_corrected"]]
    best = max(sure or tested, key=lambda m: tested[m]["blind"]["gain"])
    found, own = tested[best]["blind"], tested[best]["shuffled"]
    gains = (
        f"at mean {best} it gains {found['gain']:+.1f} points over the best blind masks at as many "
        f"layers (95 % interval {found['low']:+.1f} to {found['high']:+.1f}), and over itself with "
        f"another clip's depth {own['gain']:+.1f} ({own['low']:+.1f} to {own['high']:+.1f})."
    )
    if sure:
        return [
            f"Where the input decides how many layers run it matters, at mean {', '.join(sure)}: "
            + gains
        ]
    return ["Where the input decides how many layers run, that is not shown to matter: " + gains]


def in_words(verdict: dict[str, Any]) -> list[str]:
    """Return sentences for people, the answer first."""
    test, data = verdict["sets"].get("test"), verdict["data"]
    if test is None or test["matters"] is None:
        return [f"Not tested on {data}: rows of the selector, of blind masks or of shuffled "
                "features are missing."]  # fmt: skip
    tested = {k: b for k, b in test["budgets"].items() if b["matters"] is not None}
    sure = [k for k, b in tested.items() if b["matters_corrected"]]
    hints = [k for k, b in tested.items() if b["matters"] and not b["matters_corrected"]]
    worse = [k for k, b in tested.items() if b["blind"]["high"] < 0]
    gains = [b["blind"]["gain"] for b in tested.values()]
    if sure:
        words = [
            f"Yes: on {data} the input matters at k = {', '.join(sure)}. There the selector is "
            "ahead of the best mask that does not look at the clip, and of itself with another "
            "clip's features."
        ]
    else:
        words = [
            f"No: these runs do not show that the input matters on {data}. At no budget is the "
            "selector clearly ahead of both the best mask that does not look at the clip and of "
            "itself with another clip's features."
        ]
    most = max(b["blind"]["high_corrected"] for b in tested.values())
    words.append(
        f"Against the best blind mask it gains {min(gains):+.1f} to {max(gains):+.1f} points, by "
        f"budget; corrected for {len(test['budgets'])} budgets, the intervals end at {most:+.1f} "
        "points at most."
    )
    words += _depth_in_words(test)
    if hints:
        words.append(f"At k = {', '.join(hints)} only the uncorrected intervals say so: a hint.")
    if worse:
        words.append(f"At k = {', '.join(worse)} it is behind the best blind mask.")
    if verdict["preliminary"]:
        words.append(f"PRELIMINARY: {verdict['seeds']} of {SEEDS} seeds.")
    return words
