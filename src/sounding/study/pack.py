"""A whole study in one file: all its `measured.json` as Parquet, about a fiftieth of their size.

A row is a run and a set of clips; its columns are those of a `measured.json`:

    run    all of the file but its sets, as JSON
    set    "validation", "test", "test at 10 dB", ...
    clips  file, label, speaker, seconds and weight, a list each
    rows   rule, budget, macs, masks, errors (a list for each draw), clips; a list of these

Nothing is rounded or left out, so a report of the pack is the report of the files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import atomic_path, open_regular
from ..typed import parse_json
from .measured import FORMAT, MEGABYTES, Json, Measured

PACK = "measured.parquet"
ENDING = Path(PACK).suffix
WHAT = "is no pack of a study"
VALUES = 200_000_000  # in all columns at most: a small file may stand for very many
LEVEL = 19  # of zstd
PAGE = 2**30  # bytes: the same clips, run after run, are seen as the same within a page only
# Few distinct values, which as numbers of a dictionary take some bits each; the texts of clips
# are smaller as they are, since zstd finds that they come again with every run.
DICTIONARY = [
    "rows.list.element.masks.list.element",
    "rows.list.element.errors.list.element.list.element",
]


def is_pack(path: Path | str) -> bool:
    """Return whether a name is that of a pack."""
    return Path(path).suffix == ENDING


def check_pack(path: Path | str) -> None:
    """Say before the work that a pack cannot be written.

    Raises:
        ValueError: a name by which no pack is known again.
        ModuleNotFoundError: pyarrow is not installed.
    """
    if not is_pack(path):
        raise UsageError(f"a pack is named *{ENDING}, such as {PACK}; got {os.fspath(path)!r}")
    _pyarrow()


def write_pack(runs: Iterable[tuple[Path, Json]], path: Path | str) -> None:
    """Write the values of many `measured.json` to one file, each checked before.

    Raises:
        ValueError: values that are none of a `measured.json`, or as `check_pack`.
        ModuleNotFoundError: pyarrow is not installed.
        WriteError: no room is left.
    """
    check_pack(path)
    pa, pq = _pyarrow()
    records: list[Json] = []
    for name, values in runs:
        Measured.from_values(values, name)
        records += _records(values)
    schema = _schema(pa, _kind_of_errors(pa, records))
    table = pa.Table.from_pylist(records, schema)
    with atomic_path(path) as temporary:
        pq.write_table(
            table,
            temporary,
            row_group_size=max(1, len(records)),
            compression="zstd",
            compression_level=LEVEL,
            data_page_size=PAGE,
            dictionary_pagesize_limit=PAGE,
            use_dictionary=DICTIONARY,
            write_page_checksum=True,
        )


def _records(values: Json) -> Iterator[Json]:
    """Yield the rows of the pack for one run."""
    run = {name: value for name, value in values.items() if name != "sets"}
    text = json.dumps({**run, "format": FORMAT}, ensure_ascii=False)
    for name, one in values["sets"].items():
        rows = [_packed(row) for row in one["rows"]]
        yield {"run": text, "set": name, "clips": one["clips"], "rows": rows}


def _packed(row: Json) -> Json:
    masks, correct = row["masks"], row.get("correct", [])  # which is of the first format
    errors = row.get("errors") or [[1 - int(digit) for digit in draw] for draw in correct]
    return {**row, "errors": errors, "masks": [masks] if isinstance(masks, str) else masks}


def _kind_of_errors(pa: Any, records: list[Json]) -> Any:
    """Return the smallest type that holds all of them as they are."""
    draws = [draw for one in records for row in one["rows"] for draw in row["errors"]]
    whole = all(isinstance(error, int) or error.is_integer() for draw in draws for error in draw)
    most = max((max(draw) for draw in draws), default=0)
    if whole and most < 2**8:
        return pa.uint8()
    return pa.uint16() if whole and most < 2**16 else pa.float64()


def _schema(pa: Any, errors: Any) -> Any:
    def given(kinds: dict[str, Any], optional: str) -> list[Any]:
        return [pa.field(name, kind, name == optional) for name, kind in kinds.items()]

    def many(kind: Any, nullable: bool = False) -> Any:
        return pa.list_(pa.field("element", kind, nullable))

    text, number = pa.string(), pa.float64()
    clips = {
        "file": many(text), "label": many(text, True), "speaker": many(text, True),
        "seconds": many(number), "weight": many(number),
    }  # fmt: skip
    rows = {
        "rule": text, "budget": number, "macs": number, "masks": many(text),
        "errors": many(many(errors)), "clips": many(pa.int32()),
    }  # fmt: skip
    columns = {
        "run": text,
        "set": text,
        "clips": pa.struct(given(clips, "weight")),
        "rows": many(pa.struct(given(rows, "clips"))),
    }
    return pa.schema(given(columns, ""))


def read_pack(path: Path | str) -> Iterator[tuple[Path, Json]]:
    """Yield the values of each `measured.json` in a pack, as `PACK/DATA/VARIANT-SEED`.

    `Measured.from_values` checks them.

    Raises:
        ValueError: not such a file, or a damaged one.
        ModuleNotFoundError: pyarrow is not installed.
    """
    pa, _ = _pyarrow()
    try:
        yield from _runs(Path(path))
    except (pa.ArrowException, OSError) as error:
        told = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{path} {WHAT}: {' '.join(told.split())}") from None


def _runs(path: Path) -> Iterator[tuple[Path, Json]]:
    text: str | None = None
    values: Json = {}
    for record in _read(path):
        if record["run"] != text:
            if values:
                yield _name(path, values), values
            text = record["run"]
            values = parse_json(record["run"], dict[str, Any], path, what=WHAT) | {"sets": {}}
        if record["set"] in values["sets"]:
            raise UsageError(f"{path} {WHAT}: a second set {record['set']!r} of one run")
        rows = [_unpacked(row) for row in record["rows"]]
        values["sets"][record["set"]] = {"clips": _known(record["clips"]), "rows": rows}
    if values:
        yield _name(path, values), values


def _read(path: Path) -> Iterator[Json]:
    """Yield the rows of a pack, one after the other."""
    pa, pq = _pyarrow()
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > MEGABYTES * 1e6:
            raise UsageError(f"{path} {WHAT}: it is longer than {MEGABYTES:,} MB")
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        known = [_schema(pa, kind) for kind in (pa.uint8(), pa.uint16(), pa.float64())]
        if parquet.schema_arrow not in known:
            raise UsageError(f"{path} {WHAT}: it has other columns")
        groups = [parquet.metadata.row_group(i) for i in range(parquet.num_row_groups)]
        columns = [group.column(i) for group in groups for i in range(group.num_columns)]
        if sum(column.num_values for column in columns) > VALUES:
            raise UsageError(f"{path} {WHAT}: it has more than {VALUES:,} values")
        for batch in parquet.iter_batches(batch_size=1):
            yield from batch.to_pylist()


def _unpacked(row: Json) -> Json:
    masks = row["masks"]
    return _known({**row, "masks": masks[0] if len(masks) == 1 else masks})


def _known(values: Json) -> Json:
    """Return the values without the names that have no value."""
    return {name: value for name, value in values.items() if value is not None}


def _name(path: Path, values: Json) -> Path:
    data = values.get("data")
    known = data.get("name") if isinstance(data, dict) else None
    return path / str(known) / f"{values.get('variant')}-{values.get('seed')}"


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "a study in one Parquet file needs pyarrow: pip install 'sounding[study]'",
            name="pyarrow",
        ) from None
    return pyarrow, parquet
