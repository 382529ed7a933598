"""Early exit: a head after each layer, trained together (Wright et al., arXiv 2309.09546)."""

from __future__ import annotations

from torch import Tensor

from ..data.features import FeatureSet
from ..policies.base import MeanBudgets
from ..policies.masks import first_masks
from ..runs.calibrate import calibrate_confidence
from ..runs.run import Batch, Run
from ..tasks.base import Targets
from .base import Method, Step


class EarlyExit(Method):
    """Sums the losses of all exits; at a mean budget an input stops once its answer is sure."""

    name = "early-exit"
    label = "early exit"
    color = "#3b7dd8"
    mean_color = "#8fb8ec"
    own_heads = True
    arms = "depths"
    in_demo = True

    def loss(self, run: Run, batch: Batch, targets: Targets, step: Step) -> Tensor:
        """Return the mean of the losses of all exits. Shape: -> []."""
        out = run.dynamic.forward_masks(batch, first_masks(run.dynamic.num_layers))
        losses: Tensor = run.task.losses(out.logits, out.frame_mask, targets)
        return losses.mean()

    def calibrate(self, run: Run, features: FeatureSet, precision: str = "fp32") -> MeanBudgets:
        """Return the thresholds of confidence at which inputs stop."""
        return calibrate_confidence(run, features, precision)


METHOD = EarlyExit()
