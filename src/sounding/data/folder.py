"""Folders of clips, and the clips of any corpus: each with its target and its split.

`rows` reads what a folder says of its clips, `layouts` what a corpus says of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import UsageError
from ..files import sha256
from .audio import check_segment, segment_name
from .clip import Clip
from .errors import DataError
from .names import Places, escapes, folded, name_in, normal, some
from .rows import (
    COLUMNS,
    METADATA,
    SPLITS,
    ClipRow,
    Task,
    check_inside,
    read_rows,
    split_name,
    split_tags,
)

__all__ = [
    "COLUMNS",
    "METADATA",
    "SPLITS",
    "AudioFolder",
    "Clip",
    "DataError",
    "Task",
    "folder_of",
    "load_folder",
    "split_tags",
    "subset",
]

HELD_OUT = 0.1  # share of validation, and of test, where the folder does not say
MIN_SPEAKERS = 10  # from here on clips are held out by speaker


@dataclass(frozen=True)
class AudioFolder:
    """The clips of a folder.

    Attributes:
        root: the folder.
        task: "classification" (a label a clip), "tags" (several) or "text".
        clips: of all splits, by file name.
        labels: the classes of the training clips, sorted; empty for texts.
        digest: of names, targets, splits and audio; whatever the order of rows or the place. Of
            the sizes in place of the audio where it was found by `folder_of`.
    """

    root: Path
    task: Task
    clips: tuple[Clip, ...]
    labels: tuple[str, ...]
    digest: str

    def split(self, name: str) -> list[Clip]:
        """Return the clips of "train", "validation" (also valid, val, dev, eval) or "test".

        Raises:
            DataError: an unknown split, or one without clips; the text says which there are.
        """
        clips = [clip for clip in self.clips if clip.split == split_name(name)]
        if not clips:
            count = Counter(clip.split for clip in self.clips)
            there = ", ".join(f"{split} ({count[split]} clips)" for split in SPLITS if count[split])
            raise DataError(
                f"{self.root}: no split {name!r}, there is {there}: ask for one of these, or name "
                f"it in the 'split' column of {METADATA}"
            )
        return clips

    def name(self, clip: Clip) -> str:
        """Return what a clip is called within the folder: its file, or FILE[START-END]."""
        return _name(self.root, clip)

    def label_index(self, clip: Clip) -> int:
        """Return where the label of a clip stands in `labels`.

        Raises:
            DataError: the label is none of them, or the folder has texts.
        """
        try:
            return self.labels.index(clip.target)
        except ValueError:
            known = ", ".join(self.labels) or "none, as the folder has texts"
            raise DataError(
                f"{clip.path}: the label {clip.target!r} is not one of this folder ({known})"
            ) from None


def load_folder(root: Path | str, *, hash_audio: bool = True) -> AudioFolder:
    """Read a folder of clips, in one of the forms of Hugging Face's `AudioFolder` (`rows`).

    It is checked against the audio files, which are hashed but not decoded. Texts and names are
    taken in composed letters (NFC). Where no split is given a tenth of the clips each is held out
    as validation and test, by the hash of the speaker if there are at least 10, otherwise by that
    of the file name. A folder with training and test clips only gets its validation from the
    training clips in the same way. A folder with texts may have test clips only.

    Args:
        hash_audio: False puts the sizes of the audio files into the digest in place of their
            content, which takes a minute for each 10 GB or so.

    Raises:
        DataError: a folder that cannot be used; the text says where and why.

    Warns:
        UserWarning: audio that no row names, labels that differ in case or white space only.
    """
    if not os.path.isdir(root):
        raise DataError(
            f"{root}: not a directory, expected a folder with {METADATA} and the audio it names"
        )
    root = Path(os.path.abspath(root))
    listing = read_rows(root)
    path, rows, task = listing.source, listing.rows, listing.task
    splits = _splits(rows, listing.split_given, task)
    labels = _labels(path, rows, splits, task)
    rows.sort(key=lambda row: row.name)
    clips = tuple(
        Clip(row.path, row.target, splits[row.name], row.speaker, row.extra) for row in rows
    )
    sizes = None if hash_audio else _sizes(clips)
    digest = _digest(zip((row.name for row in rows), clips, strict=True), sizes)
    return AudioFolder(root, task, clips, labels, digest)


def folder_of(root: Path, task: Task, clips: Iterable[Clip]) -> AudioFolder:
    """Make a folder of the clips that the reader of another layout found.

    It is checked as by `load_folder`.

    Its digest takes the sizes of the audio files in place of their content.

    Args:
        root: an absolute path.
        clips: of files below it, each with the split that its corpus gives it.

    Raises:
        DataError: files that are missing or elsewhere, or clips that cannot be trained on.
        AudioError: a segment that cannot be one.

    Warns:
        UserWarning: labels that differ in case or white space only.
    """
    places = Places(root)
    found = [_normal(clip) for clip in clips]
    check_inside(root, places, (clip.path for clip in found))
    found, sizes = _there(root, places, found)
    rows = [
        ClipRow(0, _name(root, c), c.path, c.target, split_name(c.split), c.speaker) for c in found
    ]
    count = Counter(row.name for row in rows)
    twice = [name for name in count if count[name] > 1]
    if twice:
        raise DataError(f"{root}: more than one transcript or label for {some(twice)}: keep one")
    splits = _splits(rows, True, task)
    labels = _labels(root, rows, splits, task)
    named = {row.name: clip for row, clip in zip(rows, found, strict=True)}
    for name, clip in named.items():
        if clip.split != splits[name]:
            named[name] = replace(clip, split=splits[name])
    ordered = sorted(named.items())
    made = tuple(clip for _, clip in ordered)
    return AudioFolder(root, task, made, labels, _digest(ordered, sizes))


def _normal(clip: Clip) -> Clip:
    """Return the clip with its texts in one form, checked as far as that goes without its audio."""
    check_segment(clip.path, clip.start, clip.end)
    target, speaker = normal(clip.target), normal(clip.speaker)
    if (target, speaker) == (clip.target, clip.speaker):
        return clip
    return replace(clip, target=target, speaker=speaker)


def _there(root: Path, places: Places, clips: Sequence[Clip]) -> tuple[list[Clip], dict[str, int]]:
    """Return the clips with the paths that their files have on disk, and the sizes of these."""
    sizes = _sizes(clips)
    moved: dict[str, Path] = {}
    missing = []
    for path in sorted({str(clip.path) for clip in clips} - set(sizes)):
        name = places.name(path)
        actual = None if escapes(name) else places.find(name)
        if actual is None:
            missing.append(path)
        else:
            moved[path] = actual
    if missing:
        near = places.nearly(places.name(missing[0]))
        hint = f"there is {near!r}, which differs in upper and lower case" if near else ""
        raise DataError(
            f"{root}: {len(missing)} audio files of {len(clips)} clips are missing: "
            f"{some(map(places.name, missing))}: {hint or 'unpack the corpus again'}"
        )
    if not moved:
        return list(clips), sizes
    check_inside(root, places, moved.values())
    found = [replace(clip, path=moved.get(str(clip.path), clip.path)) for clip in clips]
    return found, _sizes(found)


def _splits(rows: list[ClipRow], given: bool, task: Task) -> dict[str, str]:
    """Return the split of each file name, as given or by hash."""
    if not given:
        unit = _unit(rows)
        wanted = max(1, round(HELD_OUT * len({unit(row) for row in rows})))
        test = _hold_out(rows, unit, wanted, task)
        rest = [row for row in rows if row.name not in test]
        validation = _hold_out(rest, unit, wanted, task)
    else:
        named = {row.name: row.split for row in rows}
        train = [row for row in rows if named[row.name] == "train"]
        if set(named.values()) != {"train", "test"}:
            return named
        unit = _unit(train)
        wanted = max(1, round(HELD_OUT * len({unit(row) for row in train})))
        test = {name for name, split in named.items() if split == "test"}
        validation = _hold_out(train, unit, wanted, task)
    held_out = dict.fromkeys(test, "test") | dict.fromkeys(validation, "validation")
    return {row.name: held_out.get(row.name, "train") for row in rows}


def _unit(rows: list[ClipRow]) -> Callable[[ClipRow], str]:
    """Return what is held out as a whole: a speaker, or a file where there are too few speakers."""
    speakers = {row.speaker for row in rows if row.speaker}
    if len(speakers) >= MIN_SPEAKERS:
        return lambda row: row.speaker or row.name
    return lambda row: row.name


def _hold_out(
    rows: list[ClipRow], unit: Callable[[ClipRow], str], wanted: int, task: Task
) -> set[str]:
    """Choose the first `wanted` units by hash, but never the last clips of a class.

    Returns the names of their files.
    """
    groups: dict[str, list[ClipRow]] = defaultdict(list)
    for row in rows:
        groups[unit(row)].append(row)
    left = _classes(rows, task)
    held: list[ClipRow] = []
    for name in sorted(groups, key=_sha256):
        taken = _classes(groups[name], task)
        if wanted and all(left[label] > count for label, count in taken.items()):
            held += groups[name]
            left -= taken
            wanted -= 1
    return {row.name for row in held}


def _classes(rows: Iterable[ClipRow], task: Task) -> Counter[str]:
    """Count the rows of each class; all have the same one where they have texts."""
    if task == "text":
        return Counter("" for _ in rows)
    if task == "tags":
        return Counter(tag for row in rows for tag in split_tags(row.target))
    return Counter(row.target for row in rows)


def _labels(path: Path, rows: list[ClipRow], splits: dict[str, str], task: Task) -> tuple[str, ...]:
    if task == "text" and rows:  # a folder of test clips alone is there to be recognized
        return ()
    _tell_alike(path, _classes(rows, task))
    train = set(_classes((row for row in rows if splits[row.name] == "train"), task))
    if not train:
        raise DataError(
            f"{path}: no row of the split 'train' among {len(rows)} rows: training clips are needed"
        )
    for split in ("validation", "test"):
        held_out = (row for row in rows if splits[row.name] == split)
        new = sorted(set(_classes(held_out, task)) - train)
        if new:
            raise DataError(
                f"{path}: classes in {split} without any training clip: {some(new)}: "
                "add training clips of them or remove these rows"
            )
    if len(train) < 2:
        raise DataError(f"{path}: {next(iter(train))!r} is the only class: at least two are needed")
    return tuple(sorted(train))


def _tell_alike(path: Path, labels: Iterable[str]) -> None:
    """Warn of labels that are two classes, and look like one."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in sorted(set(labels)):
        groups[folded(label)].append(label)
    alike = [group for group in groups.values() if len(group) > 1]
    if alike:
        named = some(" and ".join(map(repr, group)) for group in alike)
        warnings.warn(
            f"{path}: labels that differ in case or white space only are classes of their own: "
            f"{named}: write them in one way if they are the same",
            stacklevel=4,
        )


def _name(root: Path, clip: Clip) -> str:
    return segment_name(name_in(root, clip.path), clip.start, clip.end)


def _digest(clips: Iterable[tuple[str, Clip]], sizes: Mapping[str, int] | None) -> str:
    """Return the digest of clips with their names, and of their audio or its sizes."""
    entries = []
    for name, clip in clips:
        content = sha256(clip.path) if sizes is None else sizes[str(clip.path)]
        entries.append((name, clip.target, clip.split, content))
    return _sha256(json.dumps(sorted(entries)))


def _sizes(clips: Iterable[Clip]) -> dict[str, int]:
    """Return the sizes of the audio files that are there, in bytes; each is asked for once."""
    sizes = {}
    for path in {str(clip.path) for clip in clips}:
        try:
            sizes[path] = os.stat(path).st_size
        except (OSError, ValueError):  # a name that no file can have
            continue
    return sizes


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def subset(folder: AudioFolder, split: str, n: int, seed: int) -> list[Clip]:
    """Return at most `n` clips of a split with the classes in proportion, for a quick run.

    The choice depends on file names, labels and `seed` only; clips stay in the folder's order.

    Raises:
        DataError: as `AudioFolder.split`.
        UsageError: `n` below 1.
    """
    if n < 1:
        raise UsageError(f"a subset of {n} clips: give at least 1")
    clips = folder.split(split)
    keys = {folder.name(clip): _sha256(f"{seed}:{folder.name(clip)}") for clip in clips}
    classes: dict[str, list[str]] = defaultdict(list)
    for clip in sorted(clips, key=lambda clip: keys[folder.name(clip)]):
        classes["" if folder.task == "text" else clip.target].append(folder.name(clip))
    places = {  # of each clip within its class, from 0 to 1: an even cut through all classes
        name: (rank + 0.5) / len(members)
        for members in classes.values()
        for rank, name in enumerate(members)
    }
    chosen = set(sorted(places, key=lambda name: (places[name], keys[name]))[:n])
    return [clip for clip in clips if folder.name(clip) in chosen]
