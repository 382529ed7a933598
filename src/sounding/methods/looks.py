"""What rows of results are called, and their colours: in one order for tables and plots."""

from __future__ import annotations

from ..registry import METHODS
from .base import Look

MEAN = "-mean"  # behind the name of a method, of its rows at mean budgets


def looks() -> dict[str, Look]:
    """Return the look of each name of a row, in the order of tables."""
    made: dict[str, Look] = {}
    for name, method in METHODS.items():
        made[name] = Look(method.label, method.color)
        if method.below is not None:
            made[method.below[0]] = method.below[1]
        made[name + MEAN] = Look(f"{method.short or method.label}, mean", method.mean_color)
    return made
