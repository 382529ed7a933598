"""What an earlier run or a user wrote, read as values of a known type.

Whatever a file holds, there is one error of one line that names it, the place in it, what was
expected and what was found: no hang on a pipe, no traceback, no value that is nearly right.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from .errors import UsageError
from .files import SEAL, open_regular, seal_holds
from .plain_yaml import YAML_BYTES, Problem, named, parse_yaml, short, shown, to_yaml, whole

T = TypeVar("T")

__all__ = ["check", "named", "nearest", "parse_json", "read_json", "read_yaml", "to_yaml"]

MEGABYTES = 64  # at most, of a JSON file
STRICT: ConfigDict = {"extra": "forbid", "allow_inf_nan": False}
EXPECTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "names with values",
    "dataclass_type": "names with values",
}
UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")


def read_json(
    path: Path | str,
    kind: type[T],
    *,
    error: type[Exception] = UsageError,
    what: str = "cannot be used",
    advice: str = "",
    megabytes: float = MEGABYTES,
) -> T:
    """Read a JSON file as a value of a type: a dataclass, a TypedDict, `dict[str, float]`.

    A whole number may stand for any number; nothing else is turned into another type. Unknown and
    repeated names, NaN and infinity are refused. An object that `files.write_sealed_json` wrote is
    checked, and returned without its seal.

    Args:
        error: what to raise.
        what: is said of a file that is none.
        advice: what to do then.
        megabytes: of the file at most.

    Raises:
        error: a file that cannot be read, was changed, or holds something else.
    """
    try:
        data = _read(path, int(megabytes * 1e6))
        value = _parse(data)
        if isinstance(value, dict) and _open_seal(value, data):
            data = _dumped(value)
        return _validate(data, kind)
    except _Changed:
        end = f"; {advice}" if advice else ""
        raise error(
            f"{path} is not the file that was written (its sha256 differs): it is damaged or was "
            f"changed{end}"
        ) from None
    except Problem as problem:
        raise _error(error, path, what, problem, advice) from None


def parse_json(
    text: str | bytes,
    kind: type[T],
    name: Path | str,
    *,
    error: type[Exception] = UsageError,
    what: str = "cannot be used",
    advice: str = "",
) -> T:
    """Read JSON text as `read_json` reads a file; `name` says in an error where it comes from."""
    try:
        data = text.encode(errors="replace") if isinstance(text, str) else text
        _parse(data)
        return _validate(data, kind)
    except Problem as problem:
        raise _error(error, name, what, problem, advice) from None


def check(
    value: Any,
    kind: type[T],
    name: Path | str,
    *,
    error: type[Exception] = UsageError,
    what: str = "cannot be used",
    advice: str = "",
) -> T:
    """Give a value of `parse_json` or `read_yaml` a narrower type; arguments as there."""
    try:
        return _validate(_dumped(value), kind)
    except Problem as problem:
        raise _error(error, name, what, problem, advice) from None


def read_yaml(
    path: Path | str,
    kind: type[T],
    *,
    error: type[Exception] = UsageError,
    what: str = "cannot be used",
    advice: str = "",
) -> T:
    """Read a YAML file as `read_json` reads JSON; an empty one as no settings.

    Only what JSON has is taken: dates, numbers that are not decimal and tags are refused, and so
    are aliases that stand for very much.

    Raises:
        error: a file that cannot be read, or holds something else.
    """
    try:
        value = parse_yaml(_read(path, YAML_BYTES))
        return _validate(_dumped({} if value is None else value), kind)
    except Problem as problem:
        raise _error(error, path, what, problem, advice) from None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return what to say behind a name that is not known: the one that was meant, if any is close.

    >>> nearest("sedes", ["seeds", "data"])
    ': did you mean seeds?'
    >>> nearest("colour", ["seeds", "data"])
    ''
    """
    close = get_close_matches(name, known, n=1)
    return f": did you mean {close[0]}?" if close else ""


class _Changed(Exception):
    """The checksum of a file is not that of its content."""


def _error(
    error: type[Exception], name: Path | str, what: str, problem: Problem, advice: str
) -> Exception:
    return error(f"{name} {what} ({problem}): {advice}" if advice else f"{name} {what}: {problem}")


def _read(path: Path | str, limit: int) -> bytes:
    try:
        with open_regular(path) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise Problem(error.strerror or str(error)) from None
    except ValueError as error:  # a zero byte in the name
        raise Problem(str(error)) from None
    if len(data) > limit:
        raise Problem(f"it is longer than the {limit:,} bytes that such a file has at most")
    return data


def _open_seal(value: dict[str, Any], data: bytes) -> bool:
    """Take the seal out of an object, and check it; False where it has none.

    Raises:
        _Changed: the seal is not that of the bytes around it.
    """
    names = [n for n, text in value.items() if len(n) == len(SEAL) and _is_digest(text)]
    if SEAL not in value and not names:
        return False
    if names != [SEAL]:  # a flipped bit may be in the key itself
        raise _Changed
    seal = value.pop(SEAL)
    if not seal_holds(data, data.rfind(seal.encode()), seal):
        raise _Changed
    return True


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _dumped(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except RecursionError:
        raise Problem("it is nested too deeply") from None


def _parse(data: bytes) -> Any:
    """Parse any JSON, but for what is no JSON, is twice there, or does not fit into a number."""
    try:
        return json.loads(
            data.decode(),
            object_pairs_hook=_once,
            parse_constant=_not_finite,
            parse_float=_finite,
            parse_int=whole,
        )
    except RecursionError:
        raise Problem("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise Problem("it is no UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise Problem(f"it is no JSON: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in made if names.count(name) > 1)
        raise Problem(f"{named(twice)} stands there twice")
    return made


def _not_finite(text: str) -> float:
    raise Problem(f"{text} is no number that can be used")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _not_finite(short(text))
    return value


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    # in a list, as pydantic takes no configuration for a dataclass, but for what holds one
    return TypeAdapter(list[kind], config=STRICT)


def _validate(data: bytes, kind: Any) -> Any:
    try:
        return _adapter(kind).validate_json(b"[%b]" % data, strict=True)[0]
    except ValidationError as error:
        raise Problem(_told(error, kind)) from None


def _told(error: ValidationError, expected_kind: Any) -> str:
    """Tell the first problem that pydantic found, in a line; an unknown name before others."""
    found_all = error.errors(include_url=False, include_context=False)
    unknown = (one for one in found_all if one["type"] in UNKNOWN)
    first = next(unknown, found_all[0])
    location = first["loc"][1:]
    kind, place = first["type"], _place(location)
    if kind == "missing":
        return f"{place} is missing"
    if kind in UNKNOWN:
        known = _names_at(expected_kind, location[:-1])
        return f"{place} is not known{nearest(str(location[-1]), known)}"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Invalid JSON: ")
    expected = EXPECTED.get(kind) or message.removeprefix("Input should be ")
    if expected == message:  # of a check of ours, for instance
        return f"{place}: {message}" if place else message
    quote = ""
    if kind == "string_type" and isinstance(first["input"], bool | int | float):
        quote = ", which is a text only in quotes"
    found = f"expected {expected}, got {shown(first['input'])}{quote}"
    return f"{place}: {found}" if place else found


def _names_at(kind: Any, location: tuple[str | int, ...]) -> list[str]:
    """Return the names that a type has at a place; none where it has no names of its own."""
    for part in location:
        kind = _bare(kind)
        if is_dataclass(kind):
            kind = get_type_hints(kind).get(str(part))
        else:  # of a list, or of names with values
            kind = next((one for one in reversed(get_args(kind)) if one is not Ellipsis), None)
    kind = _bare(kind)
    return [field.name for field in fields(kind)] if is_dataclass(kind) else []


def _bare(kind: Any) -> Any:
    """Return a type without its annotations, and without None where it is optional."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in (Union, UnionType):
        return next(one for one in get_args(kind) if one is not NoneType)
    return kind


def _place(location: tuple[str | int, ...]) -> str:
    """Return a place as text, such as rows[3].value."""
    made = ""
    for part in location:
        if isinstance(part, int):
            made += f"[{part}]"
        else:
            made += ("." if made else "") + named(part)
    return made
