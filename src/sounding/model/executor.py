"""The executor: runs the chosen layers of each input and no others.

An encoder of `transformers` loops over its `layers`. While a call is active, that loop sees one
callable instead, `run_layers`, which asks the call's plan before each layer and runs the layer on
just the inputs that keep it (gather, run, scatter), or walks a tree of masks whose shared prefixes
run once. Outside a call the loop sees the plain layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .call import Call, active_call
from .layer import argument_names, run_layer, run_rows, uncompiled
from .tree import run_tree


class LayerStack(nn.ModuleList):
    """The encoder's own layers under their own names; a call in progress runs them dynamically."""

    def __iter__(self) -> Iterator[Any]:
        call = active_call()
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
    """An encoder, by `Override`, that returns what its call in progress asks for."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the answer of the call, or else that of the encoder with all states in it."""
        encoder: Any = super()
        itself: Any = self
        call = active_call()
        if call is None or call.base is not itself:
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
@torch._dynamo.disable  # type: ignore[untyped-decorator]
def run_layers(call: Call, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Run the chosen layers on `hidden` and return what the last layer would have returned.

    Shape: hidden [batch, frames, width] -> the same.
    """
    layers = call.stack.layers
    names = argument_names(type(uncompiled(layers[0])).forward)
    kwargs = dict(zip(names, args, strict=False)) | kwargs
    if call.lengths is not None and len(call.lengths) != hidden.shape[0]:
        raise UsageError(
            "a batch with padding needs an encoder that runs once per input (Whisper's fallback "
            "of temperatures runs it again on a part): give one input at a time"
        )
    kwargs = call.backbone.prepare(layers, hidden, kwargs)
    extra: tuple[Any, ...] = ()
    if call.entered is not None:
        call.entered(hidden, kwargs)
        return (hidden, None) if call.backbone.tuple_output else hidden
    if call.tree is not None:
        hidden, extra = run_tree(call, call.tree, hidden, kwargs)
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
            hidden, extra = run_layer(call, index, hidden, weight, kwargs)
            ours = False
        elif count == 0:
            hidden = call.skip(index, layer, hidden)
        else:
            rows = keep.nonzero().squeeze(1).to(hidden.device)
            ran, extra = run_rows(call, index, hidden, rows, weight, kwargs)
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
