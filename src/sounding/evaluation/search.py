"""The best static mask of each size, by search on the clips that are given."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from math import comb

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..data.features import FeatureSet
from ..training.answers import answers
from ..training.runs import Run

ALL = 1000  # up to so many masks of a size are all tried
BEAM = 8  # masks of the next larger size whose parts are tried otherwise


def best_static(run: Run, features: FeatureSet, labels: Tensor) -> dict[int, Tensor]:
    """For each k the mask of k layers that is right most often; a tie goes to the lower loss.

    Every mask is tried where there are at most `ALL` of a size. Of the others, those that drop one
    layer from the `BEAM` best masks of the next larger size.

    Shape: labels [clips] -> each [layers] bool.
    """
    layers = run.dynamic.num_layers
    small = [k for k in range(1, layers) if comb(layers, k) <= ALL]
    ranked = _ranked(run, features, labels, (m for k in small for m in _all(layers, k)))
    best = {k: ranked[k][0] for k in small}
    beam = [torch.ones(layers, dtype=torch.bool)]
    for k in range(layers - 1, 0, -1):
        if k not in best:
            found = _ranked(run, features, labels, _without_one(beam))
            ranked |= found
            best[k] = found[k][0]
        beam = ranked[k][:BEAM]
    return best


def _ranked(
    run: Run, features: FeatureSet, labels: Tensor, masks: Iterable[Tensor]
) -> dict[int, list[Tensor]]:
    """Masks of each size, the best first."""
    tried = torch.stack(list(masks))
    logits = answers(run, features, tried).logits
    right = (logits.argmax(-1) == labels).double().mean(1)
    loss = cross_entropy(logits.flatten(0, 1), labels.repeat(len(tried)), reduction="none").view(
        len(tried), -1
    )
    order = sorted(range(len(tried)), key=lambda i: (-float(right[i]), float(loss[i].mean())))
    ranked: dict[int, list[Tensor]] = {}
    for index in order:
        ranked.setdefault(int(tried[index].sum()), []).append(tried[index])
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
