"""What a study knows of the methods that it compares, those that are not registered here too."""

from __future__ import annotations

from typing import Any

from ..methods import OURS
from ..registry import METHODS

OTHERS = ("#8c6d5a", "#5f9ea0", "#b5651d", "#6a5acd", "#556b2f")  # of methods that are not known


def place_of(method: str) -> int:
    """Return the place of a method among all."""
    return list(METHODS).index(method) if method in METHODS else len(METHODS)


def label_of(method: str) -> str:
    """Return what people call a method; of a method that is not known, its name."""
    return str(_known(method, "label", method))


def color_of(method: str) -> str:
    """Return the colour of a method in every figure, the same each time."""
    return str(_known(method, "color", OTHERS[sum(method.encode()) % len(OTHERS)]))


def draws_masks(method: str) -> bool:
    """Return whether the masks of a method differ by chance, not by clip."""
    return bool(_known(method, "draws_masks", False))


def chooses(method: str) -> bool:
    """Return whether the input chooses the layers, with controls measured beside it."""
    return _known(method, "arms", "") == "choices"


def stops_early(method: str) -> bool:
    """Return whether an input of a method stops once its answer is sure, head by head."""
    return _known(method, "arms", "") == "depths"


def blind_arms() -> list[tuple[str, str]]:
    """Return the arms that run the same layers for every clip: variant and rule.

    The best static mask of ours first, then methods that learn one, then those that draw masks.
    """
    blind = [m for m in METHODS.values() if m.arms == "blind" and m.best_static]
    arms = [(OURS, "static")]
    for method in sorted(blind, key=lambda method: method.draws_masks):
        arms += [] if method.draws_masks else [(method.name, "exact")]
        arms.append((method.name, "static"))
    return arms


def _known(method: str, attribute: str, otherwise: Any) -> Any:
    return getattr(METHODS[method], attribute) if method in METHODS else otherwise
