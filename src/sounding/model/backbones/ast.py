"""Audio Spectrogram Transformer (AST): patches of a fixed-length spectrogram."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .base import Backbone


class AST(Backbone):
    """A vision transformer on patches of a spectrogram whose length is fixed."""

    name = "AST"
    base = "ASTModel"

    def frame_lengths(self, base: nn.Module, lengths: Tensor) -> None:
        """Return None: every input has the same number of patches."""
        return None  # every input has the same number of patches

    def output_norm(self, owner: nn.Module) -> nn.Module | None:
        """Return the norm after the last layer."""
        return owner.layernorm  # type: ignore[return-value]

    def answer(self, base: Any, hidden: Tensor, frame_mask: Tensor | None) -> Any:
        """Return the finished state, and the mean of its two class tokens, which the head reads."""
        finished = self.finish(base, hidden, frame_mask)
        pooled = (finished[:, 0] + finished[:, 1]) / 2  # the two class tokens
        return BaseModelOutputWithPooling(last_hidden_state=finished, pooler_output=pooled)

    def example(self, base: Any, batch: int, seconds: float) -> dict[str, Tensor]:
        """Return random spectrograms of the fixed length, whatever `seconds`.

        Shape: input_values [batch, frames, bins].
        """
        config = base.config
        return {"input_values": torch.randn(batch, config.max_length, config.num_mel_bins)}
