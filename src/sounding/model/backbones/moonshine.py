"""The encoder of Moonshine: raw audio through three convolutions, rotary positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..call import active_call
from ..derive import Override
from .base import Backbone, GroupNormByLength


class Moonshine(Backbone):
    """Raw audio through three convolutions, then pre-norm layers with rotary positions."""

    name = "Moonshine encoder"
    base = "MoonshineEncoder"
    ties_last = True
    decoder = "MoonshineDecoder"

    def frame_lengths(self, base: Any, lengths: Tensor) -> Tensor:
        """Return the valid frames behind the three convolutions. Shape: [batch] -> [batch]."""
        for convolution in (base.conv1, base.conv2, base.conv3):
            lengths = (lengths - convolution.kernel_size[0]) // convolution.stride[0] + 1
        return lengths

    def first_lengths(self, base: Any, lengths: Tensor) -> Tensor:
        """Return the valid frames behind the first convolution. Shape: [batch] -> [batch]."""
        frames: Tensor = (lengths - base.conv1.kernel_size[0]) // base.conv1.stride[0] + 1
        return frames

    def install(self, base: Any) -> list[Any]:
        """Normalize each input by itself, and make the mask as long as its own frames."""
        return [
            Override(base.groupnorm, GroupNormByLength),
            base.register_forward_pre_hook(_exact_mask, with_kwargs=True),
        ]


def _exact_mask(
    encoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Make the encoder's mask cover the frames that a clip has when it is alone, and no more.

    The encoder takes every 384th sample of the mask as the mask of the frames, which counts a
    last frame that reaches into the padding.
    """
    call = active_call()
    mask = kwargs.get("attention_mask")
    if call is None or call.lengths is None or mask is None:
        return None
    stride = 1
    for convolution in (encoder.conv1, encoder.conv2, encoder.conv3):
        stride *= convolution.stride[0]
    covered = call.backbone.frame_lengths(encoder, call.lengths)
    assert covered is not None
    positions = torch.arange(mask.shape[-1], device=mask.device)
    exact = (positions < (covered * stride)[:, None]).to(mask.dtype)
    return args, kwargs | {"attention_mask": exact}
