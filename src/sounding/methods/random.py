"""Random layer dropping, as LDASR has it (EUSIPCO 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..runs.run import Batch, Run
from ..tasks.base import Targets
from .base import Method, Step, batch_loss


class RandomDropping(Method):
    """Trains under one mask a batch, each layer kept with probability 0.5."""

    name = "random"
    label = "random dropping"
    color = "#d98c1f"
    draws_masks = True
    arms = "blind"
    best_static = True
    ablations = {"heads": {"heads": "own"}}  # noqa: RUF012
    in_demo = True

    def loss(self, run: Run, batch: Batch, targets: Targets, step: Step) -> Tensor:
        """Return the loss under a random mask. Shape: -> []."""
        layers = run.dynamic.num_layers
        mask = step.rng.random(layers) < 0.5
        if not mask.any():
            mask[step.rng.integers(layers)] = True
        logits = run.dynamic(**batch, mask=torch.from_numpy(mask)).logits
        return batch_loss(run, batch, logits, targets)


METHOD = RandomDropping()
