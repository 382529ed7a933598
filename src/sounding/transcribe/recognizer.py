"""What turns a piece of audio into text: the `Recognizer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..data.audio import Seconds
from ..model.dynamic import DynamicModel
from ..model.io import state_digest


class Recognition(NamedTuple):
    """What a recognizer makes of one piece.

    Attributes:
        executed_layers: indexes of the encoder layers that really ran.
        repetitive: the text repeats itself more than speech does, so that it may be made up.
    """

    text: str
    executed_layers: tuple[int, ...]
    repetitive: bool = False


class Recognizer(Protocol):
    """A callable that takes pieces of audio, [samples] float32 each, and returns their texts.

    It also takes a budget for each of them.

    An answer must not depend on the other pieces of a call.

    Attributes:
        sampling_rate: of the pieces, in Hz.
        max_seconds: of a piece.
        batch_size: pieces that it takes best at once.
        layers: of its encoder.
        settings: what else its answers depend on, as JSON; "model" is its name for people,
            "weights" a digest of what it is.
    """

    sampling_rate: int
    max_seconds: Seconds
    batch_size: int
    layers: int
    settings: dict[str, Any]

    def __call__(self, pieces: Sequence[np.ndarray], budget: Any = None) -> list[Recognition]:
        """Return what is said in each piece, [samples] float32."""


def weights_digest(dynamic: DynamicModel) -> str:
    """Return a digest of all weights, so that another model of the same name is another setting."""
    return state_digest(dynamic)[:16]
