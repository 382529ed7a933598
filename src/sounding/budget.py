"""Budgets: what a caller may ask for, turned into kept layers (k) per input."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

Budget: TypeAlias = int | float | str | Sequence[int | float | str] | None

ALLOWED = (
    "an int of kept layers (1 to {layers}), a fraction in (0, 1] such as 0.5, a percentage such as "
    '"50%", a list of these with one entry per input, or None for full depth'
)


def kept_layers(budget: Any, *, layers: int, batch: int) -> list[int]:
    """Turn `budget` into the number of kept layers of each of the `batch` inputs.

    A fraction keeps the largest k with `k / layers <= fraction`, and at least one layer.

    Raises:
        ValueError: a budget of the wrong kind or out of range; the text says what is allowed.

    >>> kept_layers("50%", layers=6, batch=2)
    [3, 3]
    >>> kept_layers([1, 0.5, None], layers=6, batch=3)
    [1, 3, 6]
    """
    budget = _plain(budget)
    if isinstance(budget, (list, tuple)):
        if len(budget) != batch:
            raise ValueError(
                f"the budget has {len(budget)} entries for a batch of {batch} inputs: "
                "give one entry per input, or a single budget for all"
            )
        return [_one(entry, layers) for entry in budget]
    return [_one(budget, layers)] * batch


def mean_layers(budget: Any, *, layers: int) -> float | None:
    """The mean number of kept layers that "mean:3" (or "mean:50%") asks for; None if none is.

    Raises:
        ValueError: a mean out of range.

    >>> mean_layers("mean:2.5", layers=6), mean_layers("mean:50%", layers=6)
    (2.5, 3.0)
    >>> mean_layers(3, layers=6) is None
    True
    """
    if not isinstance(budget, str) or not budget.strip().startswith("mean:"):
        return None
    text = budget.strip().removeprefix("mean:").strip()
    try:
        mean = float(text[:-1]) / 100 * layers if text.endswith("%") else float(text)
    except ValueError:
        mean = math.nan
    if not 1 <= mean <= layers:  # false for NaN too
        raise ValueError(
            f'budget {budget!r} is not allowed: a mean budget is "mean:M" with M from 1 to '
            f"{layers} kept layers, or a percentage of {layers}"
        )
    return mean


def threshold_for(mean: float, table: Sequence[tuple[float, float]]) -> float:
    """The threshold of a mean budget, between the calibrated ones.

    Args:
        table: [mean, threshold] by rising mean.

    >>> threshold_for(2.5, [(1.0, 0.0), (2.0, 0.5), (3.0, 0.7)])
    0.6
    """
    means, thresholds = np.array(table, dtype=float).T
    return float(np.interp(mean, means, thresholds))


def _plain(budget: Any) -> Any:
    """Python values in place of a tensor or an array."""
    return budget.tolist() if hasattr(budget, "tolist") else budget


def _one(budget: Any, layers: int) -> int:
    budget = _plain(budget)
    if budget is None:
        return layers
    if isinstance(budget, str):
        return _from_fraction(_percentage(budget, layers), budget, layers)
    if isinstance(budget, float):
        return _from_fraction(budget, budget, layers)
    if not isinstance(budget, bool):
        try:
            k = operator.index(budget)
        except TypeError:
            raise _error(budget, layers) from None
        if 1 <= k <= layers:
            return k
    raise _error(budget, layers)


def _percentage(text: str, layers: int) -> float:
    try:
        if not text.strip().endswith("%"):
            raise ValueError
        return float(text.strip()[:-1]) / 100
    except ValueError:
        raise _error(text, layers) from None


def _from_fraction(fraction: float, given: Any, layers: int) -> int:
    if not 0 < fraction <= 1:  # false for NaN too
        raise _error(given, layers)
    # 0.1 * 3 / 3 style rounding must not lose a layer: 0.3 of 10 layers is 3.
    return max(1, math.floor(fraction * layers + 1e-9))


def _error(given: Any, layers: int) -> ValueError:
    return ValueError(f"budget {given!r} is not allowed: give {ALLOWED.format(layers=layers)}")
