"""One class a clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..statistics import wilson
from .base import Score, Targets, Task


class OneClass(Task):
    """One class a clip, by cross-entropy; scored by accuracy."""

    metric = "accuracy"
    titles: ClassVar[Mapping[str, str]] = {"accuracy": "accuracy"}

    def losses(self, logits: Tensor, frame_mask: Tensor | None, targets: Targets) -> Tensor:
        """Return the cross-entropy of each clip under each mask.

        Shape: logits [masks, batch, labels] -> [masks, batch].
        """
        wanted = _classes(targets, logits.device).expand(logits.shape[:2])
        losses = cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="none")
        return losses.view(wanted.shape)

    def errors(self, logits: Tensor, frame_mask: Tensor | None, targets: Targets) -> Tensor:
        """Return 1 where the likeliest class is wrong, else 0.

        Shape: logits [masks, batch, labels] -> [masks, batch] float.
        """
        return (logits.argmax(-1) != _classes(targets, logits.device)).float()

    def score(
        self, errors: NDArray[np.float64], details: NDArray[np.float64] | None, targets: Targets
    ) -> Score:
        """Return the accuracy, with Wilson's interval over the clips."""
        value = float(1 - errors.mean())
        return Score(self.metric, value, *wilson(value, errors.shape[1]))


def _classes(targets: Targets, device: torch.device) -> Tensor:
    return torch.tensor([target.ids[0] for target in targets], device=device)
