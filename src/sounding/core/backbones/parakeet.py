"""Parakeet (FastConformer)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .base import Backbone


class Parakeet(Backbone):
    name = "Parakeet (FastConformer)"
    base = "ParakeetEncoder"
    per_input = ("attention_mask", "position_embeddings")
    ties_last = True

    def frame_lengths(self, base: Any, lengths: Tensor) -> Tensor:
        return base._get_subsampling_output_length(lengths).to(torch.long)

    def final_norm(self, layer: nn.Module) -> nn.Module | None:
        return layer.norm_out  # type: ignore[return-value]

    def output_norm(self, owner: nn.Module) -> nn.Module | None:
        return None

    def example(self, base: Any, batch: int, seconds: float) -> dict[str, Tensor]:
        return {"input_features": torch.randn(batch, int(100 * seconds), base.config.num_mel_bins)}
