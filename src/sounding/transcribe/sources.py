"""The audio files to transcribe, and where their texts go."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.audio import SUFFIXES

JOURNALS = ".transcripts"  # the directory of the journals, beside the texts


@dataclass(frozen=True)
class Source:
    """One audio file.

    Attributes:
        name: for people: its path below the directory that was given.
        target: path of its texts, without suffix.
    """

    path: Path
    name: str
    target: Path

    def output(self, form: str) -> Path:
        """Where the text of that format goes."""
        return self.target.with_name(f"{self.target.name}.{form}")

    @property
    def journal(self) -> Path:
        """Where its journal is."""
        return self.target.parent / JOURNALS / f"{self.path.name}.jsonl"


def find_sources(inputs: Sequence[Path | str], out: Path | str | None = None) -> list[Source]:
    """The files, and the audio files of the directories, in order.

    Args:
        out: directory of the texts, which mirrors a directory that is given; by default each text
            is beside its audio.

    Raises:
        ValueError: an input that is not there, a directory without audio, or two files whose
            texts would have the same name.
    """
    sources = [source for given in inputs for source in _below(Path(given), out)]
    claimed: dict[Path, Source] = {}
    for source in sources:
        other = claimed.setdefault(source.target.absolute(), source)
        if other is not source:
            raise ValueError(
                f"{other.path} and {source.path} would both be written to {source.target}: "
                "transcribe them one after the other, each with an --out of its own"
            )
    return sources


def _below(given: Path, out: Path | str | None) -> Iterable[Source]:
    if not given.exists():
        raise ValueError(f"{given}: no such file or directory")
    if not given.is_dir():
        yield _source(given, Path(given.name), given.parent if out is None else Path(out))
        return
    root = given if out is None else Path(out)
    found = sorted(path for path in _walk(given) if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"{given}: no audio in it, expected files such as {', '.join(SUFFIXES)}")
    for path in found:
        yield _source(path, path.relative_to(given), root)


def _source(path: Path, name: Path, root: Path) -> Source:
    return Source(path, name.as_posix(), root / name.with_suffix(""))


def _walk(directory: Path) -> Iterable[Path]:
    """All files below, but hidden ones."""
    for parent, directories, files in os.walk(directory):
        directories[:] = [name for name in directories if not name.startswith(".")]
        yield from (Path(parent) / name for name in files if not name.startswith("."))
