"""What a policy reads of a state: its mean and deviation over the frames, padding left out."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


def frame_mean(values: Tensor, frame_mask: Tensor | None) -> Tensor:
    """Return the mean over the valid frames, of which every input has one at least.

    Shape: values [batch, frames, ...], frame_mask [batch, frames] bool or None -> [batch, ...].
    """
    if frame_mask is None:
        return values.mean(1)
    weight = frame_mask.reshape(*frame_mask.shape, *[1] * (values.ndim - 2)).to(values.dtype)
    return (values * weight).sum(1) / weight.sum(1)


def pool(features: Tensor, frame_mask: Tensor | None) -> Tensor:
    """Return mean and standard deviation over the valid frames.

    Shape: [batch, frames, width], frame_mask [batch, frames] bool or None -> [batch, 2 * width].
    """
    # In place: one temporary of the size of the features instead of two halves the time.
    if frame_mask is None:
        mean = features.mean(1)
        variance = (features - mean[:, None]).square_().mean(1)
    else:
        weight = frame_mask.unsqueeze(-1).to(features.dtype)
        count = weight.sum(1).clamp(min=1)
        mean = (features * weight).sum(1) / count
        variance = (features - mean[:, None]).mul_(weight).square_().sum(1) / count
    return torch.cat([mean, (variance + 1e-8).sqrt()], dim=-1)


def hidden_width(width: int) -> int:
    """Return the width of a hidden layer whose MACs are far below 0.5 % of one second's."""
    return max(4, min(64, width // 8))


def float_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype that a module computes in; a quantized linear layer takes float32."""
    values = (*module.parameters(), *module.buffers())
    return next((one.dtype for one in values if one.is_floating_point()), torch.float32)


def no_autocast(device: str) -> AbstractContextManager[object]:
    """Return a context in which products are not computed in a lower precision."""
    available = torch.amp.is_autocast_available(device)  # not on the meta device
    return torch.autocast(device, enabled=False) if available else nullcontext()
