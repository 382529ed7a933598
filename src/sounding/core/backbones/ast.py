"""Audio Spectrogram Transformer (AST): patches of a fixed-length spectrogram."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .base import Backbone


class AST(Backbone):
    name = "AST"
    base = "ASTModel"

    def frame_lengths(self, base: nn.Module, lengths: Tensor) -> None:
        return None  # every input has the same number of patches

    def output_norm(self, owner: nn.Module) -> nn.Module | None:
        return owner.layernorm  # type: ignore[return-value]

    def example(self, base: Any, batch: int, seconds: float) -> dict[str, Tensor]:
        config = base.config
        return {"input_values": torch.randn(batch, config.max_length, config.num_mel_bins)}
