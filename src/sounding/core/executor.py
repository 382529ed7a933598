"""The executor: runs the chosen layers of each input and no others.

An encoder of `transformers` loops over its `layers`. While a call is active, that loop sees one
callable instead, `run_layers`, which asks the selector once and then runs each layer on just the
inputs that chose it (gather, run, scatter). Outside a call the loop sees the plain layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .selector import Gates

if TYPE_CHECKING:
    from .backbones import Backbone

Choose = Callable[[Tensor, Tensor | None], Gates]


@dataclass
class Call:
    """One forward pass: what was asked for, and what has run so far.

    Shape:
        lengths: [batch] int: valid samples or feature frames of each input; None without padding.
        executed: one bool [batch, layers] for each pass through the encoder.
        hidden_states: per layer [batch, frames, width], the input of layer 0 first.
    """

    stack: LayerStack
    base: nn.Module
    backbone: Backbone
    choose: Choose
    skip: str = "identity"
    lengths: Tensor | None = None
    keep_hidden_states: bool = False
    hidden_states: list[Tensor] = field(default_factory=list)
    executed: list[Tensor] = field(default_factory=list)

    def frame_mask(self, frames: int) -> Tensor | None:
        """Which of the `frames` that enter layer 0 are real. Shape: [batch, frames] bool."""
        if self.lengths is None:
            return None
        valid = self.backbone.frame_lengths(self.base, self.lengths)
        if valid is None or bool((valid >= frames).all()):
            return None
        return torch.arange(frames, device=valid.device) < valid[:, None]


_active: ContextVar[Call | None] = ContextVar("sounding_call", default=None)


def active_call() -> Call | None:
    """The call in progress in this thread or task, if any."""
    return _active.get()


@contextmanager
def activate(call: Call) -> Iterator[Call]:
    """Make `call` the active one for the duration of a `with` block."""
    token = _active.set(call)
    try:
        yield call
    finally:
        _active.reset(token)


class LayerStack(nn.ModuleList):
    """The encoder's own layers under their own names; a call in progress runs them dynamically."""

    def __iter__(self) -> Iterator[Any]:
        call = _active.get()
        if call is not None and call.stack is self:
            return iter([partial(run_layers, call)])
        return super().__iter__()

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) and range(len(self))[index] == range(len(self)):
            return self  # "for layer in self.layers[: config.num_hidden_layers]"
        return super().__getitem__(index)

    @property
    def layers(self) -> list[nn.Module]:
        """The layers, also while a call is active."""
        return list(self._modules.values())


# Per-input choices depend on data and cannot be traced; the layers themselves may be compiled.
@torch._dynamo.disable
def run_layers(call: Call, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Run the chosen layers on `hidden` and return what the last layer would have returned.

    Shape: hidden [batch, frames, width] -> the same.
    """
    layers = call.stack.layers
    names = _argument_names(type(plain(layers[0])).forward)
    kwargs = dict(zip(names, args, strict=False)) | kwargs
    if call.lengths is not None and len(call.lengths) != hidden.shape[0]:
        raise ValueError(
            "a batch with padding needs an encoder that runs once per input (Whisper's fallback "
            "of temperatures runs it again on a part): give one input at a time"
        )
    gates = call.choose(hidden, call.frame_mask(hidden.shape[1]))
    mask = gates.mask.to("cpu")
    kwargs = call.backbone.prepare(layers, hidden, kwargs)
    if call.keep_hidden_states:
        call.hidden_states = [hidden]
    ours = False  # whether `hidden` is a copy of our own that nobody else holds
    extra: tuple[Any, ...] = ()
    for index, (layer, count) in enumerate(zip(layers, mask.sum(0).tolist(), strict=True)):
        weight = None if gates.weight is None else gates.weight[:, index]
        if count == len(mask):
            hidden, extra = _run(layer, hidden, weight, kwargs)
            ours = False
        elif count == 0:
            hidden = _skipped(call, layer, hidden)
        else:
            rows = mask[:, index].nonzero().squeeze(1).to(hidden.device)
            ran, extra = _run_rows(call, layer, hidden, rows, weight, kwargs)
            rest = _skipped(call, layer, hidden)
            ran = ran.to(rest.dtype)
            if ours and rest is hidden:
                hidden.index_copy_(0, rows, ran)
            else:
                hidden = rest.index_copy(0, rows, ran)
            ours = not call.keep_hidden_states
        if call.keep_hidden_states:
            call.hidden_states.append(hidden)
    call.executed.append(mask.clone())
    return (hidden, *extra) if call.backbone.tuple_output else hidden


def plain(layer: nn.Module) -> nn.Module:
    """The layer itself, where `layer` is what `torch.compile(layer)` returned."""
    return getattr(layer, "_orig_mod", layer)


@cache
def _argument_names(forward: Callable[..., Any]) -> list[str]:
    """What follows the hidden states: a subset of the inputs takes its arguments by name."""
    return list(inspect.signature(forward).parameters)[2:]


def _run_rows(
    call: Call,
    layer: nn.Module,
    hidden: Tensor,
    rows: Tensor,
    weight: Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[Tensor, tuple[Any, ...]]:
    """Run `layer` on the inputs `rows`. Shape: -> [len(rows), frames, width]."""
    batch = hidden.shape[0]
    kwargs = {name: call.backbone.take(name, kwargs[name], rows, batch) for name in kwargs}
    weight = None if weight is None else weight.index_select(0, rows)
    return _run(layer, hidden.index_select(0, rows), weight, kwargs)


def _run(
    layer: nn.Module, hidden: Tensor, weight: Tensor | None, kwargs: dict[str, Any]
) -> tuple[Tensor, tuple[Any, ...]]:
    """Run `layer`; a tuple's first entry is the hidden states."""
    out = layer(hidden, **kwargs)
    out, extra = (out[0], tuple(out[1:])) if isinstance(out, tuple) else (out, ())
    if weight is not None:
        # Adds zero in value, and the straight-through gradient of the gate: out - hidden.
        gate = (weight - weight.detach()).to(out.dtype)[:, None, None]
        out = out + gate * (out - hidden)
    return out, extra


def _skipped(call: Call, layer: nn.Module, hidden: Tensor) -> Tensor:
    """What passes a layer that is not run: the identity, or the layer's own final norm."""
    if call.skip == "identity":
        return hidden
    norm = call.backbone.final_norm(plain(layer))
    assert norm is not None  # `wrap` has refused skip="norm" otherwise
    return norm(hidden)
