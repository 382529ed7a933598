"""Several classes a clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ..data.folder import AudioFolder, Clip
from ..statistics import precision_interval
from .base import Prediction, Score, Target, Targets, Task, divergence


class Tags(Task):
    """Several classes a clip, each by itself, yes or no.

    `errors` are 1 minus the label-ranking average precision, clip by clip; the score is the mean
    average precision, class by class.
    """

    data = runtime = "tags"
    metric = "lrap"
    titles: ClassVar[Mapping[str, str]] = {"map": "mAP", "lrap": "LRAP"}
    confidence_by = "sigmoid"

    def targets(self, folder: AudioFolder, clips: Sequence[Clip]) -> list[Target]:
        """Return the tags of each clip."""
        index = {label: place for place, label in enumerate(self.labels)}
        return [Target(tuple(index[tag] for tag in clip.tags), clip.target) for clip in clips]

    def wanted(self, targets: Targets) -> Tensor:
        """Return which labels are right. Shape: -> [clips, labels] bool."""
        wanted = torch.zeros(len(targets), len(self.labels), dtype=torch.bool)
        for row, target in zip(wanted, targets, strict=True):
            row[list(target.ids)] = True
        return wanted

    def losses(self, logits: Tensor, frame_mask: Tensor | None, targets: Targets) -> Tensor:
        """Return the binary cross-entropy of each clip under each mask, the mean over labels.

        Shape: logits [masks, batch, labels] -> [masks, batch].
        """
        wanted = self.wanted(targets).to(logits.device).float().expand_as(logits)
        return binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none").mean(-1)

    def distances(
        self, logits: Tensor, teacher: Tensor, frame_mask: Tensor | None, targets: Targets
    ) -> Tensor:
        """Return the divergence from a teacher, each label a yes or no, the mean over labels.

        Shape: logits [masks, batch, labels], teacher [batch, labels] -> [masks, batch].
        """
        yes_no = torch.stack([logits, torch.zeros_like(logits)], dim=-1)
        return divergence(yes_no, torch.stack([teacher, torch.zeros_like(teacher)], -1)).mean(-1)

    def imitation(self, logits: Tensor, values: Tensor, labels: Tensor, total: Tensor) -> Tensor:
        """Return the divergence from a teacher in its top labels, each a yes or no, in the mean.

        Shape: as `Task.imitation`.
        """
        given = logits.gather(-1, labels.long())
        return self.distances(given[None], values.float(), None, ())[0]

    def decode(self, logits: Tensor, frame_mask: Tensor | None) -> list[str]:
        """Return the classes that are likelier than not, or else the likeliest."""
        chosen = (logits > 0) | (logits == logits.amax(-1, keepdim=True))
        return [";".join(self.labels[i] for i in row.nonzero()[:, 0].tolist()) for row in chosen]

    def errors(self, logits: Tensor, frame_mask: Tensor | None, targets: Targets) -> Tensor:
        """Return 1 minus the precision at the rank of each right class, in the mean."""
        wanted = self.wanted(targets).to(logits.device).expand_as(logits)
        below, order = (-logits.float()).sort(-1)
        hits = wanted.gather(-1, order).float()
        # a class stands behind all that have its score, so that no order of ties counts
        rank = torch.searchsorted(below, below, right=True)
        precision = hits.cumsum(-1).gather(-1, rank - 1) / rank
        return 1 - (precision * hits).sum(-1) / hits.sum(-1).clamp(min=1)

    def count(self, texts: Sequence[str], targets: Targets) -> list[float]:
        """Return how many labels are missing or too many in each text."""
        return [
            float(len(set(text.split(";")) ^ set(target.text.split(";"))))
            for text, target in zip(texts, targets, strict=True)
        ]

    def details(self, predicted: Prediction, targets: Targets) -> NDArray[np.float64] | None:
        """Return the logits, which the mean average precision needs. Shape: -> [batch, labels]."""
        assert predicted.logits is not None
        return predicted.logits.double().numpy()

    def score(
        self, errors: NDArray[np.float64], details: NDArray[np.float64] | None, targets: Targets
    ) -> Score:
        """Return the mean average precision of the logits, with a bootstrap over the clips."""
        assert details is not None
        return Score("map", *precision_interval(details, self.wanted(targets).numpy()))
