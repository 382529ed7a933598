"""What validation clips decide: the best static mask of each size, and whether to choose at all."""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import Any

import torch
from torch import Tensor

from ..data.features import FeatureSet
from ..policies.masks import first_masks
from ..tasks.base import Targets
from .mask_outputs import MaskOutputs, mask_outputs, pooled
from .run import Run

ALL = 1000  # up to so many masks of a size are all tried
BEAM = 8  # masks of the next larger size whose parts are tried otherwise


def best_static(run: Run, features: FeatureSet, targets: Targets) -> dict[int, Tensor]:
    """Find for each k the mask of k layers with the fewest errors; a tie goes to the lower loss.

    Every mask is tried where there are at most `ALL` of a size. Of larger numbers only those are
    tried that drop one layer from the `BEAM` best masks of the next larger size.

    Shape: -> each [layers] bool.
    """
    layers = run.dynamic.num_layers
    small = [k for k in range(1, layers) if comb(layers, k) <= ALL]
    ranked = _tried(run, features, targets, [m for k in small for m in _all(layers, k)])
    best = {k: ranked[k][0] for k in small}
    beam = [torch.ones(layers, dtype=torch.bool)]
    for k in range(layers - 1, 0, -1):
        if k not in best:
            ranked |= _tried(run, features, targets, _without_one(beam))
            best[k] = ranked[k][0]
        beam = ranked[k][:BEAM]
    return best


def choose_fallbacks(run: Run, features: FeatureSet, targets: Targets) -> None:
    """Let a selector choose at just those budgets where it beats a static mask.

    The static mask is the first k layers, which training served best, or the best one by search.
    To take the place of another, a choice must make fewer errors *and* have a lower loss: on few
    clips the best of many is often best by luck. Where the selector is not, it falls back on the
    static mask, so that a choice which only fits the training clips costs nothing.
    """
    policy: Any = run.dynamic.policy
    read = pooled(run, features)
    first = first_masks(run.dynamic.num_layers)
    best = best_static(run, features, targets)
    if not best:
        return  # one layer
    chosen = {}
    for k in best:
        chosen[k] = policy.choose_pooled(read, k)
    masks = torch.unique(torch.cat([first, *chosen.values(), torch.stack([*best.values()])]), dim=0)
    found = mask_outputs(run, features, masks, targets)
    each = torch.arange(len(targets))
    for k, searched in best.items():
        if k < max(1, policy.after):
            continue  # there is nothing to choose
        own = (chosen[k][:, None] == masks).all(-1).int().argmax(1)
        qualities = {
            "first": _quality(found, _index(masks, first[k - 1]), each),
            "best": _quality(found, _index(masks, searched), each),
            "own": _quality(found, own, each),
        }
        fits = bool(searched[: policy.after].all())
        static = "best" if fits and _beats(qualities["best"], qualities["first"]) else "first"
        if not _beats(qualities["own"], qualities[static]):
            policy.fall_back(k, searched if static == "best" else first[k - 1])


def _index(masks: Tensor, mask: Tensor) -> int:
    return int((masks == mask).all(-1).int().argmax())


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] < other[0] and one[1] < other[1]


def _quality(found: MaskOutputs, index: Tensor | int, each: Tensor) -> tuple[float, float]:
    """Return the sum of the errors and the mean loss, each clip under the mask of its index."""
    return float(found.errors[index, each].sum()), float(found.losses[index, each].mean())


def _tried(
    run: Run, features: FeatureSet, targets: Targets, masks: list[Tensor]
) -> dict[int, list[Tensor]]:
    if not masks:
        return {}
    tried = torch.stack(masks)
    return ranked_masks(tried, mask_outputs(run, features, tried, targets))


def ranked_masks(masks: Tensor, found: MaskOutputs) -> dict[int, list[Tensor]]:
    """Sort masks of each size, the best first: the fewest errors, then the lowest loss.

    Shape: masks [masks, layers], of which `found` has the answers -> each [layers] bool.
    """
    errors, losses = found.errors.sum(1).tolist(), found.losses.mean(1).tolist()
    ranked: dict[int, list[Tensor]] = {}
    for index in sorted(range(len(masks)), key=lambda i: (errors[i], losses[i])):
        ranked.setdefault(int(masks[index].sum()), []).append(masks[index])
    return ranked


def _all(layers: int, k: int) -> list[Tensor]:
    rows = torch.zeros(comb(layers, k), layers, dtype=torch.bool)
    for row, kept in zip(rows, combinations(range(layers), k), strict=True):
        row[list(kept)] = True
    return list(rows)


def _without_one(masks: list[Tensor]) -> list[Tensor]:
    made: dict[tuple[bool, ...], Tensor] = {}
    for mask in masks:
        for index in mask.nonzero().squeeze(1).tolist():
            smaller = mask.clone()
            smaller[index] = False
            made[tuple(smaller.tolist())] = smaller
    return list(made.values())
