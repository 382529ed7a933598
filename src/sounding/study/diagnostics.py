"""What a selector does and how well it could do: areas, masks, layer use, groups, regret."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ..methods import OURS
from ..statistics import Interval
from .measured import Floats
from .names import chooses, draws_masks
from .study import Arm, Scores, Study

COLLAPSED = 0.99  # share of the clips with one and the same mask
SMALLEST_GROUP = 5  # clips; fewer say nothing about a group


def area_weights(shares: Floats, low: float, high: float) -> Floats:
    """Return the weights of points in the area under their line from `low` to `high`, by its width.

    Shape: shares [points], increasing -> [points].
    """
    grid = np.unique([low, high, *shares[(shares > low) & (shares < high)]])
    units = np.array([np.interp(grid, shares, unit) for unit in np.eye(len(shares))])
    return (np.diff(grid) * (units[:, 1:] + units[:, :-1]) / 2).sum(1) / (high - low)


def areas(
    study: Study, where: str, arms: Iterable[Arm]
) -> tuple[tuple[float, float], dict[Arm, Scores]]:
    """Return the range of MACs, and each arm's area under accuracy over MACs, by clip and seed.

    MACs are a share of full depth. The area is a weighted sum of accuracies, so its mean over the
    clips is that of the curve, and a bootstrap over clips holds for it. All arms share one range of
    MACs, which ends at 1 at most. Arms with fewer than two budgets are left out.
    """
    curves = {arm: curve for arm in arms if len(curve := _curves(study, where, arm))}
    ends = [shares for curve in curves.values() for shares, _ in curve]
    low = max((shares[0] for shares in ends), default=1.0)
    high = min([1.0, *(shares[-1] for shares in ends)])
    if low >= high:
        return (low, high), {}
    return (low, high), {
        arm: study.scores(where, [area_weights(s, low, high) @ right for s, right in curve])
        for arm, curve in curves.items()
    }


def _curves(study: Study, where: str, arm: Arm) -> list[tuple[Floats, Floats]]:
    """Return for each seed the shares of MACs, increasing, and what was right there.

    Shape: [points] and [points, clips].
    """
    found = []
    for run in study.runs:
        if run.variant == arm[0] and where in run.sets:
            rows = [row for (rule, _), row in run.sets[where].rows.items() if rule == arm[1]]
            shares, first = np.unique([row.macs / run.macs for row in rows], return_index=True)
            if len(shares) > 1:
                found.append((shares, np.array([study.right(where, rows[i]) for i in first])))
    return found


def mask_variety(masks: NDArray[np.bool_]) -> dict[str, float]:
    """Measure how much the masks of the clips differ.

    Shape: masks [clips, layers] bool -> number of distinct masks, entropy in bits, share of the
    commonest, and whether that makes the selector a constant.
    """
    counts = np.array(sorted(Counter(map(bytes, masks)).values(), reverse=True))
    shares = counts / counts.sum()
    return {
        "distinct": len(counts),
        "entropy": float(abs((shares * np.log2(shares)).sum())),
        "commonest": float(shares[0]),
        "collapsed": bool(shares[0] >= COLLAPSED),
    }


def varying_arms(study: Study, where: str) -> list[Arm]:
    """Return the arms that may choose layers by clip.

    They are all of the input method, and others where their masks do vary.
    """
    arms = [(v, r) for v in study.variants for r in ("exact", "mean", "mean-entropy")]
    return [arm for arm in arms if _chooses(study, where, arm)]


def _chooses(study: Study, where: str, arm: Arm) -> bool:
    method, budgets = study.variants[arm[0]], study.budgets(where, arm)
    if not budgets or draws_masks(method):
        return False
    rows = [row for b in budgets for row in study.rows(where, arm, b).values()]
    return chooses(method) or any((row.masks != row.masks[0]).any() for row in rows)


def terciles(seconds: Floats) -> list[str]:
    """Say of each clip whether it is short, middle or long."""
    return [("short", "middle", "long")[i] for i in np.digitize(seconds, _cuts(seconds))]


def _cuts(seconds: Floats) -> Floats:
    return np.quantile(seconds, [1 / 3, 2 / 3])


def layer_use(study: Study, arm: Arm, budget: float) -> dict[str, dict[str, list[float]]]:
    """Return the share of the clips that ran each layer, by kind of group and group.

    Shares are means over seeds. The kinds are "set" (clean and noisy), and for the test clips
    "label", "speaker" and "duration".
    """
    use: dict[str, dict[str, list[float]]] = {"set": {}}
    for where in study.sets:
        if rows := study.rows(where, arm, budget):
            use["set"][where] = _mean_use([row.masks for row in rows.values()])
    if rows := study.rows("test", arm, budget):
        clips = study.clips("test")
        kinds = {**clips.groups, "duration": terciles(clips.seconds)}
        for kind, names in kinds.items():
            groups = {n: np.array(names) == n for n in dict.fromkeys(names) if n}
            use[kind] = {
                name: _mean_use([row.masks[inside] for row in rows.values()])
                for name, inside in sorted(groups.items())
            }
    return {kind: groups for kind, groups in use.items() if groups}


def _mean_use(masks: list[NDArray[np.bool_]]) -> list[float]:
    return np.mean([m.mean(0) for m in masks], axis=0).tolist()


def worst_group(
    study: Study, where: str, arm: Arm, budget: float, kind: str
) -> tuple[str, float] | None:
    """Return the group with the lowest accuracy (mean over seeds) and that accuracy.

    Args:
        kind: "label" or "speaker"; groups of fewer than 5 clips do not count.
    """
    rows = study.rows(where, arm, budget)
    names = study.clips(where).groups[kind]
    groups = [n for n, count in Counter(names).items() if n and count >= SMALLEST_GROUP]
    weight = study.clips(where).weight
    inside = {name: np.array(names) == name for name in groups}
    inside = {name: i for name, i in inside.items() if weight[i].any()}  # of texts: some word
    if not rows or not inside:
        return None
    right = np.mean([study.right(where, row) for row in rows.values()], axis=0)
    found = {name: float(right[i].sum() / weight[i].sum()) for name, i in inside.items()}
    return min(found.items(), key=lambda item: item[1])


def regret(study: Study, where: str, budget: float) -> dict[str, Interval]:
    """Return what a better choice of layers could still gain, from 0 to 1.

    "oracle" looks at the label and the very clip, so it counts luck as skill; "ceiling" chooses on
    one noisy copy of a clip and is scored on another.
    """
    pairs = {"oracle": ("oracle", "exact"), "ceiling": ("ceiling", "ceiling-reference")}
    gaps = {
        name: study.difference(where, (OURS, best), budget, (OURS, ours))
        for name, (best, ours) in pairs.items()
    }
    return {name: gap.interval() for name, gap in gaps.items() if gap.size}
