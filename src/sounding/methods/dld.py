"""DLD: random dropping that imitates the embeddings of a frozen full model (arXiv 2601.16117)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from ..policies.pooling import frame_mean
from ..runs.run import Batch, Run
from ..tasks.base import Targets
from ..tasks.imitation import encoder_outputs
from .base import Step
from .full import FullDepth
from .random import RandomDropping


class DistilledDropping(RandomDropping):
    """Trains as random dropping does, and learns from the run `teacher`."""

    name = "dld"
    label = "random (DLD)"
    color = "#7a5c00"
    needs_teacher = True
    teacher_method = FullDepth.name
    in_demo = False

    def loss(self, run: Run, batch: Batch, targets: Targets, step: Step) -> Tensor:
        """Return the loss under a random mask, with the distance to the teacher's embeddings.

        Shape: -> [].
        """
        assert run.teacher is not None
        with torch.no_grad(), encoder_outputs(run.teacher.dynamic) as wanted:
            outputs, _ = run.teacher.dynamic.layer_outputs(batch)
        frame_mask = outputs[-1][1]
        with encoder_outputs(run.dynamic) as state:
            loss = super().loss(run, batch, targets, step)
        distance = kl_div(
            state[0].float().log_softmax(-1),
            wanted[0].float().log_softmax(-1),
            log_target=True,
            reduction="none",
        ).sum(-1)
        # of each clip first, so that all clips weigh alike in a batch, and in a part of it
        return loss + frame_mean(distance, frame_mask).mean()


METHOD = DistilledDropping()
