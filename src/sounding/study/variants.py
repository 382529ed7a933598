"""What a study trains: every method, and its ablations, as settings by name."""

from __future__ import annotations

from typing import Any

from ..registry import METHODS

Settings = dict[str, Any]


def bases() -> dict[str, Settings]:
    """Return how each method's settings differ from those of the study; a teacher comes first."""
    teachers = [method.teacher_method for method in METHODS.values() if method.needs_teacher]
    names = dict.fromkeys([*teachers, *METHODS])
    return {name: {"method": name} for name in names}


def variants() -> dict[str, Settings]:
    """Return what `bases` does, for all methods and their ablations, called METHOD-WHAT."""
    ablations = {
        f"{name}-{what}": {"method": name, **settings}
        for name, method in METHODS.items()
        for what, settings in method.ablations.items()
    }
    return bases() | ablations


def teacher_of(variant: str) -> str:
    """Return the method whose run a variant learns from; "" for none."""
    method = METHODS[variants()[variant]["method"]]
    return str(method.teacher_method if method.needs_teacher or method.own_teacher else "")
