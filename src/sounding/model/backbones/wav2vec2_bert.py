"""Wav2Vec2-BERT (w2v-BERT 2.0)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..derive import Override
from .base import Backbone, MasksThatFit


class Wav2Vec2Bert(Backbone):
    """Conformer layers on stacked mel features."""

    name = "Wav2Vec2-BERT"
    base = "Wav2Vec2BertModel"
    per_input = ("attention_mask", "conv_attention_mask")

    def owner(self, base: nn.Module) -> nn.Module:
        """Return the module whose `layers` is the list of layers."""
        return base.encoder  # type: ignore[return-value]

    def final_norm(self, layer: nn.Module) -> nn.Module | None:
        """Return the norm at the end of a layer."""
        return layer.final_layer_norm  # type: ignore[return-value]

    def output_norm(self, owner: nn.Module) -> nn.Module | None:
        """Return None: no norm follows the last layer."""
        return None

    def finish(self, base: Any, hidden: Tensor, frame_mask: Tensor | None) -> Tensor:
        """Apply the feed-forward part and the adapter that may follow the last layer."""
        if base.intermediate_ffn:
            hidden = hidden + 0.5 * base.intermediate_ffn(hidden)
        if base.adapter is not None:
            mask = None if frame_mask is None else frame_mask.long()
            hidden = base.adapter(hidden, attention_mask=mask)
        return hidden

    def install(self, base: Any) -> list[Any]:
        """Mask spans only where they fit."""
        return [Override(base, MasksThatFit)]

    def example(self, base: Any, batch: int, seconds: float) -> dict[str, Tensor]:
        """Return random stacked mel frames. Shape: input_features [batch, frames, width]."""
        width = base.config.feature_projection_input_dim
        return {"input_features": torch.randn(batch, int(50 * seconds), width)}
