"""Thresholds of mean budgets, measured on clips: the mean that was asked for comes out there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.features import FeatureSet
from ..policies.base import MeanBudgets
from ..policies.confidence import stops
from ..policies.predicted import cheapest
from .mask_outputs import depths, study_batches
from .run import Run

STEP = 0.25  # between calibrated means


def calibrate_confidence(run: Run, features: FeatureSet, precision: str = "fp32") -> MeanBudgets:
    """Find thresholds of confidence, for inputs that stop once their answer is sure.

    Returns:
        [mean, threshold] by rising mean, for means from 1 to L. Empty for a model that gives no
        answer after each layer: one with a decoder, or of one layer.
    """
    layers = run.dynamic.num_layers
    if layers == 1 or run.dynamic.has_decoder:
        return []
    return depth_table(depths(run, features, None, precision).confidence[:-1], layers)


def calibrate_gates(run: Run, features: FeatureSet, precision: str = "fp32") -> MeanBudgets:
    """Find thresholds of "global" gates, as `calibrate_confidence` finds those of confidence."""
    logits = gate_logits(run, features, precision)

    def mean_at(threshold: float) -> float:
        return float((logits > threshold).sum(1).clamp(min=1).float().mean())

    return table(mean_at, logits.flatten(), run.dynamic.num_layers, rising=False)


def gate_logits(run: Run, features: FeatureSet, precision: str | None = None) -> Tensor:
    """Return the logits of the "global" gates. Shape: -> [clips, layers]."""
    policy: Any = run.dynamic.policy
    layers = run.dynamic.num_layers
    first = torch.arange(layers) < 1
    made = torch.zeros(len(features), layers)
    for rows, batch in study_batches(run, features, precision):
        read = run.dynamic.forward_masks(run.task.inputs(batch, None), first[None])
        made[rows] = policy.logits(read.features, read.frame_mask).cpu()
    return made


def depth_table(sureness: Tensor, layers: int) -> list[tuple[float, float]]:
    """Find for each mean the threshold at which inputs are sure, as `table` does.

    Shape: sureness [layers - 1, clips].
    """
    return table(
        lambda threshold: float(stops(sureness, threshold).float().mean()),
        sureness.flatten(),
        layers,
        rising=True,
    )


def calibrate_prices(costs: Tensor, least: int) -> MeanBudgets:
    """Find for each mean the price of a layer at which inputs keep so many, as `table` does.

    Shape: costs [clips, depths], predicted for `least`, `least` + 1, ... layers.
    """

    def mean_at(price: float) -> float:
        return float(cheapest(costs, price, least).float().mean())

    layers = least + costs.shape[1] - 1
    return table(mean_at, savings(costs), layers, rising=False, least=least)


def savings(costs: Tensor) -> Tensor:
    """Return the prices of a layer at which the choice of some input may change.

    Shape: costs [clips, depths] -> [prices].
    """
    one, other = torch.triu_indices(costs.shape[1], costs.shape[1], 1)
    return ((costs[:, one] - costs[:, other]).double() / (other - one)).flatten()


def cuts(values: Tensor) -> NDArray[np.float64]:
    """Return thresholds by which the values fall into two parts in every way, rising."""
    ordered = np.unique(values.numpy()).astype(float)
    edges = (ordered[1:] + ordered[:-1]) / 2
    return np.concatenate([[ordered[0] - 1], edges, [ordered[-1] + 1]])


def table(
    mean_at: Callable[[float], float],
    values: Tensor,
    layers: int,
    *,
    rising: bool,
    least: int = 1,
) -> list[tuple[float, float]]:
    """Find for each mean from `least` the threshold among `values` whose mean comes closest."""
    tried = cuts(values)
    wanted = np.arange(least, layers + STEP / 2, STEP)
    found = []
    for mean in wanted:
        low, high = 0, len(tried) - 1  # mean_at is monotone over the cuts
        while low < high:
            middle = (low + high) // 2
            got = mean_at(float(tried[middle]))
            if (got < mean) if rising else (got > mean):
                low = middle + 1
            else:
                high = middle
        best = min(
            (max(0, low - 1), low), key=lambda index: abs(mean_at(float(tried[index])) - mean)
        )
        found.append((float(mean), float(tried[best])))
    return found
