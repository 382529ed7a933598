"""Parts that come with the package, by which a pretrained model can be used below full depth.

parts/NAME/  what `save_parts` wrote: small changes of the weights of the model NAME, and which
             layers to keep. How they were made: docs/distill.md
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files import sha256
from ..model.dynamic import DynamicModel
from ..model.io import CONFIG
from ..model.loading import load_parts
from ..model.wrapping import wrap

READY = Path(__file__).parent / "parts"


def names() -> list[str]:
    """Return the names of the models that have some."""
    return sorted(path.parent.name for path in READY.glob(f"*/{CONFIG}"))


def parts_digest(name: str) -> str:
    """Return the sha256 of what the parts of a model are said to be, their files included."""
    return sha256(READY / name / CONFIG)


def wrap_ready(model: Any, name: str) -> DynamicModel:
    """Wrap a pretrained model with the parts that come for it; without, where there are none.

    Args:
        name: of `sounding.weights`.

    Raises:
        UsageError: it has other weights than the model of that name.
    """
    return load_parts(model, READY / name) if name in names() else wrap(model, "first")
