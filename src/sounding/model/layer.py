"""One layer of the encoder, run on a batch or on some of its inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .call import Call


def uncompiled(layer: nn.Module) -> nn.Module:
    """Return the layer itself, where `layer` is what `torch.compile(layer)` returned."""
    return getattr(layer, "_orig_mod", layer)


@cache
def argument_names(forward: Callable[..., Any]) -> list[str]:
    """Return the names of a layer's arguments that follow the hidden states.

    A layer that runs on a subset of the inputs takes its arguments by name.
    """
    return list(inspect.signature(forward).parameters)[2:]


def run_rows(
    call: Call,
    index: int,
    hidden: Tensor,
    rows: Tensor,
    weight: Tensor | None,
    kwargs: dict[str, Any],
    inputs: Tensor | None = None,
) -> tuple[Tensor, tuple[Any, ...]]:
    """Run layer `index` on some of the inputs.

    Args:
        rows: which rows of `hidden`.
        inputs: which inputs of the call the rows of `hidden` are; None for all in their order.

    Shape: -> [len(rows), frames, width].
    """
    batch = hidden.shape[0]
    kwargs = {name: call.backbone.take(name, kwargs[name], rows, batch) for name in kwargs}
    weight = None if weight is None else weight.index_select(0, rows)
    inputs = rows if inputs is None else inputs.to(rows.device).index_select(0, rows)
    return run_layer(call, index, hidden.index_select(0, rows), weight, kwargs, inputs)


def run_layer(
    call: Call,
    index: int,
    hidden: Tensor,
    weight: Tensor | None,
    kwargs: dict[str, Any],
    inputs: Tensor | None = None,
) -> tuple[Tensor, tuple[Any, ...]]:
    """Run layer `index` on all rows of `hidden`, those with updates apart from the others.

    The first entry of a tuple is the hidden states. `inputs` is as of `run_rows`.
    """
    layer = call.stack.layers[index]
    changed = call.changed
    if changed is not None and inputs is not None:
        changed = changed[inputs.to(changed.device)]
    if changed is not None and bool(changed.any()):
        if not bool(changed.all()):
            return _run_apart(call, index, hidden, weight, kwargs, inputs, changed)
        layer = call.updates.layer("encoder", index, layer)
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


def _run_apart(
    call: Call,
    index: int,
    hidden: Tensor,
    weight: Tensor | None,
    kwargs: dict[str, Any],
    inputs: Tensor | None,
    changed: Tensor,
) -> tuple[Tensor, tuple[Any, ...]]:
    """Run a layer twice, on the inputs with updates and on those without."""
    made: Tensor | None = None
    extra: tuple[Any, ...] = ()
    for chosen in (changed, ~changed):
        rows = chosen.nonzero().squeeze(1).to(hidden.device)
        part, extra = run_rows(call, index, hidden, rows, weight, kwargs, inputs)
        if made is None:
            made = part.new_empty(len(hidden), *part.shape[1:])
        made = made.index_copy(0, rows, part)
    assert made is not None
    return made, extra
