"""I3D: gates by Gumbel-softmax, with a penalty on their mean (arXiv 2303.07624)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..data.features import FeatureSet
from ..policies import GateSelector, Policy
from ..policies.base import MeanBudgets
from ..policies.gates import SampledGates
from ..runs.calibrate import calibrate_gates
from ..runs.run import Batch, Run
from ..tasks.base import Targets
from .base import Method, Step, batch_loss


class Gated(Method):
    """Trains with sampled gates; every layer runs, and counts where its gate is open."""

    name = "i3d"
    label = "gates (I3D)"
    short = "I3D"
    color = "#1f9e89"
    mean_color = "#7fd1c3"
    ablations = {"local": {"gates": "local"}}  # noqa: RUF012

    def policy(self, config: Any, *, width: int, layers: int) -> Policy:
        """Make a selector with a gate for each layer."""
        return GateSelector(width, layers, scope=config.gates)

    def loss(self, run: Run, batch: Batch, targets: Targets, step: Step) -> Tensor:
        """Return the loss with sampled gates, and the penalty on their mean. Shape: -> []."""
        policy: Any = run.dynamic.policy
        gates = SampledGates(policy)
        logits = run.dynamic.forward_plan(batch, gates.plan()).logits
        mean = step.whole(torch.stack(gates.soft).mean())
        penalty = run.config.gate_penalty * (mean - 0.5).square()
        return batch_loss(run, batch, logits, targets) + penalty

    def calibrate(self, run: Run, features: FeatureSet, precision: str = "fp32") -> MeanBudgets:
        """Return the thresholds of "global" gates, read before layer 0; none for "local" ones."""
        if run.config.gates == "local":
            return []
        return calibrate_gates(run, features, precision)


METHOD = Gated()
