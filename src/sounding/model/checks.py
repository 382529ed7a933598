"""What a call of a dynamic model may ask for, checked before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from .call import Call


def by_name(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Return all arguments of a call by name.

    Raises:
        TypeError: too many arguments, or one that is given twice.
    """
    if not args:
        return kwargs
    names = list(inspect.signature(function).parameters)[1:]  # without self
    named = dict(zip(names, args, strict=False))
    if len(args) > len(names) or named.keys() & kwargs.keys():
        raise TypeError(f"too many or repeated arguments; the model takes {', '.join(names)}")
    return named | kwargs


def refuse_options(config: Any, kwargs: dict[str, Any]) -> None:
    """Refuse options that need every layer, or an output without names.

    Raises:
        UsageError: the text says what to do.
    """
    if kwargs.get("output_attentions", getattr(config, "output_attentions", False)):
        raise UsageError(
            "output_attentions needs every layer: unwrap the model, or call dynamic.model"
        )
    if kwargs.get("return_dict", getattr(config, "return_dict", True)) is False:
        raise UsageError("return_dict=False has no place for executed_layers: leave it out")
    wanted = kwargs.get("output_hidden_states")
    if wanted is not None and not isinstance(wanted, bool):
        raise UsageError(f"output_hidden_states is True or False here, not {wanted!r}")


def main_input(name: str, kwargs: dict[str, Any]) -> Tensor:
    """Find the input of a model among its arguments.

    Raises:
        UsageError: it is missing.
    """
    inputs: Tensor | None = kwargs.get(name)
    if inputs is None:
        raise UsageError(f"the model's input {name!r} is missing")
    return inputs


def valid_lengths(attention_mask: Tensor | None, batch: int, positions: int) -> Tensor | None:
    """Count the valid positions of each input; None without padding.

    Shape: [batch, positions] -> [batch].
    """
    if attention_mask is None:
        return None
    if list(attention_mask.shape) != [batch, positions]:
        raise UsageError(
            f"the attention mask is [batch, positions] of the input, {[batch, positions]}; got "
            f"{list(attention_mask.shape)}"
        )
    lengths = attention_mask.long().sum(-1)
    right = torch.arange(attention_mask.shape[-1], device=lengths.device) < lengths[:, None]
    if not torch.equal(right, attention_mask.bool()):
        raise UsageError("the attention mask must mark padding on the right, with 1 for valid")
    if bool((lengths == 0).any()):
        raise UsageError("an input of the batch has no valid position in its attention mask")
    return lengths


def refuse_padding(dynamic: Any, call: Call, inputs: Tensor) -> None:
    """Refuse padding for Whisper's decoder, whose answer would depend on its neighbours.

    Raises:
        UsageError: clips of mixed lengths below its window.
    """
    window = dynamic.backbone.window(dynamic.base)
    if window is None or call.lengths is None or inputs.shape[-1] >= window:
        return
    if dynamic.has_decoder and bool((call.lengths < inputs.shape[-1]).any()):
        raise UsageError(
            "Whisper's decoder cannot leave padding out: give it clips of one length, or all "
            "padded to the 30 s window"
        )
