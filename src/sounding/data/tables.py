"""Lists that come with audio, as CSV, JSON or lines: read whole, or one error with its place."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import DataError
from .names import composed, lines

Row = tuple[int, dict[str, str]]  # the number of its line, and its values by column


def read_text(path: Path) -> str:
    """Read a text file that must be UTF-8.

    Raises:
        DataError: no regular file, one that cannot be read, or other bytes; the text says where.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe may wait for ever
            raise DataError(f"{path}: not a regular file, expected a list as a text file")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}): check its rights") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: line {number}: not UTF-8 ({error.reason}): save it as UTF-8"
        ) from None
    if "\0" in text:
        number = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path}: line {number}: a NUL byte, expected text: copy the file again")
    return text


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Read the lines of a text file that are not blank, with their numbers.

    Raises:
        DataError: as `read_text`.
    """
    numbered = enumerate(re.split("\r\n|\r|\n", read_text(path)), start=1)
    return [(number, line.strip()) for number, line in numbered if line.strip()]


def read_csv(path: Path, needed: Sequence[str] = ()) -> tuple[list[str], list[Row]]:
    """Read a CSV file whose first line names the columns.

    Args:
        needed: columns that it must have, where it is the list of a published corpus.

    Raises:
        DataError: as `read_text`, or a file that is no such table; the text says where and why.
    """
    rows, ragged = [], []
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        columns = [composed(name).strip() for name in next(reader, [])]
        for values in reader:
            if len(values) == len(columns):
                rows.append((reader.line_num, dict(zip(columns, values, strict=True))))
            elif values:
                ragged.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}: write it again as CSV") from None
    twice = [name for name, count in Counter(columns).items() if count > 1 and name]
    if twice:
        raise DataError(f"{path}: the column {twice[0]!r} is there twice: remove one")
    lacking = [name for name in needed if name not in columns]
    if lacking:
        raise DataError(f"{path}: no column {', '.join(lacking)}: copy the file again")
    if ragged and needed:
        raise DataError(
            f"{path}: line {ragged[0]} is cut, or has more values than the {len(columns)} columns: "
            "copy the file again"
        )
    if ragged:
        raise DataError(
            f"{path}: {lines(ragged)} more or fewer values than the {len(columns)} columns: "
            "put values with a comma in double quotes"
        )
    return columns, rows


def read_json_lines(path: Path) -> tuple[list[str], list[Row]]:
    """Read a file with one JSON object a line, whose values are texts, numbers or lists of texts.

    Lists become one text with ";" between. What a line does not have is empty.

    Raises:
        DataError: as `read_text`, or a line that is no such object.
    """
    rows = []
    for number, line in read_lines(path):
        where = f"{path}: line {number}"
        values = parse_json(where, line)
        if not isinstance(values, dict):
            raise DataError(f"{where}: {_kind(values)}, expected an object: {{...}}")
        rows.append((number, {composed(k).strip(): _text(where, k, v) for k, v in values.items()}))
    columns = list(dict.fromkeys(name for _, values in rows for name in values))
    return columns, [(n, {name: values.get(name, "") for name in columns}) for n, values in rows]


def parse_json(where: str, text: str) -> Any:
    """Parse JSON that somebody else wrote.

    Args:
        where: what to begin the error with.

    Raises:
        DataError: it is none, has a name twice or NaN, or is nested too deep.
    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{where}: no JSON that can be read ({reason}): write it again") from None


def number(where: str, name: str, text: str, most: float = math.inf) -> float:
    """Read a number that is 0 or more.

    Args:
        where: what to begin the error with.
        name: of the number.

    Raises:
        DataError: another text, a negative or infinite number, NaN, or one above `most`.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= most or value == math.inf:
        raise DataError(
            f"{where}: {name} is {text[:40]!r}, expected a number from 0 on: copy the file again"
        )
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        (name, _), *_ = (pair for pair in Counter(k for k, _ in pairs).items() if pair[1] > 1)
        raise ValueError(f"the name {name!r} is there twice")
    return made


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _kind(value: object) -> str:
    kinds = {list: "a list", dict: "an object", str: "a text", bool: "true or false"}
    return "null" if value is None else kinds.get(type(value), "a number")


def _text(where: str, name: str, value: Any) -> str:
    """Return a value of a line as a text."""
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(one, str) and ";" not in one for one in value):
        return ";".join(value)
    single = isinstance(value, str | int | float) and not isinstance(value, bool)
    if single and value not in (math.inf, -math.inf):
        return str(value)
    raise DataError(
        f"{where}: {name!r} is {_kind(value)}, expected a text, a number, or a list of texts "
        "without ';'"
    )
