"""Folders of clips (Hugging Face `AudioFolder`: metadata.csv beside the audio), and their features.

DIR/metadata.csv   file_name, label or text; optional: split, speaker, and any other column
DIR/...            the audio files that metadata.csv names
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from ..files import sha256
from .audio import Seconds, check_length, check_samples, duration, read_audio

if TYPE_CHECKING:
    from torch import Tensor

Task: TypeAlias = Literal["classification", "text"]
Layout: TypeAlias = Literal["time_first", "bins_first"]
Progress: TypeAlias = Callable[[int, int], None]
FeatureSet: TypeAlias = list[np.ndarray]  # float32, one [frames, bins] or [samples] a clip

METADATA = "metadata.csv"
SPLITS = ("train", "validation", "test")
ALIASES = {"valid": "validation", "val": "validation", "dev": "validation", "eval": "validation"}
HELD_OUT = 0.1  # share of validation, and of test, where the folder does not say
MIN_SPEAKERS = 10  # from here on clips are held out by speaker
LIMIT_SECONDS: Seconds = 30.0  # of a clip, unless cut by max_seconds: the window of Whisper
CHUNK = 50  # batches among which clips of similar length are put together
SHOWN = 5  # names in an error


class DataError(ValueError):
    """A folder of clips that cannot be used; the text says why and what to do."""


@dataclass(frozen=True)
class Clip:
    """One audio file.

    Attributes:
        path: of the audio.
        target: its label, or its text.
        split: "train", "validation" or "test".
        speaker: "" where metadata.csv does not say.
        extra: the other columns.
    """

    path: Path
    target: str
    split: str
    speaker: str = ""
    extra: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class AudioFolder:
    """The clips of a folder.

    Attributes:
        root: the folder.
        task: "classification" where metadata.csv has labels, "text" where it has texts only.
        clips: of all splits, by file name.
        labels: the classes of the training clips, sorted; empty for texts.
        digest: of names, targets, splits and audio; whatever the order of rows or the place.
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


def load_folder(root: Path | str) -> AudioFolder:
    """Read metadata.csv and check it against the audio files, which are hashed but not decoded.

    Without a `split` column a tenth of the clips each is held out as validation and test, by the
    hash of the speaker if there are at least 10, otherwise by that of the file name. A folder
    with training and test clips only gets its validation from the training clips in the same way.

    Raises:
        DataError: a folder that cannot be trained on; the text says where and why.
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
    return AudioFolder(root, task, clips, labels, _digest(root, clips))


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
    if "label" in columns:
        return "classification"
    if "text" in columns:
        return "text"
    raise DataError(
        f"{path}: neither a column 'label' nor 'text' ({there}): add the class of each clip as "
        "'label', or what is said as 'text'"
    )


def _row(line: int, values: dict[str, str], task: Task) -> _Row:
    target = "label" if task == "classification" else "text"
    used = ("file_name", target, "split", "speaker")
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
    column = "label" if task == "classification" else "text"
    empty = [row.line for row in rows if not row.target]
    if empty:
        raise DataError(
            f"{path}: {_lines(empty)} an empty {column!r}: fill it in or remove the row"
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

    def classes(some: Iterable[_Row]) -> Counter[str]:
        return Counter(row.target if task == "classification" else "" for row in some)

    left = classes(rows)
    held: list[_Row] = []
    for name in sorted(groups, key=_sha256):
        taken = classes(groups[name])
        if wanted and all(left[label] > count for label, count in taken.items()):
            held += groups[name]
            left -= taken
            wanted -= 1
    return {row.name for row in held}


def _labels(path: Path, rows: list[_Row], splits: dict[str, str], task: Task) -> tuple[str, ...]:
    train = {row.target for row in rows if splits[row.name] == "train"}
    if not train:
        raise DataError(
            f"{path}: no row of the split 'train' among {len(rows)} rows: training clips are needed"
        )
    if task == "text":
        return ()
    for split in ("validation", "test"):
        new = sorted({row.target for row in rows if splits[row.name] == split} - train)
        if new:
            raise DataError(
                f"{path}: classes in {split} without any training clip: {_some(new)}: "
                "add training clips of them or remove these rows"
            )
    if len(train) < 2:
        raise DataError(f"{path}: {next(iter(train))!r} is the only class: at least two are needed")
    return tuple(sorted(train))


def _digest(root: Path, clips: Iterable[Clip]) -> str:
    entries = []
    for clip in clips:
        name = clip.path.relative_to(root).as_posix()
        entries.append((name, clip.target, clip.split, sha256(clip.path)))
    return _sha256(json.dumps(sorted(entries)))


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
    keys = {c.path: _sha256(f"{seed}:{c.path.relative_to(folder.root).as_posix()}") for c in clips}
    classes: dict[str, list[Clip]] = defaultdict(list)
    for clip in sorted(clips, key=lambda clip: keys[clip.path]):
        classes[clip.target if folder.task == "classification" else ""].append(clip)
    places = {  # of each clip within its class, from 0 to 1: an even cut through all classes
        clip.path: (rank + 0.5) / len(members)
        for members in classes.values()
        for rank, clip in enumerate(members)
    }
    chosen = set(sorted(places, key=lambda path: (places[path], keys[path]))[:n])
    return [clip for clip in clips if clip.path in chosen]


def extractor_layout(extractor: Any) -> tuple[str, Layout]:
    """The model's main input name, and whether time or mel bins come first in its tensor.

    Made for `collate(features, *extractor_layout(extractor))`.
    """
    whisper = any("Whisper" in cls.__name__ for cls in type(extractor).__mro__)
    return extractor.model_input_names[0], "bins_first" if whisper else "time_first"


def extract(audio: np.ndarray, extractor: Any) -> np.ndarray:
    """Features of one clip at its own length, so that they never depend on its neighbours.

    AST alone has one fixed length: its extractor pads, or cuts after 10.24 s.

    Args:
        audio: at the extractor's sampling rate.
        extractor: a feature extractor of `transformers`.

    Shape: audio [samples] -> [frames, bins] float32; [samples] where the model takes a waveform.

    Raises:
        AudioError: audio that is too short, not one channel, or not finite.
    """
    rate = extractor.sampling_rate
    check_samples(audio, rate, "the audio")
    name, layout = extractor_layout(extractor)
    made = extractor(audio, sampling_rate=rate, padding=False, truncation=False)
    features = np.asarray(made[name][0], dtype=np.float32)
    if layout == "bins_first":
        features = features.T
    if "attention_mask" in made:  # Parakeet adds one frame behind the end
        features = features[: int(np.asarray(made["attention_mask"][0]).sum())]
    return np.ascontiguousarray(features)


def load_features(
    clips: Sequence[Clip],
    extractor: Any,
    *,
    max_seconds: Seconds | None,
    rate: int | None = None,
    progress: Progress | None = None,
) -> FeatureSet:
    """Read clips and extract the features of each by itself.

    Args:
        max_seconds: use only the start of longer clips; None refuses clips over 30 s.
        rate: of the audio, in Hz; by default that of the extractor.
        progress: called with (clips done, all clips).

    Shape: per clip as `extract`, in the order of `clips`.

    Raises:
        AudioError: a clip that cannot be used; the text names it.
        ValueError: `rate` is not what the extractor was made for.
    """
    rate = extractor.sampling_rate if rate is None else rate
    if rate != extractor.sampling_rate:
        raise ValueError(
            f"rate is {rate} Hz, but {type(extractor).__name__} takes {extractor.sampling_rate} "
            "Hz: leave `rate` out"
        )
    features = []
    for done, clip in enumerate(clips, start=1):
        if max_seconds is None:  # by the header: hours of audio are not decoded to be refused
            check_length(round(duration(clip.path) * rate), rate, LIMIT_SECONDS, clip.path)
        audio = read_audio(clip.path, rate=rate, max_seconds=max_seconds)
        features.append(extract(audio, extractor))
        if progress is not None:
            progress(done, len(clips))
    return features


def collate(
    features: Sequence[np.ndarray], main_input_name: str, layout: Layout
) -> dict[str, Tensor]:
    """Pad the features of a batch with zeros on the right.

    Shape: [frames, bins] each -> [batch, frames, bins], or [batch, bins, frames] for
    "bins_first"; [samples] each -> [batch, samples]. `attention_mask`: [batch, frames or samples]
    int64, 1 where the features are real.

    Raises:
        ValueError: no features.
    """
    import torch  # here, since a folder can be read and checked without it

    if not features:
        raise ValueError("no features to collate: give at least one clip")
    longest = max(len(one) for one in features)
    padded = torch.zeros(len(features), longest, *features[0].shape[1:])
    attention_mask = torch.zeros(len(features), longest, dtype=torch.long)
    for index, one in enumerate(features):
        padded[index, : len(one)] = torch.from_numpy(one)
        attention_mask[index, : len(one)] = 1
    if layout == "bins_first":
        padded = padded.transpose(1, 2).contiguous()
    return {main_input_name: padded, "attention_mask": attention_mask}


def batches(
    lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int, shuffle: bool
) -> list[list[int]]:
    """The indexes of the clips of each batch; only the last one made may be smaller.

    When shuffling, clips of similar length share a batch: random chunks of 50 batches are sorted
    by length, and their batches put in random order. All of it follows from (seed, epoch).

    Raises:
        ValueError: a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"a batch size of {batch_size}: give at least 1")
    if not shuffle:
        return _cut(list(range(len(lengths))), batch_size)
    rng = np.random.default_rng([seed, epoch])
    made: list[list[int]] = []
    for chunk in _cut(rng.permutation(len(lengths)).tolist(), CHUNK * batch_size):
        made += _cut(sorted(chunk, key=lengths.__getitem__), batch_size)
    return [made[index] for index in rng.permutation(len(made))]


def _cut(indexes: list[int], size: int) -> list[list[int]]:
    return [indexes[start : start + size] for start in range(0, len(indexes), size)]
