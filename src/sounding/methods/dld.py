"""DLD: random dropping that imitates the embeddings of a frozen full model (arXiv 2601.16117)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from ..policies.pooling import frame_mean
from ..runs.run import Batch, Run
from ..tasks.base import Targets
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
        with torch.no_grad(), _final_state(run.teacher) as wanted:
            outputs, _ = run.teacher.dynamic.layer_outputs(batch)
        frame_mask = outputs[-1][1]
        with _final_state(run) as state:
            loss = super().loss(run, batch, targets, step)
        distance = kl_div(
            state[0].float().log_softmax(-1),
            wanted[0].float().log_softmax(-1),
            log_target=True,
            reduction="none",
        ).sum(-1)
        # of each clip first, so that all clips weigh alike in a batch, and in a part of it
        return loss + frame_mean(distance, frame_mask).mean()


@contextmanager
def _final_state(run: Run) -> Iterator[list[Tensor]]:
    """Collect what the encoder of a run puts out, its final norm applied."""
    seen: list[Tensor] = []
    handle = run.dynamic.base.register_forward_hook(
        lambda base, args, out: seen.append(out.last_hidden_state)
    )
    try:
        yield seen
    finally:
        handle.remove()


METHOD = DistilledDropping()
