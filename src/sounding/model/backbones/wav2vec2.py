"""wav2vec 2.0 and the encoders built like it: HuBERT, Data2VecAudio, UniSpeechSat, WavLM."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...errors import UsageError
from ..derive import Override
from .base import (
    Backbone,
    CheckpointedInCall,
    GroupNormByLength,
    MasksThatFit,
    zero_padding_hook,
)


class Wav2Vec2(Backbone):
    """A convolutional front end on raw audio, then layers with a norm before or after."""

    name = "Wav2Vec2"
    base = "Wav2Vec2Model"

    def owner(self, base: nn.Module) -> nn.Module:
        """Return the module whose `layers` is the list of layers."""
        return base.encoder  # type: ignore[return-value]

    def frame_lengths(self, base: Any, lengths: Tensor) -> Tensor:
        """Return the valid frames behind all convolutions. Shape: [batch] -> [batch]."""
        for kernel, stride in zip(base.config.conv_kernel, base.config.conv_stride, strict=True):
            lengths = (lengths - kernel) // stride + 1
        return lengths

    def first_lengths(self, base: Any, lengths: Tensor) -> Tensor:
        """Return the valid frames behind the first convolution. Shape: [batch] -> [batch]."""
        kernel, stride = base.config.conv_kernel[0], base.config.conv_stride[0]
        frames: Tensor = (lengths - kernel) // stride + 1
        return frames

    def final_norm(self, layer: nn.Module) -> nn.Module | None:
        """Return the norm at the end of a layer; None for pre-norm layers."""
        # In the pre-norm layers "final_layer_norm" stands before the feed-forward part.
        return None if _is_pre_norm(layer) else layer.final_layer_norm  # type: ignore[return-value]

    def output_norm(self, owner: nn.Module) -> nn.Module | None:
        """Return the norm after the last layer; None for post-norm layers."""
        # In the post-norm encoders "layer_norm" stands before the first layer.
        return owner.layer_norm if _is_pre_norm(owner) else None  # type: ignore[return-value]

    def finish(self, base: Any, hidden: Tensor, frame_mask: Tensor | None) -> Tensor:
        """Apply the final norm, and the adapter where there is one."""
        hidden = super().finish(base, hidden, frame_mask)
        adapter = getattr(base, "adapter", None)
        return hidden if adapter is None else adapter(hidden)

    def install(self, base: Any) -> list[Any]:
        """Mask spans only where they fit, and normalize each input by itself."""
        handles = [Override(base, MasksThatFit)]
        first = base.feature_extractor.conv_layers[0]
        if isinstance(first.layer_norm, nn.GroupNorm):
            handles.append(Override(first.layer_norm, GroupNormByLength))
            handles.append(Override(first, CheckpointedInCall))
        return handles


def _is_pre_norm(module: nn.Module) -> bool:
    return any(cls.__name__.endswith("StableLayerNorm") for cls in type(module).__mro__)


class Hubert(Wav2Vec2):
    """HuBERT, whose encoder is that of wav2vec 2.0."""

    name = "HuBERT"
    base = "HubertModel"


class UniSpeechSat(Wav2Vec2):
    """UniSpeechSat, whose encoder is that of wav2vec 2.0."""

    name = "UniSpeechSat"
    base = "UniSpeechSatModel"


class Data2VecAudio(Wav2Vec2):
    """Data2VecAudio, whose positions come from a stack of convolutions.

    Padding must stay zero between them.
    """

    name = "Data2VecAudio"
    base = "Data2VecAudioModel"

    def install(self, base: Any) -> list[Any]:
        """Keep padding zero between the convolutions of the positions, too."""
        convolutions = base.encoder.pos_conv_embed.layers
        hooks = [layer.register_forward_hook(_zero_padding) for layer in convolutions]
        return super().install(base) + hooks


def _zero_padding(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor | None:
    """Set padding back to zero; a hook for a convolution over [batch, width, frames]."""
    result = zero_padding_hook(module, args, output.transpose(1, 2))
    return None if result is None else result.transpose(1, 2)


class WavLM(Wav2Vec2):
    """WavLM, whose layer 0 holds the relative position bias that all layers use.

    The bias is computed before the layers, so that layer 0 can be skipped.
    """

    name = "WavLM"
    base = "WavLMModel"
    tuple_output = True

    def prepare(
        self, layers: list[nn.Module], hidden: Tensor, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the arguments of the layers with the position bias.

        Shape: position_bias [batch * heads, frames, frames].
        """
        batch, frames, _ = hidden.shape
        attention: Any = layers[0].attention
        bias = attention.compute_bias(frames, frames)  # [heads, frames, frames]
        bias = bias.unsqueeze(0).repeat(batch, 1, 1, 1).view(-1, frames, frames)
        if bias.requires_grad and layers[0].training and _checkpoints_reentrantly(layers[0]):
            raise UsageError(
                'WavLM needs gradient checkpointing with {"use_reentrant": False}: reentrant '
                "checkpoints do not end where all layers share a position bias"
            )
        return kwargs | {"position_bias": bias}

    def take(self, name: str, value: Any, rows: Tensor, batch: int) -> Any:
        """Return the part of an argument that belongs to `rows`; all inputs share the bias."""
        if name == "position_bias":  # [batch * heads, frames, frames], the same for every input
            return value[: value.shape[0] // batch * len(rows)]
        return super().take(name, value, rows, batch)


def _checkpoints_reentrantly(layer: Any) -> bool:
    settings = getattr(getattr(layer, "_gradient_checkpointing_func", None), "keywords", {})
    return bool(layer.gradient_checkpointing and settings.get("use_reentrant"))
