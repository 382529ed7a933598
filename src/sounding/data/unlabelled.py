"""Clips without targets, of one or more directories: what a teacher is enough for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

from ..errors import UsageError
from .audio import FORMATS, SUFFIXES
from .corpora import is_corpus, open_corpus
from .folder import AudioFolder, Clip, DataError

HELD_OUT = 20  # one in so many files is for validation


def unlabelled(
    roots: Sequence[Path | str], replay: Mapping[str, float] | None = None
) -> AudioFolder:
    """Return the clips of directories and corpora together, whatever their targets are.

    A corpus in a layout of `MARKS` keeps its splits, and its test clips stay out. Of a directory
    that has none, each audio file below it is a clip, and one in 20, by a hash of its name, is
    for validation.

    Args:
        replay: further ones with the share of all training clips that are to be theirs: those
            whose names have the lowest hash, and more than once where they are few.

    Raises:
        DataError: a directory without audio, or a corpus that cannot be used.
        UsageError: shares that do not leave room for the others.
    """
    replay = dict(replay or {})
    taken = sum(replay.values())
    if any(not 0 < share < 1 for share in replay.values()) or taken >= 1:
        raise UsageError(
            f"the shares of replay are between 0 and 1 and below 1 together; got {replay!r}"
        )
    parts = [_clips(root) for root in roots]
    clips = [clip for part, _ in parts for clip in part]
    count = sum(clip.split == "train" for clip in clips)
    for root, share in replay.items():
        others, digest = _clips(root)
        pool = sorted((clip for clip in others if clip.split == "train"), key=_hash)
        clips += islice(cycle(pool), round(count * share / (1 - taken)))
        parts.append(([], f"{digest} {share}"))
    digest = hashlib.sha256("\n".join(one for _, one in parts).encode()).hexdigest()
    return AudioFolder(Path(os.path.abspath(roots[0])), "text", tuple(clips), (), digest)


def audio_files(directory: Path | str, closed: list[OSError] | None = None) -> Iterator[Path]:
    """Yield the audio files below a directory, but hidden ones.

    Args:
        closed: takes the errors of directories that cannot be read; None to raise them.
    """

    def failed(error: OSError) -> None:
        if closed is None:
            raise error
        closed.append(error)

    for parent, directories, files in os.walk(directory, onerror=failed):
        directories[:] = [name for name in directories if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(parent) / name


def _hash(clip: Clip) -> str:
    """Return what orders clips: a digest of the name, and of the place in the file."""
    place = "" if clip.start is None else f" {clip.start}"
    return hashlib.sha256(f"{clip.path.name}{place}".encode()).hexdigest()


def _clips(root: Path | str) -> tuple[list[Clip], str]:
    """Return the clips that are no test clips, and a digest of all."""
    if not is_corpus(root):
        return _bare(Path(root))
    folder = open_corpus(root)
    kept = [replace(clip, target="") for clip in folder.clips if clip.split != "test"]
    if not any(clip.split == "train" for clip in kept):
        raise DataError(f"{root}: all clips are test clips, which are not trained on")
    return kept, folder.digest


def _bare(root: Path) -> tuple[list[Clip], str]:
    if not root.is_dir():
        raise DataError(f"{root}: not a directory, expected one with audio: check the path")
    paths = sorted(audio_files(root))
    if not paths:
        raise DataError(f"{root}: no audio in it, expected files such as {FORMATS}")
    made = hashlib.sha256()
    clips = []
    for path in paths:
        name = path.relative_to(root).as_posix()
        made.update(f"{name} {path.stat().st_size}\n".encode())
        held_out = int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT == 0
        split = "validation" if held_out and len(paths) > HELD_OUT else "train"
        clips.append(Clip(Path(os.path.abspath(path)), "", split))
    return clips, made.hexdigest()
