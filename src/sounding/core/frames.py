"""Over the frames of a state, padding left out."""

from __future__ import annotations

from torch import Tensor


def frame_mean(values: Tensor, frame_mask: Tensor | None) -> Tensor:
    """Mean over the valid frames.

    Shape: values [batch, frames, ...], frame_mask [batch, frames] bool or None -> [batch, ...].
    """
    if frame_mask is None:
        return values.mean(1)
    weight = frame_mask.reshape(*frame_mask.shape, *[1] * (values.ndim - 2)).to(values.dtype)
    return (values * weight).sum(1) / weight.sum(1)
