"""How a dynamic model is trained: one file a method. To add one: docs/add-a-method.md.

Names are known without torch; a method is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..registry import METHODS

if TYPE_CHECKING:
    from .base import Method, Step

__all__ = ["FULL_DEPTH", "OURS", "Method", "Step", "register_method"]

SHIPPED = {  # in the order of tables
    "full": "full",
    "random": "random",
    "early-exit": "early_exit",
    "static": "static",
    "i3d": "i3d",
    "dld": "dld",
    "idld": "idld",
    "input": "input",
    "distill": "distill",
}
OUTPUTS = "teacher"  # the directory in a run for what its teacher makes of the clips
FULL_DEPTH = "full"  # the reference of a study
OURS = "input"  # the default, whose choice a study judges
DISTILLED = "distill"  # the method of `sounding distill`
for name, module in SHIPPED.items():
    METHODS.add_later(name, f"{__name__}.{module}:METHOD")
METHODS.default = OURS


def register_method(method: Method) -> Method:
    """Make a training method known by its name.

    Raises:
        UsageError: the name is taken.
    """
    METHODS.add(method.name, method)
    return method


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for."""
    if name not in ("Method", "Step"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import base

    return getattr(base, name)
