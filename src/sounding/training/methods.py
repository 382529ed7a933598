"""The training methods: which layers run in a step, and the loss that comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from ..core.selector import InputSelector, depth_prior
from .runs import Run

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


def random_masks(
    rng: np.random.Generator, batch: int, layers: int, k: ArrayLike, prior: ArrayLike = 0.0
) -> Tensor:
    """Masks of k random layers each.

    Args:
        k: one number, or one for each input.
        prior: log of how much more often a layer is kept than another; [layers], or 0 for all.

    Shape: -> [batch, layers] bool.
    """
    scores = np.asarray(prior) + rng.gumbel(size=(batch, layers))
    rank = (-scores).argsort(axis=1).argsort(axis=1)
    return torch.from_numpy(rank < np.broadcast_to(k, batch)[:, None])


def train_full(run: Run, batch: Batch, labels: Tensor, step: Step) -> Tensor:
    """Full depth only."""
    return cross_entropy(run.dynamic(**batch).logits, labels)


def train_random(run: Run, batch: Batch, labels: Tensor, step: Step) -> Tensor:
    """One mask per batch, each layer kept with probability 0.5 (LDASR, EUSIPCO 2024)."""
    layers = run.dynamic.num_layers
    mask = step.rng.random(layers) < 0.5
    if not mask.any():
        mask[step.rng.integers(layers)] = True
    return cross_entropy(run.dynamic(**batch, mask=torch.from_numpy(mask)).logits, labels)


def train_early_exit(run: Run, batch: Batch, labels: Tensor, step: Step) -> Tensor:
    """The mean of the losses of all exits (arXiv 2309.09546)."""
    assert run.exits is not None
    outputs, _ = run.dynamic.layer_outputs(batch)
    losses = [
        cross_entropy(run.exits(hidden, frame_mask, k), labels)
        for k, (hidden, frame_mask) in enumerate(outputs, start=1)
    ]
    return torch.stack(losses).mean()


def train_input(run: Run, batch: Batch, labels: Tensor, step: Step) -> Tensor:
    """Full depth, and fewer layers that learn from it (the sandwich of arXiv 1903.05134).

    Each input has a budget of its own. The layers are random in the first part of the training
    and the selector's in the rest.
    """
    config, dynamic = run.config, run.dynamic
    layers = dynamic.num_layers
    full = dynamic(**batch).logits
    loss = cross_entropy(full, labels)
    if layers == 1:
        return loss
    k = step.rng.integers(1, layers, size=len(labels))
    if step.position < config.random_share:
        masks = random_masks(step.rng, len(labels), layers, k, depth_prior(layers).numpy())
        fewer = dynamic(**batch, mask=masks).logits
    else:
        if isinstance(dynamic.selector, InputSelector):
            share = (step.position - config.random_share) / max(1e-9, 1 - config.random_share)
            dynamic.selector.noise = config.noise_start + share * (
                config.noise_end - config.noise_start
            )
        fewer = dynamic(**batch, budget=k.tolist()).logits
    teacher = full.detach().log_softmax(-1)
    distance = kl_div(fewer.log_softmax(-1), teacher, log_target=True, reduction="batchmean")
    return loss + (1 - config.distill) * cross_entropy(fewer, labels) + config.distill * distance


TRAIN: dict[str, Callable[[Run, Batch, Tensor, Step], Tensor]] = {
    "full": train_full,
    "random": train_random,
    "early-exit": train_early_exit,
    "input": train_input,
}
