"""Corpora in the layout in which they are published, read where they lie: no audio is copied."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..model.hub import is_repo_id
from . import layouts
from .folder import AudioFolder, Clip, DataError, Task, folder_of, load_folder
from .hub import HUB_MARKS, hub_folder
from .rows import has_label_dirs, has_metadata


@dataclass(frozen=True)
class Layout:
    """One way in which a corpus lies on disk.

    Attributes:
        marks: patterns below the root, of which one is there in this layout and in no other.
        task: what its targets are.
        read: the reader: the root, and its options by name -> the clips.
    """

    marks: tuple[str, ...]
    task: Task
    read: Callable[..., Sequence[Clip]]

    @property
    def options(self) -> dict[str, Any]:
        """The options of the reader, with their defaults."""
        parameters = inspect.signature(self.read).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


FOLDER, HUB = "folder", "hub"
LAYOUTS = {
    "librispeech": Layout(("*/*/*/*.trans.txt",), "text", layouts.librispeech),
    "tedlium3": Layout(("legacy/*/stm/*.stm",), "text", layouts.tedlium3),
    "speech-commands": Layout(("testing_list.txt",), "classification", layouts.speech_commands),
    "esc50": Layout(("meta/esc50.csv",), "classification", layouts.esc50),
    "audioset": Layout(("balanced_train_segments.csv",), "tags", layouts.audioset),
    "fluent": Layout(("data/train_data.csv",), "classification", layouts.fluent),
    "ravdess": Layout(("Actor_*/03-*.*",), "classification", layouts.ravdess),
    "iemocap": Layout(("Session*/dialog/EmoEvaluation",), "classification", layouts.iemocap),
}
MARKS = {name: layout.marks for name, layout in LAYOUTS.items()}
MARKS |= {
    FOLDER: ("metadata.csv", "metadata.jsonl", "train/metadata.csv", "LABEL/*.wav"),
    HUB: HUB_MARKS,
}


def open_corpus(source: Path | str, layout: str | None = None, **options: Any) -> AudioFolder:
    """Return the clips of a corpus, in whatever layout it is.

    The digest of an `AudioFolder` is of the audio itself, that of all other layouts of the sizes
    of the files: to read 60 GB for each look at a corpus would be too slow.

    Args:
        source: a folder of clips (`load_folder`), a corpus as it was unpacked, the directory above
            one of them, a local data set of `datasets`, or the id of one on the hub.
        layout: a name of `MARKS`; found out where it is None.
        options: of the reader of the layout, as `Layout.options` or `hub_folder`.

    Raises:
        DataError: no known layout, a part that is missing, or clips that cannot be used.
        UsageError: an unknown layout or option.
    """
    if layout is not None and layout not in MARKS:
        raise UsageError(f"unknown layout {layout!r}: use one of {', '.join(MARKS)}")
    path = Path(os.path.abspath(Path(source).expanduser()))
    if not path.exists() and is_repo_id(str(source)) and layout in (None, HUB):
        return load_folder(hub_folder(str(source), **options), hash_audio=False)
    root, name = _find(path, layout)
    if name == HUB:
        return load_folder(hub_folder(str(root), **options), hash_audio=False)
    known = LAYOUTS[name].options if name in LAYOUTS else {}
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UsageError(
            f"the layout {name!r} has no option {', '.join(unknown)}; it has: "
            f"{', '.join(known) or 'none'}"
        )
    if name == FOLDER:
        return load_folder(root)
    return folder_of(root, LAYOUTS[name].task, LAYOUTS[name].read(root, **options))


def is_corpus(source: Path | str) -> bool:
    """Return whether there are marks of a layout, or an id of the hub in place of a directory.

    Directories that may be named after labels, or not, are no mark.
    """
    path = Path(os.path.abspath(Path(source).expanduser()))
    if not path.exists():
        return is_repo_id(str(source))
    places = [path, *(child for child in path.iterdir() if child.is_dir())] if path.is_dir() else []
    return any(_is(place, name) for place in places for name in MARKS)


def _find(path: Path, wanted: str | None) -> tuple[Path, str]:
    """Return where the corpus lies, `path` or a directory in it, and in which layout."""
    if not path.is_dir():
        raise DataError(
            f"{path}: not a directory, expected a folder of clips, a corpus as it was unpacked, or "
            "the id of a data set on the hub (ORGANIZATION/NAME): check the path"
        )
    names = list(MARKS) if wanted is None else [wanted]
    for name in names:
        if _is(path, name):
            return path, name
    inner = sorted(child for child in path.iterdir() if child.is_dir())
    found = [(child, name) for child in inner for name in names if _is(child, name)]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(f"{child.name} ({name})" for child, name in found)
        raise DataError(f"{path}: there is more than one corpus in it: {several}: give one of them")
    for place in (path, path / "data") if FOLDER in names else ():
        if has_label_dirs(place):  # last, since any corpus may look like this
            return place, FOLDER
    looked = "; ".join(f"{name}: {' or '.join(MARKS[name])}" for name in names)
    raise DataError(
        f"{path}: no known layout. Looked there, and in the directories in it, for {looked}. "
        "Give the directory as it was unpacked, or write a metadata.csv"
    )


def _is(path: Path, name: str) -> bool:
    """Return whether a directory has the marks of a layout."""
    if name == FOLDER:
        return has_metadata(path)
    return any(next(path.glob(pattern), None) is not None for pattern in MARKS[name])
