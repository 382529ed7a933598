"""What validation clips decide: the best static mask of each size, and whether to choose at all."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from math import comb

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..core.selector import InputSelector, top_k_mask
from ..data.features import FeatureSet
from .answers import answers, pooled
from .runs import Run

ALL = 1000  # up to so many masks of a size are all tried
BEAM = 8  # masks of the next larger size whose parts are tried otherwise


def best_static(
    run: Run, features: FeatureSet, labels: Tensor, *, by_loss: bool = False
) -> dict[int, Tensor]:
    """For each k the mask of k layers that is right most often; a tie goes to the lower loss.

    Every mask is tried where there are at most `ALL` of a size. Of the others, those that drop one
    layer from the `BEAM` best masks of the next larger size.

    Args:
        by_loss: the mask of the lowest loss instead, which a few clips decide less by chance.

    Shape: labels [clips] -> each [layers] bool.
    """
    layers = run.dynamic.num_layers
    small = [k for k in range(1, layers) if comb(layers, k) <= ALL]
    ranked = _ranked(run, features, labels, (m for k in small for m in _all(layers, k)), by_loss)
    best = {k: ranked[k][0] for k in small}
    beam = [torch.ones(layers, dtype=torch.bool)]
    for k in range(layers - 1, 0, -1):
        if k not in best:
            found = _ranked(run, features, labels, _without_one(beam), by_loss)
            ranked |= found
            best[k] = found[k][0]
        beam = ranked[k][:BEAM]
    return best


def settle(run: Run, features: FeatureSet, labels: Tensor) -> None:
    """Let a selector choose at just those budgets where it beats the static mask of lowest loss.

    It must be right more often, at a lower loss. At the other budgets it falls back on that mask,
    so that a choice which only fits the training clips costs nothing.
    """
    selector = run.dynamic.selector
    assert isinstance(selector, InputSelector)
    read = pooled(run, features)
    for k, mask in best_static(run, features, labels, by_loss=True).items():
        if not bool(mask[: selector.after].all()):
            continue  # a mask that this selector cannot give
        budget = torch.full((len(read),), k)
        with torch.inference_mode():
            chosen = top_k_mask(selector.scores_of(read, budget), budget)
        masks = torch.unique(torch.cat([chosen, mask[None]]), dim=0)
        logits = answers(run, features, masks).logits
        which = (chosen[:, None] == masks).all(-1).int().argmax(1)
        static = int((mask == masks).all(-1).int().argmax())
        own_logits = logits[which, torch.arange(len(labels))]
        right, loss = _quality(own_logits, labels)
        static_right, static_loss = _quality(logits[static], labels)
        if right <= static_right or loss >= static_loss:
            selector.fall_back(k, mask)


def _quality(logits: Tensor, labels: Tensor) -> tuple[int, float]:
    """How many clips are right, and the mean loss."""
    return int((logits.argmax(-1) == labels).sum()), float(cross_entropy(logits, labels))


def _ranked(
    run: Run, features: FeatureSet, labels: Tensor, masks: Iterable[Tensor], by_loss: bool
) -> dict[int, list[Tensor]]:
    """Masks of each size, the best first."""
    tried = list(masks)
    if not tried:
        return {}
    logits = answers(run, features, torch.stack(tried)).logits
    right = (logits.argmax(-1) == labels).double().mean(1)
    loss = cross_entropy(logits.flatten(0, 1), labels.repeat(len(tried)), reduction="none").view(
        len(tried), -1
    )
    wrong = [0.0 if by_loss else 1 - float(share) for share in right]
    order = sorted(range(len(tried)), key=lambda i: (wrong[i], float(loss[i].mean())))
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
