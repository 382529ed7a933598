"""The call in progress: what was asked of one forward pass, and what has run so far.

A ContextVar holds it, so that it is that of this thread or task, whatever else runs meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..policies.plans import Plan


@dataclass
class Tree:
    """Several masks for all inputs of a batch at once.

    Attributes:
        masks: [masks, layers] bool, no two alike.
        leaf: called with the index of a mask and what its layers make, [batch, frames, width].
        members: the indexes of the masks to run.
        after, features: the state after that many layers, all run, for a selector that reads it.
    """

    masks: Tensor
    leaf: Callable[[int, Tensor], None]
    after: int = 0
    members: Sequence[int] = ()
    features: Tensor | None = None


@dataclass
class Call:
    """One forward pass: what was asked for, and what has run so far.

    Attributes:
        stack: the encoder's layers, a `LayerStack`.
        base: the module that holds the encoder, of the family `backbone`.
        skip: what passes a layer that does not run.
        plan: says before each layer which inputs run it; made anew for each pass.
        tree: the masks to run in place of a plan.
        entered: takes what enters layer 0 and the arguments of the layers, and none runs (export).
        updates: the `Updates` of the model, or None.
        answer: what the encoder returns at once, while what follows it runs again.

    Shape:
        lengths: [batch] int: valid samples or feature frames of each input; None without padding.
        changed: [batch] bool: the inputs whose layers run with `updates`; None for none.
        executed: one bool [batch, layers] for each pass through the encoder.
        hidden_states: per layer [batch, frames, width], the input of layer 0 first.
        state: [batch, frames, width] behind the last layer, before a final norm.
    """

    stack: Any
    base: nn.Module
    backbone: Any
    plan: Callable[[], Plan]
    skip: Callable[[int, nn.Module, Tensor], Tensor]
    tree: Tree | None = None
    entered: Callable[[Tensor, dict[str, Any]], None] | None = None
    updates: Any = None
    changed: Tensor | None = None
    answer: Any = None
    lengths: Tensor | None = None
    keep_hidden_states: bool = False
    hidden_states: list[Tensor] = field(default_factory=list)
    executed: list[Tensor] = field(default_factory=list)
    state: Tensor | None = None

    @property
    def norm(self) -> nn.Module | None:
        """What stands behind the last layer."""
        norm: nn.Module | None = self.backbone.output_norm(self.backbone.owner(self.base))
        return norm

    def frame_mask(self, frames: int) -> Tensor | None:
        """Return which of the `frames` that enter layer 0 are real. Shape: [batch, frames] bool."""
        if self.lengths is None:
            return None
        valid = self.backbone.frame_lengths(self.base, self.lengths)
        if valid is None or bool((valid >= frames).all()):
            return None
        real: Tensor = torch.arange(frames, device=valid.device) < valid[:, None]
        return real


_active: ContextVar[Call | None] = ContextVar("sounding_call", default=None)


def active_call() -> Call | None:
    """Return the call in progress in this thread or task, if any."""
    return _active.get()


@contextmanager
def activate(call: Call) -> Iterator[Call]:
    """Make `call` the active one for the duration of a `with` block."""
    token = _active.set(call)
    try:
        yield call
    finally:
        _active.reset(token)
