"""Folders of clips (Hugging Face `AudioFolder`: metadata.csv beside the audio).

DIR/metadata.csv   file_name, and label, labels (with ; between them) or text; optional: split,
                   speaker, and any other column
DIR/...            the audio files that metadata.csv names
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal, TypeAlias

from ..files import sha256
from .audio import Seconds, segment_name

Task: TypeAlias = Literal["classification", "tags", "text"]

COLUMNS: dict[Task, str] = {"classification": "label", "tags": "labels", "text": "text"}
METADATA = "metadata.csv"
SPLITS = ("train", "validation", "test")
ALIASES = {"valid": "validation", "val": "validation", "dev": "validation", "eval": "validation"}
HELD_OUT = 0.1  # share of validation, and of test, where the folder does not say
MIN_SPEAKERS = 10  # from here on clips are held out by speaker
SHOWN = 5  # names in an error


class DataError(ValueError):
    """A folder of clips that cannot be used; the text says why and what to do."""


@dataclass(frozen=True)
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
    extra: Mapping[str, str] = field(default_factory=dict, hash=False)
    start: Seconds | None = None
    end: Seconds | None = None

    @property
    def tags(self) -> tuple[str, ...]:
        """The single labels of a target that joins several."""
        return split_tags(self.target)


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
        """The clips of "train", "validation" (also valid, val, dev, eval) or "test".

        Raises:
            DataError: an unknown split, or one without clips; the text says which there are.
        """
        clips = [clip for clip in self.clips if clip.split == _split_name(name)]
        if not clips:
            count = Counter(clip.split for clip in self.clips)
            there = ", ".join(f"{split} ({count[split]} clips)" for split in SPLITS if count[split])
            raise DataError(
                f"{self.root}: no split {name!r}, there is {there}: ask for one of these, or name "
                f"it in the 'split' column of {METADATA}"
            )
        return clips

    def name(self, clip: Clip) -> str:
        """What a clip is called, within the folder: its file, or FILE[START-END]."""
        return _name(self.root, clip)

    def label_index(self, clip: Clip) -> int:
        """Where the label of a clip stands in `labels`.

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
    """Read metadata.csv and check it against the audio files, which are hashed but not decoded.

    Without a `split` column a tenth of the clips each is held out as validation and test, by the
    hash of the speaker if there are at least 10, otherwise by that of the file name. A folder
    with training and test clips only gets its validation from the training clips in the same way.
    A folder with texts may have test clips only.

    Args:
        hash_audio: False puts the sizes of the audio files into the digest in place of their
            content, which takes a minute for each 10 GB or so.

    Raises:
        DataError: a folder that cannot be used; the text says where and why.
    """
    path = Path(root) / METADATA
    if not path.parent.is_dir():
        raise DataError(
            f"{root}: not a directory, expected a folder with {METADATA} and the audio it names"
        )
    if not path.is_file():
        raise DataError(
            f"{root}: no {METADATA}, expected a table with the columns file_name and label"
        )
    columns, lines = _read_table(path)
    task = _task(path, columns)
    rows = [_row(number, values, task) for number, values in lines]
    _check_names(path, rows)
    _check_targets(path, rows, task)
    _check_files(path, rows)
    splits = _splits(path, rows, "split" in columns, task)
    labels = _labels(path, rows, splits, task)
    root = Path(os.path.abspath(root))
    rows.sort(key=lambda row: row.name)
    clips = tuple(
        Clip(root / row.name, row.target, splits[row.name], row.speaker, row.extra) for row in rows
    )
    sizes = None if hash_audio else _sizes(clips)
    return AudioFolder(
        root,
        task,
        clips,
        labels,
        _digest(zip((row.name for row in rows), clips, strict=True), sizes),
    )


def folder_of(root: Path, task: Task, clips: Iterable[Clip]) -> AudioFolder:
    """A folder out of the clips that a reader of another layout found, checked as `load_folder`.

    Its digest takes the sizes of the audio files in place of their content.

    Args:
        root: an absolute path.
        clips: of files below it, each with the split that its corpus gives it.

    Raises:
        DataError: files that are missing, or clips that cannot be trained on.
    """
    found = list(clips)
    rows = [_Row(0, _name(root, c), c.target, c.split, c.speaker, {}) for c in found]
    count = Counter(row.name for row in rows)
    twice = [name for name in count if count[name] > 1]
    if twice:
        raise DataError(f"{root}: more than one transcript or label for {_some(twice)}: keep one")
    sizes = _sizes(found)
    missing = sorted({str(clip.path) for clip in found} - set(sizes))
    if missing:
        raise DataError(
            f"{root}: {len(missing)} audio files of {len(found)} clips are missing: "
            f"{_some(missing)}: unpack the corpus again"
        )
    splits = _splits(root, rows, True, task)
    labels = _labels(root, rows, splits, task)
    named = {row.name: clip for row, clip in zip(rows, found, strict=True)}
    for name, clip in named.items():
        if clip.split != splits[name]:
            named[name] = replace(clip, split=splits[name])
    ordered = sorted(named.items())
    made = tuple(clip for _, clip in ordered)
    return AudioFolder(root, task, made, labels, _digest(ordered, sizes))


@dataclass(frozen=True)
class _Row:
    line: int
    name: str
    target: str
    split: str
    speaker: str
    extra: dict[str, str]


def _read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The columns, and the rows with their line numbers."""
    rows, ragged = [], []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            columns = [name.strip() for name in next(reader, [])]
            for values in reader:
                if len(values) == len(columns):
                    rows.append((reader.line_num, dict(zip(columns, values, strict=True))))
                elif values:
                    ragged.append(reader.line_num)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}): save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}: write it again as CSV") from None
    twice = [name for name, count in Counter(columns).items() if count > 1 and name]
    if twice:
        raise DataError(f"{path}: the column {twice[0]!r} is there twice: remove one")
    if ragged:
        raise DataError(
            f"{path}: {_lines(ragged)} more or fewer values than the {len(columns)} columns: "
            "put values with a comma in double quotes"
        )
    return columns, rows


def _task(path: Path, columns: list[str]) -> Task:
    there = f"the columns are {', '.join(columns) or 'none'}"
    if "file_name" not in columns:
        raise DataError(
            f"{path}: no column 'file_name' ({there}): name the columns in the first line, "
            "separated by commas"
        )
    for task, column in COLUMNS.items():
        if column in columns:
            return task
    raise DataError(
        f"{path}: neither a column 'label' nor 'text' ({there}): add the class of each clip as "
        "'label' (several as 'labels', with ; between them), or what is said as 'text'"
    )


def _row(line: int, values: dict[str, str], task: Task) -> _Row:
    used = ("file_name", COLUMNS[task], "split", "speaker")
    name, goal, split, speaker = (values.get(column, "").strip() for column in used)
    extra = {column: value for column, value in values.items() if column not in used}
    name = str(PurePosixPath(name)) if name else ""  # ./a.wav and a.wav are one file
    return _Row(line, name, goal, split, speaker, extra)


def _check_names(path: Path, rows: list[_Row]) -> None:
    empty = [row.line for row in rows if not row.name]
    if empty:
        raise DataError(f"{path}: {_lines(empty)} no file_name: fill it in or remove the row")
    outside = [row.name for row in rows if _escapes(row.name)]
    if outside:
        raise DataError(
            f"{path}: {_some(outside)} would be outside of the folder: give file_name relative "
            f"to {path.parent}, without '..'"
        )
    count = Counter(row.name for row in rows)
    twice = [name for name in count if count[name] > 1]
    if twice:
        raise DataError(f"{path}: more than one row for {_some(twice)}: keep one row a file")


def _escapes(name: str) -> bool:
    """Whether a path leaves its folder, on this system or another."""
    return any(
        path.anchor or ".." in path.parts for path in (PurePosixPath(name), PureWindowsPath(name))
    )


def _check_targets(path: Path, rows: list[_Row], task: Task) -> None:
    empty = [row.line for row in rows if not row.target or not _classes([row], task)]
    if empty:
        raise DataError(
            f"{path}: {_lines(empty)} an empty {COLUMNS[task]!r}: fill it in or remove the row"
        )


def _check_files(path: Path, rows: list[_Row]) -> None:
    missing = [row.name for row in rows if not (path.parent / row.name).is_file()]
    if missing:
        raise DataError(
            f"{path}: of {len(rows)} audio files {len(missing)} are missing: {_some(missing)}: "
            "copy them into the folder or remove their rows"
        )


def _splits(path: Path, rows: list[_Row], given: bool, task: Task) -> dict[str, str]:
    """The split of each file name, as given or by hash."""
    if not given:
        unit = _unit(rows)
        wanted = max(1, round(HELD_OUT * len({unit(row) for row in rows})))
        test = _hold_out(rows, unit, wanted, task)
        rest = [row for row in rows if row.name not in test]
        validation = _hold_out(rest, unit, wanted, task)
    else:
        named = {row.name: _given_split(path, row) for row in rows}
        train = [row for row in rows if named[row.name] == "train"]
        if set(named.values()) != {"train", "test"}:
            return named
        unit = _unit(train)
        wanted = max(1, round(HELD_OUT * len({unit(row) for row in train})))
        test = {name for name, split in named.items() if split == "test"}
        validation = _hold_out(train, unit, wanted, task)
    held_out = dict.fromkeys(test, "test") | dict.fromkeys(validation, "validation")
    return {row.name: held_out.get(row.name, "train") for row in rows}


def _given_split(path: Path, row: _Row) -> str:
    try:
        return _split_name(row.split)
    except DataError as error:
        raise DataError(f"{path}: line {row.line}: {error}") from None


def _split_name(name: str) -> str:
    known = ALIASES.get(name.lower(), name.lower())
    if known not in SPLITS:
        raise DataError(
            f"unknown split {name!r}: use train, validation (or {', '.join(ALIASES)}) or test"
        )
    return known


def _unit(rows: list[_Row]) -> Callable[[_Row], str]:
    """What is held out as a whole: a speaker, or a file where there are too few speakers."""
    speakers = {row.speaker for row in rows if row.speaker}
    if len(speakers) >= MIN_SPEAKERS:
        return lambda row: row.speaker or row.name
    return lambda row: row.name


def _hold_out(rows: list[_Row], unit: Callable[[_Row], str], wanted: int, task: Task) -> set[str]:
    """The file names of the first `wanted` units by hash, but never the last clips of a class."""
    groups: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        groups[unit(row)].append(row)
    left = _classes(rows, task)
    held: list[_Row] = []
    for name in sorted(groups, key=_sha256):
        taken = _classes(groups[name], task)
        if wanted and all(left[label] > count for label, count in taken.items()):
            held += groups[name]
            left -= taken
            wanted -= 1
    return {row.name for row in held}


def _classes(rows: Iterable[_Row], task: Task) -> Counter[str]:
    """How many rows have each class; all have the same one where they have texts."""
    if task == "text":
        return Counter("" for _ in rows)
    if task == "tags":
        return Counter(tag for row in rows for tag in split_tags(row.target))
    return Counter(row.target for row in rows)


def split_tags(target: str) -> tuple[str, ...]:
    """The labels of a clip out of "one;another", each once."""
    return tuple(dict.fromkeys(tag.strip() for tag in target.split(";") if tag.strip()))


def _labels(path: Path, rows: list[_Row], splits: dict[str, str], task: Task) -> tuple[str, ...]:
    if task == "text" and rows:  # a folder of test clips alone is there to be recognized
        return ()
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
                f"{path}: classes in {split} without any training clip: {_some(new)}: "
                "add training clips of them or remove these rows"
            )
    if len(train) < 2:
        raise DataError(f"{path}: {next(iter(train))!r} is the only class: at least two are needed")
    return tuple(sorted(train))


def _name(root: Path, clip: Clip) -> str:
    path = str(clip.path).removeprefix(f"{root}{os.sep}")  # relative_to takes ten times as long
    return segment_name(path.replace(os.sep, "/"), clip.start, clip.end)


def _digest(clips: Iterable[tuple[str, Clip]], sizes: Mapping[str, int] | None) -> str:
    """Of clips with their names."""
    entries = []
    for name, clip in clips:
        content = sha256(clip.path) if sizes is None else sizes[str(clip.path)]
        entries.append((name, clip.target, clip.split, content))
    return _sha256(json.dumps(sorted(entries)))


def _sizes(clips: Iterable[Clip]) -> dict[str, int]:
    """Of the audio files that are there, in bytes; each is asked for once."""
    sizes = {}
    for path in {str(clip.path) for clip in clips}:
        try:
            sizes[path] = os.stat(path).st_size
        except OSError:
            continue
    return sizes


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _lines(numbers: Sequence[int]) -> str:
    rows = "1 row has" if len(numbers) == 1 else f"{len(numbers)} rows have"
    return f"{rows} (line {_some([str(number) for number in numbers])})"


def subset(folder: AudioFolder, split: str, n: int, seed: int) -> list[Clip]:
    """At most `n` clips of a split with the classes in proportion, for a quick run.

    The choice depends on file names, labels and `seed` only; clips stay in the folder's order.

    Raises:
        DataError: as `AudioFolder.split`.
        ValueError: `n` below 1.
    """
    if n < 1:
        raise ValueError(f"a subset of {n} clips: give at least 1")
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
