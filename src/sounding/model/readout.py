"""What the heads of a dynamic model answer to a state within its encoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import UsageError
from ..policies.plans import Readout
from .call import active_call


def head_logits(
    dynamic: Any, batch: dict[str, Tensor], state: Tensor, k: int, rows: Tensor | None = None
) -> Tensor:
    """Return what a head answers to the final state of an encoder in progress.

    Args:
        batch: of the call in progress.
        state: behind the last layer, of k layers that ran and others that were skipped.
            Shape: [batch, frames, width], or [len(rows), ...] for the inputs `rows`.
    """
    call = active_call()
    assert call is not None  # only called by plans and trees
    if getattr(dynamic.model.config, "use_weighted_layer_sum", False):
        raise UsageError(
            "use_weighted_layer_sum answers from all hidden states: give a budget or a mask"
        )
    frame_mask = call.frame_mask(state.shape[1])
    if rows is not None:
        size = len(batch[dynamic.model.main_input_name])
        frame_mask = None if frame_mask is None else frame_mask[rows]
        batch = {n: v[rows] if len(v) == size else v for n, v in batch.items()}
    if dynamic.exits is not None and k < dynamic.num_layers:
        logits: Tensor = dynamic.exits(state, frame_mask, k)
        return logits
    call.answer = dynamic.backbone.answer(dynamic.base, state, frame_mask)
    try:
        out = dynamic.model(**batch)
    finally:
        call.answer = None
    if "logits" not in out:
        raise UsageError(f"a {type(dynamic.model).__name__} has no head that answers with logits")
    logits = out.logits
    return logits


def readout(dynamic: Any, batch: dict[str, Any]) -> Readout:
    """Return the function by which plans ask what some inputs are answered after some layers."""
    tensors = {n: v for n, v in batch.items() if isinstance(v, Tensor) and n != "labels"}

    def answer(depth: int, rows: Tensor, state: Tensor) -> Tensor:
        for index in range(depth, dynamic.num_layers):  # what stands in for the others
            state = dynamic.skip(index, dynamic.stack.layers[index], state)
        return head_logits(dynamic, tensors, state, depth, rows)

    return answer
