"""The results of `generate` for groups of inputs, put together as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def rows_of(value: Any, rows: Tensor) -> Any:
    """Return the part of an argument or output that belongs to the inputs `rows`."""
    if isinstance(value, Tensor):
        return value.index_select(0, rows.to(value.device))
    if isinstance(value, tuple) and all(isinstance(one, Tensor) for one in value):  # by layer
        return tuple(rows_of(one, rows) for one in value)
    return [value[row] for row in rows.tolist()] if isinstance(value, (list, tuple)) else value


def merge_results(groups: Sequence[Tensor], results: Sequence[Any], pad: int, beams: int) -> Any:
    """Return one result for all inputs in their order, as `generate` returns it."""
    first = results[0]
    if isinstance(first, Tensor):
        return _in_order(groups, results, pad)
    merged: dict[str, Any] = {}
    for name in first:
        values = [result[name] for result in results]
        if name == "sequences":
            merged[name] = _in_order(groups, values, pad)
        elif name == "beam_indices":  # counted within a group
            moved = [_beams_of_all(v, rows, beams) for v, rows in zip(values, groups, strict=True)]
            merged[name] = _in_order(groups, moved, -1)
        elif name in ("scores", "logits"):
            merged[name] = _steps(groups, values, pad)
        elif name == "encoder_hidden_states":
            merged[name] = tuple(_in_order(groups, layer) for layer in zip(*values, strict=True))
        elif name == "segments":
            order = _places(groups, len(values[0]) // len(groups[0])).argsort().tolist()
            flat = [segment for value in values for segment in value]
            merged[name] = [flat[index] for index in order]
        elif isinstance(values[0], Tensor):
            merged[name] = _in_order(groups, values)
    return type(first)(**merged)


def _places(groups: Sequence[Tensor], each: int) -> Tensor:
    """Return where the results of the groups stand in the whole, with `each` results an input."""
    rows = torch.cat(list(groups))
    return (rows[:, None] * each + torch.arange(each)).flatten()


def _in_order(groups: Sequence[Tensor], values: Sequence[Tensor], pad: int = 0) -> Tensor:
    """Put values of groups in the order of the inputs, padded to the longest.

    Shape: for each group [inputs of it * n, length or more] -> [batch * n, longest, ...].
    """
    if values[0].dim() == 2:
        longest = max(value.shape[1] for value in values)
        values = [
            nn.functional.pad(value, (0, longest - value.shape[1]), value=pad) for value in values
        ]
    together = torch.cat(list(values))
    order = _places(groups, len(together) // sum(map(len, groups))).argsort()
    return together.index_select(0, order.to(together.device))


def _steps(
    groups: Sequence[Tensor], values: Sequence[tuple[Tensor, ...]], pad: int
) -> tuple[Tensor, ...]:
    """Return the scores of each step; a group that has ended is sure of `pad`.

    Shape: of each step [batch * n, vocabulary].
    """
    merged = []
    for step in range(max(map(len, values))):
        parts = []
        for value in values:
            if step < len(value):
                parts.append(value[step])
            else:
                ended = torch.full_like(value[0], -torch.inf)
                ended[:, pad] = 0
                parts.append(ended)
        merged.append(_in_order(groups, parts))
    return tuple(merged)


def _beams_of_all(indices: Tensor, rows: Tensor, beams: int) -> Tensor:
    """Turn beam indices of a group into those of the whole batch; -1, behind the end, stays."""
    rows = rows.to(indices.device)
    moved = rows[(indices // beams).clamp(min=0)] * beams + indices % beams
    return torch.where(indices < 0, indices, moved)
