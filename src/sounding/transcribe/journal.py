"""What is known of one file so far, on disk after every piece, so that a kill loses nothing more.

One JSON object a line: first the settings and where the audio is cut, then each piece. A file is
finished when every piece has its line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..data.audio import Seconds
from ..files import write_text
from .formats import Piece, Transcript

FORMAT = 1


class OutputError(ValueError):
    """A text or a journal that must not be replaced unasked; the text says what to do."""


class Journal:
    """The journal of a file at `path`; use `begin` or `read`.

    Attributes:
        audio: sha256 of the file's content.
        settings: what the pieces depend on besides the audio.
        cuts: start and end of each piece, in seconds.
        duration, seconds: as `Transcript`.
        pieces: those that are done.
    """

    def __init__(self, path: Path, head: dict[str, Any], pieces: Sequence[Piece], size: int):
        self.path, self._size = path, size
        self.audio: str = head["audio"]
        self.settings: dict[str, Any] = head["settings"]
        self.cuts: list[tuple[Seconds, Seconds]] = [(start, end) for start, end in head["cuts"]]
        self.duration: Seconds = head["duration"]
        self.seconds: Seconds = head["seconds"]
        self.pieces = list(pieces)

    @classmethod
    def begin(
        cls,
        path: Path,
        *,
        audio: str,
        settings: dict[str, Any],
        cuts: Sequence[tuple[Seconds, Seconds]],
        duration: Seconds,
        seconds: Seconds,
    ) -> Journal:
        """A new journal in the place of an old one."""
        head = {
            "format": FORMAT, "audio": audio, "settings": settings, "duration": duration,
            "seconds": seconds, "cuts": [list(cut) for cut in cuts],
        }  # fmt: skip
        line = _line(head)
        write_text(path, line.decode())
        return cls(path, head, [], len(line))

    @classmethod
    def read(cls, path: Path) -> Journal | None:
        """What is there; a last line that a kill broke off is left out. None without a journal.

        Raises:
            OutputError: it is damaged.
        """
        if not path.exists():
            return None
        whole, _, _ = path.read_bytes().rpartition(b"\n")
        try:
            head, *rest = (json.loads(line) for line in whole.split(b"\n"))
            if head["format"] != FORMAT:
                raise ValueError(f"its format is {head['format']}, not {FORMAT}")
            pieces = [
                Piece(**{**piece, "executed_layers": tuple(piece["executed_layers"])})
                for piece in rest
            ]
            return cls(path, head, pieces, len(whole) + 1)
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"{path} is damaged ({error}): delete it to transcribe its file anew"
            ) from None

    @property
    def finished(self) -> bool:
        """Whether every piece is done."""
        return len(self.pieces) == len(self.cuts)

    @property
    def position(self) -> Seconds:
        """Up to where the audio is done."""
        return self.pieces[-1].end if self.pieces else 0.0

    def append(self, piece: Piece) -> None:
        """Add a piece; it is on disk when this returns."""
        line = _line(asdict(piece))
        with self.path.open("rb+") as file:
            file.truncate(self._size)  # what a kill broke off
            file.seek(self._size)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(line)
        self.pieces.append(piece)

    def transcript(self, file: str) -> Transcript:
        """Of the file, under that name."""
        return Transcript(file, self.duration, self.settings, self.seconds, tuple(self.pieces))


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"
