"""The parameters that weight decay is for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


def matrices(modules: nn.Module) -> set[int]:
    """Return the ids of the parameters that are matrices, of linear maps and convolutions.

    Decay pulls to zero, which is no neutral value for the others: norms, biases, scales and shifts,
    magnitudes of a weight norm, constants, tables of positions and other vectors. A module with
    matrices of its own names them in an attribute `matrices`.
    """
    return {id(matrix) for module in modules.modules() for matrix in _own(module)}


def _own(module: nn.Module) -> Iterable[Tensor]:
    if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        return [getattr(module, name) for name in getattr(module, "matrices", ())]
    if nn.utils.parametrize.is_parametrized(module, "weight"):  # by a weight norm: the directions
        parametrized: Any = module.parametrizations
        return [parametrized["weight"].original1]
    return [module.weight]


def split_by_decay(modules: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups of parameters for an optimizer, with weight decay and without."""
    decayed = matrices(modules)
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for parameter in modules.parameters():
        groups[id(parameter) in decayed].append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0}
        for decays, parameters in groups.items()
    ]
