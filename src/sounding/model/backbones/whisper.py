"""The encoder of Whisper, also on input shorter than its 30 s window."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput

from ...errors import UsageError
from ...policies.pooling import frame_mean
from ..call import Call, active_call
from ..derive import Override
from .base import Backbone


class Whisper(Backbone):
    """Log-mel frames through two convolutions (stride 2), then pre-norm layers.

    Plain Whisper takes exactly 30 s and knows no padding. Within a dynamic call, shorter input
    runs at its own length, and an attention mask over its mel frames is honoured: padding is zero
    in the convolutions, left out of the attention, and carries the mean of the valid frames at
    the end, so that a mean over time is the mean over the valid frames. A full window of 30 s is
    Whisper's own case and is left to `transformers`.
    """

    name = "Whisper encoder"
    base = "WhisperEncoder"
    ties_last = True
    decoder = "WhisperDecoder"
    time = 2

    def frame_lengths(self, base: Any, lengths: Tensor) -> Tensor:
        """Return the valid frames behind both convolutions. Shape: [batch] -> [batch]."""
        frames: Tensor = (lengths - 1) // base.conv2.stride[0] + 1
        return frames

    def finish(self, base: Any, hidden: Tensor, frame_mask: Tensor | None) -> Tensor:
        """Apply the final norm, and give padded frames the mean of the valid ones."""
        return fill_padding(super().finish(base, hidden, frame_mask), frame_mask)

    def window(self, base: Any) -> int:
        """Return the length of the window in mel frames: 3000, which is 30 s."""
        stride = base.conv1.stride[0] * base.conv2.stride[0]
        return int(base.config.max_source_positions * stride)

    def install(self, base: Any) -> list[Any]:
        """Let the encoder take input of any length up to the window."""
        return [Override(base, OwnLength)]

    def example(self, base: Any, batch: int, seconds: float) -> dict[str, Tensor]:
        """Return random mel frames, a window at most.

        Shape: input_features [batch, mels, frames].
        """
        frames = min(int(100 * seconds), self.window(base))
        return {"input_features": torch.randn(batch, base.num_mel_bins, frames)}


def fill_padding(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Give padded frames the mean of the valid ones. Shape: [batch, frames, width]."""
    if mask is None:
        return hidden
    return torch.where(mask.unsqueeze(-1), hidden, frame_mean(hidden, mask)[:, None])


class OwnLength:
    """A `WhisperEncoder`, by `Override`, that takes shorter input than its window in a call."""

    def forward(
        self, input_features: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Encode input at its own length within a call.

        Shape: input_features [batch, mels, frames] -> what `transformers` returns.
        """
        encoder: Any = self
        call = active_call()
        frames = input_features.shape[-1]
        if call is None or frames == call.backbone.window(encoder):
            whisper: Any = super()
            return whisper.forward(input_features, attention_mask, **kwargs)
        window = call.backbone.window(encoder)
        if window is not None and frames > window:
            raise UsageError(
                f"the input has {frames} mel frames ({frames / 100:.1f} s); Whisper takes at most "
                f"{window} ({window / 100:.1f} s): cut it into pieces"
            )
        hidden = _front_end(encoder, call, input_features)
        frame_mask = call.frame_mask(hidden.shape[1])
        bias = create_bidirectional_mask(
            config=encoder.config, inputs_embeds=hidden, attention_mask=frame_mask
        )
        for layer in encoder.layers:
            hidden = layer(hidden, bias, **kwargs)
        hidden = call.backbone.finish(encoder, hidden, frame_mask)
        call.hidden_states = [fill_padding(state, frame_mask) for state in call.hidden_states]
        return BaseModelOutput(last_hidden_state=hidden)


def _front_end(encoder: Any, call: Call, features: Tensor) -> Tensor:
    """Run both convolutions and add the positions.

    Shape: [batch, mels, time] -> [batch, frames, width].
    """
    valid: Tensor | None = None
    if call.lengths is not None:  # conv1 sees zeros behind the end, as it does without padding
        positions = torch.arange(features.shape[-1], device=features.device)
        valid = (positions < call.lengths[:, None])[:, None].to(features.dtype)
        features = features * valid
    hidden = nn.functional.gelu(encoder.conv1(features))
    if valid is not None:
        hidden = hidden * valid
    hidden = nn.functional.gelu(encoder.conv2(hidden)).permute(0, 2, 1)
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    return nn.functional.dropout(hidden, p=encoder.dropout, training=encoder.training)
