"""Plans: before each layer, which inputs run it.

A plan is called with the index of a layer, the state that would enter it and the frame mask, once
for each layer in order, and returns which inputs run the layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..errors import UsageError

# (index, state [batch, frames, width], frame mask) -> bool [batch] on the CPU, gate weight [batch]
Plan: TypeAlias = Callable[[int, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
# (layers that ran, rows [n], state of these rows [n, frames, width]) -> logits
Readout: TypeAlias = Callable[[int, Tensor, Tensor], Tensor]
# (logits, frame mask) -> how sure each answer is, [batch]
Sure: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Gates:
    """The chosen layers.

    Shape:
        mask: [batch, layers], bool: True where a layer runs.
        weight: [batch, layers], float: 1 on chosen layers in value, with the gradient of the
            relaxed gate; None where no gradient is wanted.
    """

    mask: Tensor
    weight: Tensor | None = None


def check_mask(mask: Any, *, layers: int, batch: int) -> Tensor:
    """Check a mask that a caller gives, and spread it over the `batch` inputs.

    Shape: mask [layers] or [batch, layers], bool -> [batch, layers], on the CPU.

    Raises:
        ValueError: no such tensor, or one that keeps no layer of an input.
    """
    try:
        mask = torch.as_tensor(mask, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(f"a mask is a bool tensor, not {mask!r}") from None
    shapes = [[layers], [batch, layers]]
    if mask.dtype != torch.bool or list(mask.shape) not in shapes:
        raise UsageError(
            f"a mask is bool, {shapes[0]} or {shapes[1]}; got {mask.dtype} {list(mask.shape)}"
        )
    mask = mask.expand(batch, -1)
    if not bool(mask.any(-1).all()):
        raise UsageError("a mask must keep at least one layer of every input")
    checked: Tensor = mask
    return checked


def for_rows(asked: Tensor, rows: int) -> Tensor:
    """Return what was asked for, for the inputs of one pass through the encoder.

    Whisper runs its encoder again on a part of a batch: then all inputs must ask for the same.

    Shape: asked [batch, ...] -> [rows, ...].
    """
    if len(asked) == rows:
        return asked
    if not bool((asked == asked[0]).all()):
        raise UsageError(
            "budgets and masks per input need an encoder that runs once per input: give one for all"
        )
    return asked[:1].expand(rows, *asked.shape[1:])


class Fixed:
    """Runs the layers of a mask. Shape: mask [batch, layers] bool, on the CPU."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(
        self, index: int, state: Tensor, frame_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return which inputs run layer `index`. Shape: -> [batch] bool."""
        return for_rows(self.mask, state.shape[0])[:, index], None


class UpFront:
    """Asks a policy once, for all layers, after the first `after` layers, which all run.

    Args:
        choose: called with (state, frame mask, k), returns `Gates`.
        k: kept layers of each input; where these are fewer than `after`, its first k run. None
            for a choice that needs no k. Shape: [batch] int.
    """

    def __init__(self, choose: nn.Module, k: Tensor | None, after: int = 0) -> None:
        self.choose, self.k, self.after = choose, k, after
        self.gates = Gates(torch.empty(0))

    def __call__(
        self, index: int, state: Tensor, frame_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return which inputs run layer `index`. Shape: -> [batch] bool."""
        if index <= self.after:
            size = state.shape[0]
            k = torch.zeros(size) if self.k is None else for_rows(self.k, size)
            if index < self.after:
                return k > index, None
            gates = self.choose(state, frame_mask, k.to(state.device))
            self.gates = Gates(gates.mask.to("cpu"), gates.weight)
        weight = self.gates.weight
        return self.gates.mask[:, index], None if weight is None else weight[:, index]


class EveryLayer:
    """Runs every layer, which counts as much as its gate is open; for training.

    Args:
        gates: called before each layer with (index, state, frame mask), returns the weight of its
            gate for each input: 0 or 1 in value, with the gradient of the relaxed gate. [batch]
    """

    def __init__(self, gates: Any) -> None:
        self.gates = gates

    def __call__(
        self, index: int, state: Tensor, frame_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return that all inputs run layer `index`, with the weight of its gate."""
        runs = torch.ones(state.shape[0], dtype=torch.bool)
        return runs, self.gates(index, state, frame_mask)
