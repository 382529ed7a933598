"""Paths of corpora that have very many clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class PathAsText:
    """Keeps a path as text, which takes a fifth of its memory.

    Args:
        slot: of a class, that it is kept in.
    """

    def __init__(self, slot: Any) -> None:
        self.slot = slot

    def __get__(self, owner: object, kind: type) -> Any:
        return self if owner is None else Path(self.slot.__get__(owner, kind))

    def __set__(self, owner: object, path: Path) -> None:
        self.slot.__set__(owner, str(path))
