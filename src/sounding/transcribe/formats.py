"""A transcript as text, subtitles or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ConfigDict, with_config

from ..data.audio import Seconds
from ..data.text import printable
from ..errors import UsageError

STRICT: ConfigDict = {"strict": True, "extra": "forbid", "allow_inf_nan": False}  # of what is read


@with_config(STRICT)
@dataclass(frozen=True)
class Piece:
    """What was said from `start` to `end`.

    Attributes:
        executed_layers: indexes of the encoder layers that really ran.
        repetitive: as `Recognition.repetitive`.
        seconds: that the recognition took.
    """

    start: Seconds
    end: Seconds
    text: str
    executed_layers: tuple[int, ...]
    repetitive: bool
    seconds: Seconds


@dataclass(frozen=True)
class Transcript:
    """All pieces of one file, in order.

    Attributes:
        file: its name.
        duration: of the audio.
        settings: what the text depends on besides the audio.
        seconds: that finding the pieces took.
    """

    file: str
    duration: Seconds
    settings: dict[str, Any]
    seconds: Seconds
    pieces: tuple[Piece, ...]

    @property
    def spoken(self) -> list[Piece]:
        """The pieces that have a text."""
        return [piece for piece in self.pieces if piece.text]

    @property
    def real_time_factor(self) -> float:
        """Seconds of work for a second of audio."""
        return (self.seconds + sum(piece.seconds for piece in self.pieces)) / self.duration


def to_txt(transcript: Transcript) -> str:
    """Return one line a piece."""
    return "".join(f"{piece.text}\n" for piece in transcript.spoken)


def to_srt(transcript: Transcript) -> str:
    """Return SubRip subtitles."""
    cues = [
        f"{number}\n{_clock(piece.start, ',')} --> {_clock(piece.end, ',')}\n{piece.text}\n"
        for number, piece in enumerate(transcript.spoken, start=1)
    ]
    return "\n".join(cues)


def to_vtt(transcript: Transcript) -> str:
    """Return WebVTT subtitles."""
    cues = [
        f"{_clock(piece.start, '.')} --> {_clock(piece.end, '.')}\n{_escaped(piece.text)}\n"
        for piece in transcript.spoken
    ]
    return "\n".join(["WEBVTT\n", *cues])


def to_json(transcript: Transcript) -> str:
    """Return everything that is known as JSON text, the seconds of work too."""
    values = {
        "file": printable(transcript.file),
        "duration": transcript.duration,
        "text": " ".join(piece.text for piece in transcript.spoken),
        **transcript.settings,
        "real_time_factor": round(transcript.real_time_factor, 4),
        "pieces": [asdict(piece) for piece in transcript.pieces],
    }
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


FORMATS: dict[str, Callable[[Transcript], str]] = {
    "txt": to_txt,
    "srt": to_srt,
    "vtt": to_vtt,
    "json": to_json,
}


def format_names(text: str) -> list[str]:
    """Return the formats that a text names: in any case, with or without a dot, each once.

    Raises:
        UsageError: an unknown format, or none.

    >>> format_names("SRT, .txt,srt")
    ['srt', 'txt']
    """
    names = [part.strip().lower().removeprefix(".") for part in text.split(",")]
    names = list(dict.fromkeys(name for name in names if name))
    if not names or set(names) - set(FORMATS):
        raise UsageError(
            f"formats {text!r}: use some of {', '.join(FORMATS)}, with commas between them"
        )
    return names


def _clock(seconds: Seconds, point: str) -> str:
    minutes, milliseconds = divmod(round(1000 * seconds), 60000)
    hours, minutes = divmod(minutes, 60)
    whole, milliseconds = divmod(milliseconds, 1000)
    return f"{hours:02}:{minutes:02}:{whole:02}{point}{milliseconds:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
