"""A comparison of converted weights with the model that is to load them, and with a digest."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import nn


def state_problem(
    state: Mapping[str, np.ndarray], model: nn.Module, *, tied: Collection[str]
) -> str:
    """Say why `state` is not all tensors of `model`, no other, in their shapes; "" if it is.

    Args:
        tied: tensors of the model that are others of it too, and not in `state`.
    """
    wanted = {n: tuple(v.shape) for n, v in model.state_dict().items() if n not in tied}
    found = {name: value.shape for name, value in state.items()}
    wrong = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
    if not wrong:
        return ""
    first = wrong[0]
    return (
        f"{len(wrong)} of its tensors are missing, left over or of another shape (the first: "
        f"{first}, {found.get(first, 'missing')} for {wanted.get(first, 'none')})"
    )


def tensors_digest(path: Path) -> str:
    """Return the sha256 of the tensors of a safetensors file: names, types, shapes and bytes.

    It does not depend on how the file is laid out, nor on its metadata.
    """
    from safetensors import safe_open

    made = hashlib.sha256()
    with safe_open(path, "numpy") as file:
        for name in sorted(file.keys()):
            value = np.ascontiguousarray(file.get_tensor(name))
            made.update(f"{name} {value.dtype.str} {list(value.shape)}\n".encode())
            made.update(value.data)
    return made.hexdigest()
