"""What is known of one file so far, on disk after every piece, so that a kill loses nothing more.

One JSON object a line: first the settings and where the audio is cut, then each piece. A file is
finished when every piece has its line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError, with_config

from ..data.audio import Seconds
from ..errors import SoundingError
from ..files import write_text
from .formats import STRICT, Piece, Transcript


class OutputError(SoundingError, ValueError):
    """A text or a journal that must not be replaced unasked; the text says what to do."""


@with_config(STRICT)
@dataclass(frozen=True)
class Head:
    """The first line of a journal.

    Attributes:
        audio: sha256 of the file's content.
        settings: what the pieces depend on besides the audio.
        duration, seconds: as those of `Transcript`.
        cuts: start and end of each piece, in seconds.

    Raises:
        ValueError: cuts that are not in order and within the audio, or no audio.
    """

    audio: str
    settings: dict[str, Any]
    duration: Seconds
    seconds: Seconds
    cuts: tuple[tuple[Seconds, Seconds], ...]
    format: Literal[1] = 1

    def __post_init__(self) -> None:
        times = [0.0, *chain.from_iterable(self.cuts), self.duration]
        if not self.duration > 0 or any(later < before for before, later in pairwise(times)):
            raise ValueError("its times are not in order")
        json.dumps(self.settings, allow_nan=False)


HEAD, PIECE = TypeAdapter(Head), TypeAdapter(Piece)


class Journal:
    """The journal of a file at `path`; use `begin` or `read`.

    Attributes:
        head: what it begins with.
        pieces: those that are done.
    """

    def __init__(self, path: Path, head: Head, pieces: Sequence[Piece], size: int) -> None:
        self.path, self.head, self._size = path, head, size
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
        """Write a new journal in the place of an old one; arguments are those of `Head`."""
        head = Head(audio, settings, duration, seconds, tuple(cuts))
        line = _line(head)
        write_text(path, line.decode())
        return cls(path, head, [], len(line))

    @classmethod
    def read(cls, path: Path) -> Journal | None:
        """Read a journal, without a last line that a kill broke off; None where there is none.

        Raises:
            OutputError: it is damaged.
        """
        if not path.exists():
            return None
        try:
            if not path.is_file():  # a pipe would never end
                raise ValueError("it is no file")
            whole, _, _ = path.read_bytes().rpartition(b"\n")
            head, *rest = whole.split(b"\n")
            journal = cls(path, HEAD.validate_json(head), [], len(whole) + 1)
            journal.pieces = [PIECE.validate_json(line) for line in rest]
            if [(piece.start, piece.end) for piece in journal.pieces] != [
                *journal.cuts[: len(rest)]
            ]:
                raise ValueError("its pieces are not where it cuts")
            return journal
        except (ValueError, OSError) as error:
            raise OutputError(
                f"{path} is damaged ({_reason(error)}): delete it to transcribe its file anew"
            ) from None

    @property
    def cuts(self) -> tuple[tuple[Seconds, Seconds], ...]:
        """Start and end of each piece, in seconds."""
        return self.head.cuts

    @property
    def finished(self) -> bool:
        """Whether every piece is done."""
        return len(self.pieces) == len(self.cuts)

    @property
    def position(self) -> Seconds:
        """The place up to which the audio is done."""
        if self.finished:
            return self.head.duration
        return self.pieces[-1].end if self.pieces else 0.0

    def append(self, piece: Piece) -> None:
        """Add a piece; it is on disk when this returns."""
        line = _line(piece)
        with self.path.open("rb+") as file:
            file.truncate(self._size)  # what a kill broke off
            file.seek(self._size)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(line)
        self.pieces.append(piece)

    def transcript(self, file: str) -> Transcript:
        """Return the transcript of the file, under that name."""
        head = self.head
        return Transcript(file, head.duration, head.settings, head.seconds, tuple(self.pieces))


def _line(value: Head | Piece) -> bytes:
    return json.dumps(asdict(value), ensure_ascii=False).encode() + b"\n"


def _reason(error: ValueError | OSError) -> str:
    """Say in one line where an error is, and what it is."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    return ": ".join([*(str(part) for part in first["loc"]), first["msg"]])
