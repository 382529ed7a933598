"""What a folder says of its clips: metadata.csv or .jsonl, or directories that are the labels.

The forms are those of Hugging Face's `AudioFolder`, each with or without a directory for a split:

DIR/metadata.csv     file_name, and label, labels (with ; between them) or text; optional: split,
                     speaker, and any other column
DIR/metadata.jsonl   the same as JSON, an object a line
DIR/train/metadata.csv, DIR/test/metadata.csv
                     the same for each split; file_name begins at its directory
DIR/LABEL/1.wav, DIR/train/LABEL/1.wav
                     no table: the directory is the label
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from sys import intern
from typing import Literal, TypeAlias

from .audio import SUFFIXES
from .errors import DataError
from .names import Places, escapes, folded, lines, normal, plain_name, some
from .paths import PathAsText
from .tables import Row, read_csv, read_json_lines

Task: TypeAlias = Literal["classification", "tags", "text"]

COLUMNS: dict[Task, str] = {"classification": "label", "tags": "labels", "text": "text"}
KNOWN = ("file_name", *COLUMNS.values(), "split", "speaker")
METADATA = "metadata.csv"
TABLES = (METADATA, "metadata.jsonl", "metadata.parquet")
SPLITS = ("train", "validation", "test")
ALIASES = {"valid": "validation", "val": "validation", "dev": "validation", "eval": "validation"}
NO_EXTRA: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class ClipRow:
    """One clip, as a folder describes it.

    Attributes:
        line: of its table; 0 where there is none.
        name: of the file within the folder, in one form.
        path: of the file.
        target: its label, text, or labels with ";" between them.
        split: as it is given; "" where it is not.
        extra: the other columns.
    """

    line: int
    name: str
    path: Path
    target: str
    split: str
    speaker: str = ""
    extra: Mapping[str, str] = field(default_factory=lambda: NO_EXTRA)


ClipRow.path = PathAsText(ClipRow.path)  # type: ignore[misc, assignment]


@dataclass(frozen=True)
class Listing:
    """The clips of a folder.

    Attributes:
        source: what to name in errors: the table, or the folder.
        split_given: whether the folder says which clip is for what.
    """

    source: Path
    task: Task
    rows: list[ClipRow]
    split_given: bool


def has_metadata(root: Path) -> bool:
    """Return whether a folder, or a directory of a split in it, has a table."""
    return any((place / name).exists() for place in (root, *_split_dirs(root)) for name in TABLES)


def has_label_dirs(root: Path) -> bool:
    """Return whether audio lies in directories that are its labels, two at least."""
    return len({label for _, label, _ in _labelled(root)}) > 1


def read_rows(root: Path) -> Listing:
    """Read what a folder says of its clips, and check it against its files.

    Raises:
        DataError: nothing says it, or what is said cannot be; the text names the place.

    Warns:
        UserWarning: audio that no row names, or splits in file names that no column gives.
    """
    places, tables = Places(root), _tables(root)
    listings = [_read_table(table, root, places) for table in tables]
    if not listings:
        listings = [_read_directories(root, places)]
    (first, *others) = listings
    for other in others:
        if other.task != first.task:
            raise DataError(
                f"{other.source}: a column {COLUMNS[other.task]!r}, but {first.source} has "
                f"{COLUMNS[first.task]!r}: the tables of all splits need the same"
            )
    rows = [row for listing in listings for row in listing.rows]
    count = Counter(row.name for row in rows)
    twice = [name for name in count if count[name] > 1]
    source = first.source if not others else root
    if twice:
        raise DataError(f"{source}: more than one row for {some(twice)}: keep one row a file")
    _tell_unnamed(source, root, rows)
    if not first.split_given:
        _tell_splits(source, rows)
    return Listing(source, first.task, rows, first.split_given)


def split_name(name: str) -> str:
    """Return our name of a split that is known by several.

    Raises:
        DataError: an unknown one; the text says which there are.
    """
    lower = normal(name).lower()
    known = ALIASES.get(lower, lower)
    if known not in SPLITS:
        raise DataError(
            f"unknown split {name!r}: use train, validation (or {', '.join(ALIASES)}) or test"
        )
    return known


def split_tags(target: str) -> tuple[str, ...]:
    """Return the labels of a clip out of "one;another", each once."""
    return tuple(dict.fromkeys(tag for one in target.split(";") if (tag := normal(one))))


def _split_dirs(root: Path) -> list[Path]:
    names = {*SPLITS, *ALIASES}
    return [path for path in _inside(root) if path.name.lower() in names and path.is_dir()]


def _inside(directory: Path) -> list[Path]:
    """Return what is in a directory that can be read, but for hidden names, in order."""
    try:
        return sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def _tables(root: Path) -> list[Path]:
    """Return the table of the folder, or that of each split."""
    found = []
    for place in (root, *_split_dirs(root)):
        here = [place / name for name in TABLES if (place / name).exists()]
        if len(here) > 1:
            raise DataError(f"{place}: {some(p.name for p in here)} say what is in it: keep one")
        if here and here[0].suffix == ".parquet":
            raise DataError(
                f"{here[0]}: a table as Parquet, expected {METADATA}: write it as CSV, with "
                "pandas: pandas.read_parquet(...).to_csv(..., index=False)"
            )
        found += here
        if here and place == root:
            break
    return found


def _read_table(path: Path, root: Path, places: Places) -> Listing:
    """Read the clips of a table, whose file names begin at its directory."""
    columns, raw = (read_csv if path.suffix == ".csv" else read_json_lines)(path)
    names = _known_columns(path, columns)
    task = _task(path, list(names.values()))
    rows = [(number, {names[c]: value for c, value in row.items()}) for number, row in raw]
    for _, row in rows:
        row.update({column: normal(row[column]) for column in KNOWN if column in row})
    _check_names(path, rows)
    _check_targets(path, rows, task)
    directory = "" if path.parent == root else path.parent.name
    splits = _split_of_each(path, rows, directory)
    files = _find(path, places, [os.path.join(directory, row["file_name"]) for _, row in rows])
    used = ("file_name", COLUMNS[task], "split", "speaker")
    clips = [
        ClipRow(
            number,
            places.name(file),
            file,
            intern(row[COLUMNS[task]]),  # which many clips share, as the two below
            intern(split),
            intern(row.get("speaker", "")),
            {column: value for column, value in row.items() if column not in used} or NO_EXTRA,
        )
        for (number, row), split, file in zip(rows, splits, files, strict=True)
    ]
    return Listing(path, task, clips, bool(directory) or "split" in names.values())


def _known_columns(path: Path, columns: Sequence[str]) -> dict[str, str]:
    """Return what each column is called here.

    A column is known in any case, with a space, "-", "_" or nothing between its words.

    Among columns for the same thing, and among those with the target, one with the very name wins.
    """
    exact = set(columns) & set(KNOWN)
    if exact & set(COLUMNS.values()):
        exact |= set(COLUMNS.values())
    compact = {name.replace("_", ""): name for name in KNOWN if name not in exact}
    names = {}
    for column in columns:
        alike = compact.get(folded(column).replace("_", "").replace("-", ""))
        names[column] = column if column in KNOWN or alike is None else alike
    twice = [name for name, count in Counter(names.values()).items() if count > 1 and name]
    if twice:
        raise DataError(f"{path}: the column {twice[0]!r} is there twice: remove one")
    return names


def _task(path: Path, columns: Sequence[str]) -> Task:
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


def _check_names(path: Path, rows: Sequence[Row]) -> None:
    empty = [number for number, row in rows if not row["file_name"]]
    if empty:
        raise DataError(f"{path}: {lines(empty)} no file_name: fill it in or remove the row")
    outside = [row["file_name"] for _, row in rows if escapes(row["file_name"])]
    if outside:
        raise DataError(
            f"{path}: {some(outside)} would be outside of the folder: give file_name relative "
            f"to {path.parent}, without '..'"
        )


def _check_targets(path: Path, rows: Sequence[Row], task: Task) -> None:
    column = COLUMNS[task]
    filled = split_tags if task == "tags" else bool
    empty = [number for number, row in rows if not filled(row[column])]
    if empty:
        raise DataError(f"{path}: {lines(empty)} an empty {column!r}: fill it in or remove the row")


def _split_of_each(path: Path, rows: Sequence[Row], directory: str) -> list[str]:
    """Return the split of each row, by its column and by the directory of the table, or ""."""
    by_place = split_name(directory) if directory else ""
    splits = []
    for number, row in rows:
        given = row.get("split", directory)
        try:
            split = split_name(given or directory) if "split" in row or directory else ""
        except DataError as error:
            raise DataError(f"{path}: line {number}: {error}") from None
        if directory and split != by_place:
            raise DataError(
                f"{path}: line {number}: the split {given!r} in the directory of the split "
                f"{by_place!r}: move the file, or leave the column out"
            )
        splits.append(split)
    return splits


def _find(path: Path, places: Places, names: Sequence[str]) -> list[Path]:
    """Find the files of a table."""
    found = [(name, places.find(name)) for name in names]
    missing = [plain_name(name) for name, file in found if file is None]
    if missing:
        what = f"{path}: of {len(names)} audio files {len(missing)} are missing: {some(missing)}"
        near = places.nearly(missing[0])
        if near:
            raise DataError(
                f"{what}: there is {near!r}, which differs in upper and lower case: write "
                "file_name as the file is called"
            )
        raise DataError(f"{what}: copy them into the folder or remove their rows")
    files = [file for _, file in found if file is not None]
    check_inside(path, places, files)
    return files


def check_inside(source: Path, places: Places, files: Iterable[Path]) -> None:
    """Check that files lie in their folder.

    Args:
        source: what to begin the error with.

    Raises:
        DataError: names, or symbolic links, that lead out of it.
    """
    outside = [places.name(file) for file in files if places.leads_out(file)]
    if outside:
        raise DataError(
            f"{source}: {some(outside)} would be outside of the folder, by '..' or by a symbolic "
            "link: copy the files into it (cp -rL follows links)"
        )


def _labelled(root: Path) -> list[tuple[str, str, Path]]:
    """Return split ("" for none), label and file of audio whose directory is its label."""
    found = []
    for place in _split_dirs(root):
        found += [(split_name(place.name), *rest) for rest in _in_label_dirs(place)]
    return found or [("", *rest) for rest in _in_label_dirs(root)]


def _in_label_dirs(base: Path) -> list[tuple[str, Path]]:
    return [
        (normal(directory.name), path)
        for directory in _inside(base)
        if directory.is_dir()
        for path in _inside(directory)
        if path.suffix.lower() in SUFFIXES
    ]


def _read_directories(root: Path, places: Places) -> Listing:
    """Read the clips of a folder without a table."""
    found = _labelled(root)
    if len({label for _, label, _ in found}) < 2:
        raise DataError(
            f"{root}: no {METADATA}, expected a table with the columns file_name and label, or "
            "audio in directories that are the labels (LABEL/1.wav, train/LABEL/1.wav)"
        )
    check_inside(root, places, [path for _, _, path in found])
    rows = [ClipRow(0, places.name(path), path, label, split) for split, label, path in found]
    return Listing(root, "classification", rows, bool(found[0][0]))


def _tell_unnamed(source: Path, root: Path, rows: Sequence[ClipRow]) -> None:
    """Warn of audio that is in the folder and in no row; `AudioFolder` refuses it."""
    named = {str(row.path) for row in rows}
    unnamed = []
    for directory, inner, files in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        audio = (f for f in sorted(files) if os.path.splitext(f)[1].lower() in SUFFIXES)
        paths = (os.path.join(directory, name) for name in audio if not name.startswith("."))
        unnamed += [os.path.relpath(path, root) for path in paths if path not in named]
    if unnamed:
        warnings.warn(
            f"{source}: {len(unnamed)} audio files in the folder are in no row and left out: "
            f"{some(unnamed)}",
            stacklevel=4,
        )


def _tell_splits(source: Path, rows: Sequence[ClipRow]) -> None:
    """Warn where the directories look like splits, and are not used as such."""
    first = {row.name.partition("/")[0].lower() for row in rows}
    if len(first) > 1 and first <= {*SPLITS, *ALIASES}:
        warnings.warn(
            f"{source}: the files are in {some(sorted(first))}, but there is no column 'split', so "
            "that the clips are divided anew: add the column",
            stacklevel=4,
        )
