"""What the executor has to know of a family of encoders: the `Backbone`."""

from __future__ import annotations

import copy
import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from ..call import activate, active_call
from ..derive import original_class


class Backbone:
    """One family of encoders. A subclass is the whole support of a family; see docs/backbones.md.

    Class attributes:
        name: as shown to people.
        base: name of the `transformers` class that holds the encoder and returns hidden states.
        per_input: arguments of a layer whose first dimension is the batch.
        tuple_output: whether a layer returns a tuple.
        ties_last: whether `hidden_states[-1]` is the final, normalized output.
        decoder: name of the class of its decoder, where `generate` may drop layers of that too.
        time: dimension of the model's input over which an attention mask marks padding.
    """

    name: str
    base: str
    per_input: tuple[str, ...] = ("attention_mask",)
    tuple_output = False
    ties_last = False
    decoder: str | None = None
    time = 1

    def owner(self, base: nn.Module) -> nn.Module:
        """Return the module whose `layers` is the list of layers."""
        return base

    def frame_lengths(self, base: nn.Module, lengths: Tensor) -> Tensor | None:
        """Return the valid frames at layer 0 for valid input samples or feature frames.

        Shape: lengths [batch] -> [batch]; None where inputs have a fixed length.
        """
        return lengths

    def first_lengths(self, base: nn.Module, lengths: Tensor) -> Tensor:
        """Return the valid frames behind the first convolution, for a norm over time there.

        Shape: [batch] -> [batch].
        """
        return lengths

    def prepare(
        self, layers: list[nn.Module], hidden: Tensor, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the arguments of the layers, made once per call.

        What a layer computes for later ones is among them, so that it may be skipped.
        """
        return kwargs

    def take(self, name: str, value: Any, rows: Tensor, batch: int) -> Any:
        """Return the part of a layer's argument that belongs to the inputs `rows`."""
        if name in self.per_input and isinstance(value, Tensor) and value.shape[0] == batch:
            return value.index_select(0, rows)
        return value

    def final_norm(self, layer: nn.Module) -> nn.Module | None:
        """Return the norm at the end of a layer, for `skip="norm"`; None where there is none."""
        return None

    def output_norm(self, owner: nn.Module) -> nn.Module | None:
        """Return the norm after the last layer; None where there is none."""
        return getattr(owner, "layer_norm", None)

    def finish(self, base: Any, hidden: Tensor, frame_mask: Tensor | None) -> Tensor:
        """Return what the encoder makes of the state after its last layer, mostly by a norm.

        Shape: [batch, frames, width] -> that of the encoder's `last_hidden_state`.
        """
        norm = self.output_norm(self.owner(base))
        return hidden if norm is None else norm(hidden)

    def answer(self, base: Any, hidden: Tensor, frame_mask: Tensor | None) -> Any:
        """Return what the encoder would return, given the state after its last layer.

        The model's head reads it.
        """
        answer = BaseModelOutput(last_hidden_state=self.finish(base, hidden, frame_mask))
        answer.attention_mask = None if frame_mask is None else frame_mask.int()
        return answer

    def window(self, base: nn.Module) -> int | None:
        """Return the fixed window of a model that takes no padding mask (Whisper), if any.

        It counts positions of the model's input, such as mel frames.
        """
        return None

    def install(self, base: nn.Module) -> list[Any]:
        """Change `base` so that padding never reaches an answer; return handles with `remove()`."""
        return []

    def example(self, base: Any, batch: int, seconds: float) -> dict[str, Tensor]:
        """Return random inputs of `seconds` of 16 kHz audio, for counting and for tests."""
        return {"input_values": torch.randn(batch, int(16000 * seconds))}


class GroupNormByLength:
    """A GroupNorm over time, by `Override`, that normalizes each length of a batch by itself.

    It stands behind the first convolution of raw audio. Its statistics run over all frames, padding
    too, so that an answer would depend on the longest neighbour in the batch.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalize each input over its valid frames. Shape: [batch, width, frames] -> the same."""
        norm: Any = super()
        call = active_call()
        if call is None or call.lengths is None or bool((call.lengths == call.lengths[0]).all()):
            whole: Tensor = norm.forward(hidden)
            return whole
        frames = call.backbone.first_lengths(call.base, call.lengths)
        output: Any = None
        for count in frames.unique().tolist():
            rows = (frames == count).nonzero().squeeze(1)
            part = norm.forward(hidden[rows, :, :count])
            if output is None:  # autocast decides the dtype
                output = part.new_zeros(hidden.shape)
            output[rows, :, :count] = part
        normalized: Tensor = output
        return normalized


class CheckpointedInCall:
    """A part of the front end, by `Override`, that runs within its call also when it runs again.

    Under gradient checkpointing a part runs again in the backward pass, after the call has ended:
    this gives it the call back.
    """

    def forward(self, *args: Any) -> Any:
        """Run the part within the call that was active when it first ran."""
        layer: Any = self
        call = active_call()
        # without the checkpointing of transformers
        bound = partial(inspect.unwrap(original_class(layer).forward), layer)
        if call is None or not (
            layer.training and layer.gradient_checkpointing and torch.is_grad_enabled()
        ):
            return bound(*args)

        def run(*inputs: Any) -> Any:
            with activate(call):
                return bound(*inputs)

        return layer._gradient_checkpointing_func(run, *args)


class MasksThatFit:
    """An encoder, by `Override`, that masks spans of its input (SpecAugment) where they fit.

    `transformers` refuses a batch that is shorter than a span, in the middle of a training: here
    nothing is masked along the axis on which a span does not fit.
    """

    def _mask_hidden_states(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        encoder: Any = self
        config = encoder.config
        _, frames, width = hidden_states.shape
        too_long = {
            "mask_time_prob": frames < config.mask_time_length,
            "mask_feature_prob": width < config.mask_feature_length,
        }
        off = {name: 0.0 for name, wrong in too_long.items() if wrong and getattr(config, name)}
        if off and encoder.training:
            encoder, config = copy.copy(encoder), copy.copy(config)
            vars(config).update(off)
            encoder.config = config
        own: Any = super(MasksThatFit, encoder)
        masked: Tensor = own._mask_hidden_states(hidden_states, *args, **kwargs)
        return masked


def zero_padding_hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor | None:
    """Set padding back to zero; a hook for a convolution over [batch, frames, width]."""
    call = active_call()
    mask = None if call is None else call.frame_mask(output.shape[1])
    return None if mask is None else output * mask.unsqueeze(-1).to(output.dtype)
