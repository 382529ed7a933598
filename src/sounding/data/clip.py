"""One clip of a folder or a corpus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .audio import Seconds
from .paths import PathAsText
from .rows import NO_EXTRA, split_tags


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


Clip.path = PathAsText(Clip.path)  # type: ignore[misc, assignment]
