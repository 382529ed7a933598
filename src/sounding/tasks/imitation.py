"""How a task lets a student learn from a teacher, in place of targets: `Imitation`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.dynamic import DynamicModel

Batch: TypeAlias = dict[str, Tensor]


class Target(NamedTuple):
    """The right answer to one clip.

    Attributes:
        ids: of its class, its classes or its tokens.
        text: the same for people.
        speaker: who speaks; "" where nobody knows.
    """

    ids: tuple[int, ...]
    text: str
    speaker: str = ""


Targets = Sequence[Target]


class Demonstration(NamedTuple):
    """What a teacher makes of each clip of a batch, for a student to learn from.

    Shape:
        states: [frames, width] each: the encoder's output.
        logits: [positions, labels] each: those that count.
        ids: the tokens that a decoder wrote, prompt and end included; else none.
    """

    states: Sequence[Tensor]
    logits: Sequence[Tensor]
    ids: Sequence[Sequence[int]]


class Imitation:
    """The part of a `Task` by which a student imitates the answers of a teacher."""

    def demonstrate(
        self, dynamic: DynamicModel, batch: Batch, features: Sequence[NDArray[np.float32]]
    ) -> Demonstration:
        """Return what the full depth makes of a batch, for a student to learn from.

        Args:
            features: those that the batch was made of.
        """
        with encoder_outputs(dynamic) as seen:
            logits = dynamic(**batch).logits
        frames = dynamic.frame_mask(batch, seen[0].shape[1])
        states = (
            list(seen[0])
            if frames is None
            else [one[keep] for one, keep in zip(seen[0], frames, strict=True)]
        )
        return Demonstration(states, self.counted(logits, frames, ()), [()] * len(logits))

    def counted(self, logits: Tensor, frame_mask: Tensor | None, targets: Targets) -> list[Tensor]:
        """Return the logits of each clip that a student learns from.

        Shape: logits [batch, ...] -> [positions, labels] each.
        """
        return [one[None] for one in logits]

    def emphasis(self, labels: Tensor) -> Tensor:
        """Return the weights of the positions of a clip, where a student imitates a teacher.

        Shape: labels [positions] int, the likeliest to the teacher -> [positions] float.
        """
        return torch.full(labels.shape, 1 / len(labels))

    def imitation(self, logits: Tensor, values: Tensor, labels: Tensor, total: Tensor) -> Tensor:
        """Return the Kullback-Leibler divergence from a teacher of which the top is known.

        The labels that are not in the top count as one.

        Shape: logits [positions, all labels]; values, labels [positions, top] and total
        [positions] as of `methods.teaching.TeacherOutput` -> [positions].
        """
        given = logits.float().log_softmax(-1).gather(-1, labels.long())
        wanted = (values.float() - total[:, None]).clamp(max=0)
        inside = (wanted.exp() * (wanted - given)).sum(-1)
        if labels.shape[-1] == logits.shape[-1]:
            return inside
        rest_wanted = (1 - wanted.exp().sum(-1)).clamp(min=1e-6)
        rest_given = (1 - given.exp().sum(-1)).clamp(min=1e-6)
        return inside + rest_wanted * (rest_wanted.log() - rest_given.log())


@contextmanager
def encoder_outputs(dynamic: DynamicModel) -> Iterator[list[Tensor]]:
    """Collect what the encoder puts out, its final norm applied, while a model runs.

    Shape: -> [batch, frames, width] for each time that it runs.
    """
    seen: list[Tensor] = []
    handle = dynamic.base.register_forward_hook(
        lambda base, args, out: seen.append(out.last_hidden_state)
    )
    try:
        yield seen
    finally:
        handle.remove()
