"""One clip of a folder or a corpus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .audio import Seconds
from .rows import split_tags

NO_EXTRA: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Clip:
    """One audio file, or a segment of one.

    Attributes:
        path: of the audio.
        target: its label, its text, or its labels with ";" between them.
        split: "train", "validation" or "test".
        speaker: "" where metadata.csv does not say.
        extra: the other columns.
        start, end: of the segment in the file; None: those of the file.
    """

    path: Path
    target: str
    split: str
    speaker: str = ""
    extra: Mapping[str, str] = field(default_factory=lambda: NO_EXTRA, hash=False)
    start: Seconds | None = None
    end: Seconds | None = None

    @property
    def tags(self) -> tuple[str, ...]:
        """The single labels of a target that joins several."""
        return split_tags(self.target)


class _PathAsText:
    """Keeps a path as text, which takes a fifth of its memory: corpora have many clips.

    Args:
        slot: of the clip, that it is kept in.
    """

    def __init__(self, slot: Any) -> None:
        self.slot = slot

    def __get__(self, clip: Clip | None, owner: type) -> Any:
        return self if clip is None else Path(self.slot.__get__(clip, owner))

    def __set__(self, clip: Clip, path: Path) -> None:
        self.slot.__set__(clip, str(path))


Clip.path = _PathAsText(Clip.path)  # type: ignore[misc, assignment]
