"""Early stopping: an input runs layer after layer until its answer is sure enough."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..budget import Budget, threshold_for
from ..errors import UsageError
from .base import Context, Policy
from .plans import Plan, Readout, Sure
from .pooling import frame_mean


class Confidence(Policy):
    """Stops an input at a threshold of confidence, calibrated to the mean that was asked for."""

    kind = "confidence"
    reads = 0

    def serves(self, budget: Budget) -> bool:
        """Return whether the budget is a mean; it serves no other."""
        return budget.is_mean

    def plan(self, budget: Budget, context: Context) -> Plan:
        """Plan to stop each input at the threshold of the mean that was asked for."""
        mean = budget.mean_layers(layers=context.layers)
        if context.readout is None:
            raise UsageError(
                "a mean budget stops by the answer after each layer, which a decoder does not give "
                "there: give a budget of kept layers"
            )
        return Progressive(context.readout, threshold_for(mean, self.calibrated()), context.sure)


class Progressive:
    """Runs layer after layer until the answer is sure enough, input by input.

    Args:
        readout: the answer after some layers.
        threshold: an input stops once its answer is as sure as that.
        sure: how sure an answer is, such as `confidence`.
    """

    def __init__(self, readout: Readout, threshold: float, sure: Sure) -> None:
        self.readout, self.threshold, self.sure = readout, threshold, sure
        self.going = torch.empty(0, dtype=torch.bool)

    def __call__(
        self, index: int, state: Tensor, frame_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return which inputs run layer `index`. Shape: -> [batch] bool."""
        if index == 0:
            self.going = torch.ones(state.shape[0], dtype=torch.bool)
        elif bool(self.going.any()):
            rows = self.going.nonzero().squeeze(1)
            there = rows.to(state.device)
            logits = self.readout(index, there, state[there])
            valid = None if frame_mask is None else frame_mask[rows.to(frame_mask.device)]
            sure = self.sure(logits, valid).to("cpu") >= self.threshold
            self.going = self.going.clone()
            self.going[rows[sure]] = False
        return self.going, None


def confidence(
    logits: Tensor, frame_mask: Tensor | None = None, *, several: bool = False
) -> Tensor:
    """Return the probability of the likeliest class; for an answer a frame, its mean over these.

    Args:
        several: whether an input may have several classes, each a yes or no by itself.

    Shape: [batch, labels], or [batch, frames, labels] with the frame mask or None -> [batch].
    """
    logits = logits.float()
    probabilities = logits.sigmoid() if several else logits.softmax(-1)
    return _over_frames(probabilities.amax(-1), frame_mask)


def certainty(logits: Tensor, frame_mask: Tensor | None = None, *, several: bool = False) -> Tensor:
    """Return minus the entropy of the answer, in nats; of several yes or no their mean.

    Args and shape: those of `confidence`.
    """
    logits = logits.float()
    if several:
        yes, no = functional.logsigmoid(logits), functional.logsigmoid(-logits)
        return _over_frames((yes * yes.exp() + no * no.exp()).mean(-1), frame_mask)
    log_p = logits.log_softmax(-1)
    return _over_frames((log_p * log_p.exp()).sum(-1), frame_mask)


def _over_frames(values: Tensor, frame_mask: Tensor | None) -> Tensor:
    """Average over the valid frames, if there are any. Shape: [batch] or [batch, frames]."""
    return values if values.ndim == 1 else frame_mean(values, frame_mask)


def stops(sureness: Tensor, threshold: float) -> Tensor:
    """Return after how many layers each clip stops.

    Shape: sureness [layers - 1, clips], after 1, 2, ... layers -> [clips] int.
    """
    sure = torch.cat([sureness >= threshold, torch.ones(1, sureness.shape[1], dtype=torch.bool)])
    depth: Tensor = sure.int().argmax(0) + 1
    return depth
