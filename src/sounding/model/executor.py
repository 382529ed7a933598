"""The executor: runs the chosen layers of each input and no others.

An encoder of `transformers` loops over its `layers`. While a call is active, that loop sees one
callable instead, `run_layers`, which asks the call's plan before each layer and runs the layer on
just the inputs that keep it (gather, run, scatter), or walks a tree of masks whose shared prefixes
run once. Outside a call the loop sees the plain layers.
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

from ..policies.plans import Plan

if TYPE_CHECKING:
    from .backbones import Backbone
    from .skip import SkipPath


@dataclass
class Tree:
    """Several masks for all inputs of a batch at once.

    Attributes:
        masks: [masks, layers] bool, no two alike.
        leaf: called with the index of a mask and what its layers make, [batch, frames, width].
        after, features: the state after that many layers, all run, for a selector that reads it.
    """

    masks: Tensor
    leaf: Callable[[int, Tensor], None]
    after: int = 0
    features: Tensor | None = None


@dataclass
class Call:
    """One forward pass: what was asked for, and what has run so far.

    Attributes:
        plan: says before each layer which inputs run it; made anew for each pass.
        tree: the masks to run in place of a plan.
        entered: takes what enters layer 0 and the arguments of the layers, and none runs (export).
        answer: what the encoder returns at once, while what follows it runs again.

    Shape:
        lengths: [batch] int: valid samples or feature frames of each input; None without padding.
        executed: one bool [batch, layers] for each pass through the encoder.
        hidden_states: per layer [batch, frames, width], the input of layer 0 first.
        state: [batch, frames, width] behind the last layer, before a final norm.
    """

    stack: LayerStack
    base: nn.Module
    backbone: Backbone
    plan: Callable[[], Plan]
    skip: SkipPath
    tree: Tree | None = None
    entered: Callable[[Tensor, dict[str, Any]], None] | None = None
    answer: Any = None
    lengths: Tensor | None = None
    keep_hidden_states: bool = False
    hidden_states: list[Tensor] = field(default_factory=list)
    executed: list[Tensor] = field(default_factory=list)
    state: Tensor | None = None

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


class EncoderInCall:
    """For `Override` of an encoder: what it returns while a call of its own is in progress."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The answer of the call, if it has one; otherwise the encoder's own, all states in it."""
        encoder: Any = super()
        call = active_call()
        if call is None or call.base is not self:
            return encoder.forward(*args, **kwargs)
        if call.answer is not None:
            return call.answer
        out = encoder.forward(*args, **kwargs)
        if call.hidden_states:  # of fixed length: a skipped layer has what passed it
            states = list(call.hidden_states)
            if call.backbone.ties_last:
                states[-1] = out.last_hidden_state
            out["hidden_states"] = tuple(states)
        return out


# Per-input choices depend on data and cannot be traced; the layers themselves may be compiled.
@torch._dynamo.disable
def run_layers(call: Call, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Run the chosen layers on `hidden` and return what the last layer would have returned.

    Shape: hidden [batch, frames, width] -> the same.
    """
    layers = call.stack.layers
    names = _argument_names(type(uncompiled(layers[0])).forward)
    kwargs = dict(zip(names, args, strict=False)) | kwargs
    if call.lengths is not None and len(call.lengths) != hidden.shape[0]:
        raise ValueError(
            "a batch with padding needs an encoder that runs once per input (Whisper's fallback "
            "of temperatures runs it again on a part): give one input at a time"
        )
    kwargs = call.backbone.prepare(layers, hidden, kwargs)
    extra: tuple[Any, ...] = ()
    if call.entered is not None:
        call.entered(hidden, kwargs)
        return (hidden, None) if call.backbone.tuple_output else hidden
    if call.tree is not None:
        hidden, extra = _run_tree(call, call.tree, hidden, kwargs)
        return (hidden, *extra) if call.backbone.tuple_output else hidden
    plan, frame_mask = call.plan(), call.frame_mask(hidden.shape[1])
    if call.keep_hidden_states:
        call.hidden_states = [hidden]
    ours = False  # whether `hidden` is a copy of our own that nobody else holds
    columns = []
    for index, layer in enumerate(layers):
        keep, weight = plan(index, hidden, frame_mask)
        columns.append(keep)
        count = int(keep.sum())
        if count == len(keep):
            hidden, extra = _run(call, index, hidden, weight, kwargs)
            ours = False
        elif count == 0:
            hidden = call.skip(index, layer, hidden)
        else:
            rows = keep.nonzero().squeeze(1).to(hidden.device)
            ran, extra = _run_rows(call, index, hidden, rows, weight, kwargs)
            rest = call.skip(index, layer, hidden)
            ran = ran.to(rest.dtype)
            if ours and rest is hidden:
                hidden.index_copy_(0, rows, ran)
            else:
                hidden = rest.index_copy(0, rows, ran)
            ours = not call.keep_hidden_states
        if call.keep_hidden_states:
            call.hidden_states.append(hidden)
    call.executed.append(torch.stack(columns, dim=1))
    call.state = hidden
    return (hidden, *extra) if call.backbone.tuple_output else hidden


def _run_tree(
    call: Call, tree: Tree, hidden: Tensor, kwargs: dict[str, Any]
) -> tuple[Tensor, tuple[Any, ...]]:
    """Run every mask of the tree, each shared prefix once, depth first; the last leaf's result."""
    layers = call.stack.layers
    extra: tuple[Any, ...] = ()
    last = hidden

    def walk(index: int, state: Tensor, members: list[int]) -> None:
        nonlocal extra, last
        if index == tree.after and bool(tree.masks[members[0], :index].all()):
            tree.features = state
        if index == len(layers):
            last = state
            tree.leaf(members[0], state)
            return
        running = [m for m in members if tree.masks[m, index]]
        skipping = [m for m in members if not tree.masks[m, index]]
        if running:
            ran, extra = _run(call, index, state, None, kwargs)
            walk(index + 1, ran, running)
        if skipping:
            walk(index + 1, call.skip(index, layers[index], state), skipping)

    walk(0, hidden, list(range(len(tree.masks))))
    return last, extra


def uncompiled(layer: nn.Module) -> nn.Module:
    """The layer itself, where `layer` is what `torch.compile(layer)` returned."""
    return getattr(layer, "_orig_mod", layer)


@cache
def _argument_names(forward: Callable[..., Any]) -> list[str]:
    """What follows the hidden states: a subset of the inputs takes its arguments by name."""
    return list(inspect.signature(forward).parameters)[2:]


def _run_rows(
    call: Call,
    index: int,
    hidden: Tensor,
    rows: Tensor,
    weight: Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[Tensor, tuple[Any, ...]]:
    """Run layer `index` on the inputs `rows`. Shape: -> [len(rows), frames, width]."""
    batch = hidden.shape[0]
    kwargs = {name: call.backbone.take(name, kwargs[name], rows, batch) for name in kwargs}
    weight = None if weight is None else weight.index_select(0, rows)
    return _run(call, index, hidden.index_select(0, rows), weight, kwargs)


def _run(
    call: Call, index: int, hidden: Tensor, weight: Tensor | None, kwargs: dict[str, Any]
) -> tuple[Tensor, tuple[Any, ...]]:
    """Run layer `index`; a tuple's first entry is the hidden states."""
    layer = call.stack.layers[index]
    out = layer(hidden, **kwargs)
    out, extra = (out[0], tuple(out[1:])) if isinstance(out, tuple) else (out, ())
    if weight is not None:
        # In value `out` where the gate is open and what passes a skipped layer where it is closed;
        # in gradient that of the relaxed gate: the difference of both.
        rest = call.skip(index, layer, hidden)
        gate = (weight - weight.detach()).to(out.dtype)[:, None, None]
        is_open = (weight.detach() > 0.5)[:, None, None]
        out = torch.where(is_open, out, rest) + gate * (out - rest)
    return out, extra
