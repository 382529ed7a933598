"""The audio files to transcribe, and where their texts go."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..data.audio import FORMATS
from ..data.unlabelled import audio_files
from ..errors import UsageError

JOURNALS = ".transcripts"  # the directory of the journals, beside the texts
LONGEST = 255  # bytes of a name, on nearly all file systems


@dataclass(frozen=True)
class Source:
    """One audio file.

    Attributes:
        name: for people: its path below the directory that was given.
        folder, stem: of its texts, which are FOLDER/STEM.FORMAT. A stem may be "." or "..", so it
            is never a path by itself.
        problem: why it cannot be transcribed, where that is known before it is opened.
    """

    path: Path
    name: str
    folder: Path
    stem: str
    problem: str = ""

    def output(self, form: str) -> Path:
        """Return where the text of that format goes."""
        return self.folder / f"{self.stem}.{form}"

    @property
    def journal(self) -> Path:
        """The path of its journal; a name that would be too long ends in a digest of it."""
        name, suffix = self.path.name, ".jsonl"
        if len(os.fsencode(name + suffix)) > LONGEST:
            suffix = f"-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}{suffix}"
            while len(os.fsencode(name + suffix)) > LONGEST:
                name = name[:-1]
        return self.folder / JOURNALS / f"{name}{suffix}"


def find_sources(inputs: Sequence[Path | str], out: Path | str | None = None) -> list[Source]:
    """Find the files, and the audio files of the directories, in order; each once.

    An input that is not there, or has no audio, is a source with a problem, unless nothing else
    was given. So is one of two files whose texts would have the same name.

    Args:
        out: directory of the texts, which mirrors a directory that is given; by default each text
            is beside its audio.

    Raises:
        UsageError: nothing to transcribe.
    """
    if out == "" or "" in inputs:  # as of a variable that is not set; it is no name of "."
        raise UsageError("the name of an input or of --out is empty: give one")
    found: dict[tuple[Path, Path], Source] = {}
    for given in inputs:
        for source in _below(Path(given), out):
            found.setdefault((source.path.absolute(), source.folder.absolute()), source)
    sources = list(found.values())
    if sources and all(source.problem for source in sources):
        raise UsageError("; ".join(source.problem for source in sources))
    return _apart(sources)


def _apart(sources: Sequence[Source]) -> list[Source]:
    """Return the sources, those with a problem whose text would be in the place of another's.

    Among such files the one that was begun before keeps the text, or else the first.
    """
    claims: dict[tuple[Path, str], list[Source]] = defaultdict(list)
    for source in sources:
        if not source.problem:
            claims[source.folder.absolute(), source.stem].append(source)
    made = []
    for source in sources:
        same = claims[source.folder.absolute(), source.stem]
        keeps = next((one for one in same if one.journal.exists()), same[0]) if same else source
        if source not in same or source is keeps:
            made.append(source)
            continue
        text = (
            f"{source.path} and {keeps.path} would both be written to {source.output('*')}: "
            "rename one of them, or give this one an --out of its own"
        )
        made.append(replace(source, problem=text))
    return made


def _below(given: Path, out: Path | str | None) -> Iterator[Source]:
    if not os.path.exists(given):  # that of Path raises where a directory cannot be read
        yield _problem(given, "no such file or directory")
    elif not given.is_dir():
        yield _source(given, Path(given.name), given.parent if out is None else Path(out))
    else:
        yield from _inside(given, given if out is None else Path(out))


def _inside(directory: Path, root: Path) -> Iterator[Source]:
    """Yield the audio files below a directory, and the directories that cannot be read."""
    closed: list[OSError] = []
    found = sorted(audio_files(directory, closed))
    for error in closed:
        yield _problem(Path(error.filename), f"cannot be read ({error.strerror}): check its rights")
    if not found and not closed:
        yield _problem(directory, f"no audio in it, expected files such as {FORMATS}")
    for path in found:
        yield _source(path, path.relative_to(directory), root)


def _source(path: Path, name: Path, root: Path) -> Source:
    return Source(path, name.as_posix(), root / name.parent, name.stem)


def _problem(path: Path, text: str) -> Source:
    return Source(path, str(path), path.parent, path.name, f"{path}: {text}")
