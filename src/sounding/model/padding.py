"""The lengths of the inputs of a padded batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from .backbones.base import Backbone


def valid_frames(backbone: Backbone, base: Any, lengths: Tensor) -> Tensor | None:
    """Count the frames of each input at layer 0.

    Args:
        lengths: valid samples or feature frames of each input.

    Shape: [batch] int -> [batch] int; None where inputs have a fixed length.

    Raises:
        ValueError: an input is shorter than a frame: its answer would be a mean over nothing.
    """
    frames = backbone.frame_lengths(base, lengths)
    if frames is None or bool((frames > 0).all()):
        return frames
    row = int(torch.argmin(frames))
    raise UsageError(
        f"input {row} of the batch is too short: its {int(lengths[row])} valid positions make no "
        f"frame of this {backbone.name}; leave it out"
    )
