"""The training methods: which layers run in a step, and the loss that comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..core.model import DynamicModel
from ..core.selector import InputSelector
from .config import TrainConfig
from .exits import ExitHeads

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """One training step: where it stands, and its own random numbers.

    All randomness of a step comes from (seed, step), so that a resumed training repeats it.
    """

    index: int
    total: int
    rng: np.random.Generator

    @property
    def position(self) -> float:
        """From 0 at the first step to 1 at the last."""
        return self.index / max(1, self.total - 1)


def train_full(
    config: TrainConfig, dynamic: DynamicModel, exits: ExitHeads | None, batch: Batch,
    labels: Tensor, step: Step,
) -> Tensor:  # fmt: skip
    """Full depth only."""
    return cross_entropy(dynamic(**batch).logits, labels)


def train_random(
    config: TrainConfig, dynamic: DynamicModel, exits: ExitHeads | None, batch: Batch,
    labels: Tensor, step: Step,
) -> Tensor:  # fmt: skip
    """One mask per batch, each layer kept with probability 0.5 (LDASR, EUSIPCO 2024)."""
    mask = step.rng.random(dynamic.num_layers) < 0.5
    if not mask.any():
        mask[step.rng.integers(dynamic.num_layers)] = True
    return cross_entropy(dynamic(**batch, mask=torch.from_numpy(mask)).logits, labels)


def train_early_exit(
    config: TrainConfig, dynamic: DynamicModel, exits: ExitHeads | None, batch: Batch,
    labels: Tensor, step: Step,
) -> Tensor:  # fmt: skip
    """The mean of the losses of all exits (arXiv 2309.09546)."""
    assert exits is not None
    losses = [
        cross_entropy(exits(hidden, frame_mask, k), labels)
        for k, (hidden, frame_mask) in enumerate(dynamic.layer_outputs(batch), start=1)
    ]
    return torch.stack(losses).mean()


def train_input(
    config: TrainConfig, dynamic: DynamicModel, exits: ExitHeads | None, batch: Batch,
    labels: Tensor, step: Step,
) -> Tensor:  # fmt: skip
    """The selector's layers at a budget drawn per step, after a warm-up with random layers."""
    layers = dynamic.num_layers
    k = int(step.rng.integers(1, layers)) if layers > 1 else 1
    if step.rng.random() < config.full_share:
        k = layers
    if step.position < config.random_share:
        mask = torch.zeros(layers, dtype=torch.bool)
        mask[torch.from_numpy(step.rng.permutation(layers)[:k])] = True
        return cross_entropy(dynamic(**batch, mask=mask).logits, labels)
    if isinstance(dynamic.selector, InputSelector):
        share = (step.position - config.random_share) / max(1e-9, 1 - config.random_share)
        dynamic.selector.noise = config.noise_start + share * (
            config.noise_end - config.noise_start
        )
    return cross_entropy(dynamic(**batch, budget=k).logits, labels)


TRAIN: dict[str, Callable[..., Tensor]] = {
    "full": train_full,
    "random": train_random,
    "early-exit": train_early_exit,
    "input": train_input,
}
