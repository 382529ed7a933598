"""Input-driven layer dropping as its paper tells it (arXiv 2507.07954); the details are ours.

The paper's selector and training are not public. What it tells: a light network reads the input
features and picks a combination of layers for a budget, trained jointly with the task. The
relaxation here is the straight-through Gumbel estimator (arXiv 1611.01144) over the k highest of
perturbed scores (arXiv 1903.06059). No mask is searched, no depth learns from another, and nothing
stands in for the choice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..policies import InputSelector, Policy
from ..policies.plans import EveryLayer
from ..runs.run import Batch, Run
from ..tasks.base import Targets
from .base import Method, Step, batch_loss


class RelaxedSelection(Method):
    """Trains selector and model by the loss of the task alone, k drawn anew in each step."""

    name = "idld"
    label = "IDLD-style"
    color = "#0b7285"
    arms = "choices"
    best_static = True
    shows_layers = True
    in_demo = True

    def policy(self, config: Any, *, width: int, layers: int) -> Policy:
        """Make a selector that reads the input."""
        return InputSelector(width, layers)

    def loss(self, run: Run, batch: Batch, targets: Targets, step: Step) -> Tensor:
        """Return the loss of a pass in which every layer counts as its gate is open.

        Shape: -> [].
        """
        layers = run.dynamic.num_layers
        k = int(step.rng.integers(1, layers + 1))
        gates = _RelaxedGates(run.dynamic.policy, k)
        logits = run.dynamic.forward_plan(batch, EveryLayer(gates)).logits
        return batch_loss(run, batch, logits, targets)


class _RelaxedGates:
    """The relaxed choice of k layers for `EveryLayer`, made once from what enters layer 0."""

    def __init__(self, policy: Any, k: int) -> None:
        self.policy, self.k = policy, k
        self.weight = torch.empty(0)

    def __call__(self, index: int, state: Tensor, frame_mask: Tensor | None) -> Tensor:
        if index == 0:
            k = torch.full((len(state),), self.k, device=state.device)
            self.weight = self.policy.relaxed(state, frame_mask, k).weight
        return self.weight[:, index]


METHOD = RelaxedSelection()
