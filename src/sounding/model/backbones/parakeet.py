"""Parakeet (FastConformer)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..call import active_call
from .base import Backbone


class Parakeet(Backbone):
    """Mel frames through strided convolutions, then Conformer layers that end in a norm."""

    name = "Parakeet (FastConformer)"
    base = "ParakeetEncoder"
    per_input = ("attention_mask", "position_embeddings")
    ties_last = True

    def frame_lengths(self, base: Any, lengths: Tensor) -> Tensor:
        """Return the valid frames behind the subsampling. Shape: [batch] -> [batch]."""
        frames: Tensor = base._get_subsampling_output_length(lengths).to(torch.long)
        return frames

    def final_norm(self, layer: nn.Module) -> nn.Module | None:
        """Return the norm at the end of a layer."""
        return layer.norm_out  # type: ignore[return-value]

    def output_norm(self, owner: nn.Module) -> nn.Module | None:
        """Return None: no norm follows the last layer."""
        return None

    def install(self, base: Any) -> list[Any]:
        """Make the padding zero before the subsampling."""
        return [base.subsampling.register_forward_pre_hook(_zero_padding)]

    def example(self, base: Any, batch: int, seconds: float) -> dict[str, Tensor]:
        """Return random mel frames. Shape: input_features [batch, frames, mels]."""
        return {"input_features": torch.randn(batch, int(100 * seconds), base.config.num_mel_bins)}


def _zero_padding(subsampling: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Set what is behind the end of a clip to zero, as it is without padding.

    The first convolution reads over the end.
    """
    call = active_call()
    if call is None or call.lengths is None:
        return None
    features, *rest = args
    valid = torch.arange(features.shape[1], device=features.device) < call.lengths[:, None]
    return (features * valid.unsqueeze(-1).to(features.dtype), *rest)
