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
) -> tuple[Tensor, tuple[Any, ...]]:
    """Run layer `index` on the inputs `rows`. Shape: -> [len(rows), frames, width]."""
    batch = hidden.shape[0]
    kwargs = {name: call.backbone.take(name, kwargs[name], rows, batch) for name in kwargs}
    weight = None if weight is None else weight.index_select(0, rows)
    return run_layer(call, index, hidden.index_select(0, rows), weight, kwargs)


def run_layer(
    call: Call, index: int, hidden: Tensor, weight: Tensor | None, kwargs: dict[str, Any]
) -> tuple[Tensor, tuple[Any, ...]]:
    """Run layer `index` on all inputs; the first entry of a tuple is the hidden states."""
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
