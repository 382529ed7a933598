"""Data sets of the hub, written once as a folder of clips, so that everything else is one path.

CACHE/corpora/NAME/metadata.csv       as `load_folder` reads it
CACHE/corpora/NAME/SPLIT/0000000.flac the audio as the data set has it, byte for byte
CACHE/corpora/NAME/source.json        what it was made from
CACHE/corpora/.NAME.partial/          only while it is being written; goes on from there
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..files import atomic_path, write_json
from ..progress import progress
from ..weights.cache import cache_dir
from .errors import DataError
from .names import is_file, normal
from .rows import METADATA
from .tables import parse_json, read_text

HUB_MARKS = ("*.parquet", "*/*.parquet", "*/*/*.parquet", "dataset_dict.json")
TARGETS = ("label", "labels", "text", "sentence", "transcription", "transcript")
TEXTS = ("text", "sentence", "transcription", "transcript")
SPEAKERS = ("speaker", "speaker_id")
SPLITS = {"train": ["train"], "validation": ["validation", "dev", "valid"], "test": ["test"]}


def hub_folder(
    source: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    splits: Mapping[str, Sequence[str]] | None = None,
    by: Mapping[str, Any] | None = None,
    target: str | None = None,
    speaker: str | None = None,
) -> Path:
    """Return the folder of clips of a data set, fetched and written first if it is not there.

    It needs `datasets` (the extra `hub`), which keeps a copy of its own in its cache; audio is
    not decoded, and no code of a data set is run. The folder stays as it is: to follow a data set
    that changed, remove it or name another `revision`.

    Args:
        source: an id on the hub, or a local directory of parquet files or of `save_to_disk`.
        config: of the data set, where it has several.
        revision: branch, tag or commit; by default the newest.
        splits: names in the data set for "train", "validation" and "test".
        by: {column: NAME, validation: [VALUE, ...], test: [VALUE, ...]}: the split by a column,
            as for the folds of ESC-50.
        target: column of the label, labels or text; by default one of `TARGETS`.
        speaker: its column; by default one of `SPEAKERS`.

    Raises:
        DataError: a data set that cannot be had, or whose columns do not say what to use.
        ModuleNotFoundError: without `datasets`.
    """
    wanted = {
        "config": config,
        "revision": revision,
        "splits": {ours: list(theirs) for ours, theirs in (splits or {}).items()},
        "by": dict(by or {}),
        "target": target,
        "speaker": speaker,
    }
    folder = cache_dir() / "corpora" / _folder_name(source, wanted)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if not folder.is_dir():
            _write(_load(source, config, revision), source, wanted, folder)
    return folder


def _folder_name(source: str, wanted: Mapping[str, Any]) -> str:
    local = Path(source)
    files = sorted(f for f in local.rglob("*") if f.exists()) if local.is_dir() else []
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    mark = hashlib.sha256(json.dumps([source, wanted, stats], sort_keys=True).encode()).hexdigest()
    return f"{re.sub('[^A-Za-z0-9._-]+', '--', source).strip('-.')[-60:]}-{mark[:8]}"


def _load(source: str, config: str | None, revision: str | None) -> Mapping[str, Any]:
    """Return the splits of a data set, by name."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{source}: no corpus on disk; to read it as a data set of the hub takes `datasets`: "
            "check the path, or pip install sounding[hub]"
        ) from None
    try:
        if (Path(source) / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(source)
        else:
            loaded = datasets.load_dataset(source, config, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"{source}: no corpus on disk, and as a data set of the hub it cannot be had "
            f"({reason[0]}): check the path or id, the network and your access to it"
        ) from None
    return loaded


def _write(loaded: Mapping[str, Any], source: str, wanted: Mapping[str, Any], folder: Path) -> None:
    """Write the clips that are not there yet, then the table, and give the folder its name."""
    parts = _parts(loaded, source, wanted["splits"])
    partial = folder.parent / f".{folder.name}.partial"
    prints = {theirs: getattr(data, "_fingerprint", "") for _, theirs, data in parts}
    _claim(partial, {"source": source, **wanted, "fingerprints": prints})
    rows: list[dict[str, str]] = []
    with progress(f"write {source}", sum(len(data) for _, _, data in parts)) as show:
        for ours, theirs, data in parts:
            columns = _columns(data.features, source, wanted)
            for row in _rows(data, columns, partial, theirs):
                rows.append({"split": _split(row, ours, wanted["by"]), "subset": theirs, **row})
                show(len(rows), "")
    with (
        atomic_path(partial / METADATA) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, folder)


def _claim(partial: Path, made_from: dict[str, Any]) -> None:
    """Go on in a partial folder that was made from the same, or begin anew."""
    mark = partial / "source.json"
    if partial.exists() and not (mark.exists() and _made_from(mark) == made_from):
        shutil.rmtree(partial)
    for leftover in partial.glob("**/.*.tmp"):  # of a kill in the middle of a clip
        leftover.unlink()
    if not partial.exists():
        write_json(mark, made_from)


def _made_from(mark: Path) -> Any:
    try:
        return parse_json(str(mark), read_text(mark))
    except DataError as error:
        raise DataError(f"{error}, or remove {mark.parent} to begin the copy anew") from None


def _parts(
    loaded: Mapping[str, Any], source: str, splits: Mapping[str, Sequence[str]]
) -> list[tuple[str, str, Any]]:
    """Return (our split, the name in the data set, its rows) for each split."""
    asked = [(ours, theirs) for ours, names in splits.items() for theirs in names]
    missing = [theirs for _, theirs in asked if theirs not in loaded]
    known = [(ours, name) for ours, names in SPLITS.items() for name in names if name in loaded]
    parts = asked or known
    if missing or not parts:
        raise DataError(
            f"{source}: no split {', '.join(missing) or 'train, validation or test'}, there is "
            f"{', '.join(loaded)}: name them as `splits` in a recipe"
        )
    return [(ours, theirs, loaded[theirs]) for ours, theirs in parts]


def _split(row: Mapping[str, str], split: str, by: Mapping[str, Any]) -> str:
    if not by:
        return split
    for name in ("validation", "test"):
        if normal(row[by["column"]]) in (normal(str(value)) for value in by.get(name, ())):
            return name
    return "train"


@dataclass(frozen=True)
class _Columns:
    """The columns of a data set by what they are; `speaker` is "" where there is none.

    `goal` is the target's name in metadata.csv.
    """

    audio: str
    target: str
    goal: str
    names: Sequence[str] | None  # of the numbers in `target`
    speaker: str
    others: tuple[str, ...]


def _columns(features: Mapping[str, Any], source: str, wanted: Mapping[str, Any]) -> _Columns:
    import datasets

    there = f"there is {', '.join(features)}"
    audio = [name for name, kind in features.items() if isinstance(kind, datasets.Audio)]
    targets = [wanted["target"]] if wanted["target"] else [n for n in TARGETS if n in features]
    speakers = [wanted["speaker"]] if wanted["speaker"] else [n for n in SPEAKERS if n in features]
    if not audio or not targets:
        what = "label or text" if audio else "audio"
        raise DataError(f"{source}: no column of {what}, {there}: name it as `target` in a recipe")
    for name in (targets[0], *speakers[:1], wanted["by"].get("column", targets[0])):
        if name not in features:
            raise DataError(f"{source}: no column {name!r}, {there}: name another in the recipe")
    target, kind = targets[0], features[targets[0]]
    inner = getattr(kind, "feature", None)  # of a list
    names = getattr(inner or kind, "names", None)
    goal = "labels" if inner is not None else "label"
    if goal == "label" and names is None and (target in TEXTS or "text" in target):
        goal = "text"
    used = {target, *speakers[:1], "file_name", goal, "speaker", "split", "subset"}
    others = (name for name, kind in features.items() if isinstance(kind, datasets.Value))
    return _Columns(
        audio[0], target, goal, names, (*speakers, "")[0], tuple(n for n in others if n not in used)
    )


def _rows(data: Any, columns: _Columns, folder: Path, part: str) -> Iterator[dict[str, str]]:
    """Write the audio that is not there yet, and yield the rows of metadata.csv."""
    import datasets

    data = data.cast_column(columns.audio, datasets.Audio(decode=False))
    there = {path.stem: path.name for path in (folder / part).glob("*.*")}
    for index, row in enumerate(data.remove_columns(columns.audio)):
        name = f"{index:07d}"
        if name not in there:
            there[name] = _save(data[index][columns.audio], folder / part / name)
        made = {"file_name": f"{part}/{there[name]}", columns.goal: _target(row, columns)}
        if columns.speaker:
            made["speaker"] = str(row[columns.speaker])
        yield {**made, **{other: str(row[other]) for other in columns.others}}


def _target(row: Mapping[str, Any], columns: _Columns) -> str:
    """Return the label, labels or text of a row; "" where it has none."""
    value = row[columns.target]
    values = value if columns.goal == "labels" else [value]
    known = [one for one in values or () if one is not None and not (columns.names and one < 0)]
    named = [columns.names[one] if columns.names else str(one) for one in known]
    if columns.goal == "labels" and any(";" in name for name in named):
        raise DataError(f"the labels {named} have a ';' in them, which stands between labels")
    return ";".join(named)


def _save(audio: Mapping[str, Any], path: Path) -> str:
    """Write the bytes of a clip, and return its file name."""
    suffix = Path(audio["path"] or "").suffix
    suffix = suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,5}", suffix) else ".audio"
    with atomic_path(path.with_suffix(suffix)) as temporary:
        if audio["bytes"] is None:
            if not is_file(audio["path"] or ""):
                raise DataError(
                    f"{path}: its audio would be in {audio['path']!r}, which is no file: load the "
                    "data set again, with its audio"
                )
            shutil.copyfile(audio["path"], temporary)
        else:
            temporary.write_bytes(audio["bytes"])
    return path.name + suffix
