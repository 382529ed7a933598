"""Reading what an earlier run or a user wrote, as values of a known type.

Whatever a file holds, there is one error of one line that names it, the place in it, what was
expected and what was found: no hang on a pipe, no traceback, no value that is nearly right.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from .files import SEAL, open_regular, seal_holds

T = TypeVar("T")

MEGABYTES = 64  # at most, of a JSON file
YAML_BYTES = 2**18  # at most: settings are written by hand
YAML_VALUES = 20_000  # at most, with those that aliases stand for
YAML_DEPTH = 50
LARGEST = 2**63  # no whole number of ours is beyond it
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


class _Problem(ValueError):
    """What is wrong with a file or a value, without its name."""


def read_json(
    path: Path | str,
    kind: type[T],
    *,
    error: type[Exception] = ValueError,
    what: str = "cannot be used",
    advice: str = "",
    megabytes: float = MEGABYTES,
) -> T:
    """Read a JSON file as a value of a type: a dataclass, a TypedDict, `dict[str, float]`.

    A whole number may stand for any number; nothing else is turned into another type. Unknown and
    repeated names, NaN and infinity are refused. An object that `files.write_sealed_json` wrote is
    checked, and given without its seal.

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
    except _Problem as problem:
        raise _error(error, path, what, problem, advice) from None


def parse_json(
    text: str | bytes,
    kind: type[T],
    name: Path | str,
    *,
    error: type[Exception] = ValueError,
    what: str = "cannot be used",
    advice: str = "",
) -> T:
    """Read JSON text as `read_json` reads a file; `name` says in an error where it comes from."""
    try:
        data = text.encode(errors="replace") if isinstance(text, str) else text
        _parse(data)
        return _validate(data, kind)
    except _Problem as problem:
        raise _error(error, name, what, problem, advice) from None


def check(
    value: Any,
    kind: type[T],
    name: Path | str,
    *,
    error: type[Exception] = ValueError,
    what: str = "cannot be used",
    advice: str = "",
) -> T:
    """Give a value of `parse_json` or `read_yaml` a narrower type; arguments as there."""
    try:
        return _validate(_dumped(value), kind)
    except _Problem as problem:
        raise _error(error, name, what, problem, advice) from None


def read_yaml(
    path: Path | str,
    kind: type[T],
    *,
    error: type[Exception] = ValueError,
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
        value = _plain(_read(path, YAML_BYTES))
        return _validate(_dumped({} if value is None else value), kind)
    except _Problem as problem:
        raise _error(error, path, what, problem, advice) from None


class _Changed(Exception):
    """The checksum of a file is not that of its content."""


def _error(
    error: type[Exception], name: Path | str, what: str, problem: _Problem, advice: str
) -> Exception:
    return error(f"{name} {what} ({problem}): {advice}" if advice else f"{name} {what}: {problem}")


def _read(path: Path | str, limit: int) -> bytes:
    try:
        with open_regular(path) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise _Problem(error.strerror or str(error)) from None
    except ValueError as error:  # a zero byte in the name
        raise _Problem(str(error)) from None
    if len(data) > limit:
        raise _Problem(f"it is longer than the {limit:,} bytes that such a file has at most")
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
        raise _Problem("it is nested too deeply") from None


def _parse(data: bytes) -> Any:
    """Any JSON, but for what is no JSON, is twice there, or does not fit into a number."""
    try:
        return json.loads(
            data.decode(),
            object_pairs_hook=_once,
            parse_constant=_not_finite,
            parse_float=_finite,
            parse_int=_whole,
        )
    except RecursionError:
        raise _Problem("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise _Problem("it is no UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise _Problem(f"it is no JSON: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in made if names.count(name) > 1)
        raise _Problem(f"{_named(twice)} stands there twice")
    return made


def _not_finite(text: str) -> float:
    raise _Problem(f"{text} is no number that can be used")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _not_finite(_short(text))
    return value


def _whole(text: str) -> int:
    if len(text) > len(str(LARGEST)) or abs(int(text)) >= LARGEST:
        raise _Problem(f"the number {_short(text)} is too large")
    return int(text)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    # in a list, as pydantic takes no configuration for a dataclass, but for what holds one
    return TypeAdapter(list[kind], config=STRICT)


def _validate(data: bytes, kind: Any) -> Any:
    try:
        return _adapter(kind).validate_json(b"[%b]" % data, strict=True)[0]
    except ValidationError as error:
        raise _Problem(_told(error)) from None


def _told(error: ValidationError) -> str:
    """The first problem that pydantic found, in a line."""
    first = error.errors(include_url=False, include_context=False)[0]
    kind, place = first["type"], _place(first["loc"][1:])
    if kind == "missing":
        return f"{place} is missing"
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{place} is not known"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Invalid JSON: ")
    expected = EXPECTED.get(kind) or message.removeprefix("Input should be ")
    if expected == message:  # of a check of ours, for instance
        return f"{place}: {message}" if place else message
    quote = ""
    if kind == "string_type" and isinstance(first["input"], bool | int | float):
        quote = ", which is a text only in quotes"
    found = f"expected {expected}, got {_shown(first['input'])}{quote}"
    return f"{place}: {found}" if place else found


def _place(location: tuple[str | int, ...]) -> str:
    """As rows[3].value."""
    made = ""
    for part in location:
        if isinstance(part, int):
            made += f"[{part}]"
        else:
            made += ("." if made else "") + _named(part)
    return made


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list | dict):
        return f"a list of {len(value)}" if isinstance(value, list) else "names with values"
    return reprlib.repr(value)


def _named(name: str) -> str:
    return _short(name) if name.isprintable() else ascii(_short(name))


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


# --- YAML -----------------------------------------------------------------------------------


def _plain(data: bytes) -> Any:
    """YAML as values that JSON has; None for an empty document."""
    import yaml

    try:
        root = yaml.compose(data.decode(), Loader=_yaml()[0])
        return None if root is None else _Values().of(root)
    except UnicodeDecodeError:
        raise _Problem("it is no UTF-8 text") from None
    except yaml.YAMLError as error:
        told = " ".join(str(error).split()).replace('in "<unicode string>", ', "in ")
        raise _Problem(f"it is no YAML: {told}") from None
    except RecursionError:
        raise _Problem("it is nested too deeply") from None


def to_yaml(value: dict[str, Any]) -> str:
    """Write values as YAML text that `read_yaml` gives back."""
    import yaml

    return yaml.dump(value, Dumper=_yaml()[1], sort_keys=False)


@cache
def _yaml() -> tuple[Any, Any]:
    """Loader and dumper of PyYAML that know 1e-4 for a number, as YAML 1.2 does."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    class Dumper(yaml.SafeDumper):
        pass

    number = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
    for one in (Loader, Dumper):
        one.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return Loader, Dumper


class _Values:
    """Makes values of the nodes of a YAML document, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def of(self, node: Any, depth: int = 0) -> Any:
        """The value of a node."""
        self.count += 1
        if self.count > YAML_VALUES:
            raise _at(node, "its aliases stand for too much")
        if depth > YAML_DEPTH:
            raise _at(node, "it is nested too deeply")
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind == "map" and node.id == "mapping":
            return dict(self.pairs(node, depth))
        if kind == "seq" and node.id == "sequence":
            return [self.of(item, depth + 1) for item in node.value]
        if node.id == "scalar" and kind in SCALARS:
            return SCALARS[kind](node)
        if node.id == "scalar":
            raise _at(node, f"{_short(node.value)!r} is a {kind}: write a text in quotes")
        raise _at(node, f"the tag {_short(node.tag)} is not allowed")

    def pairs(self, node: Any, depth: int) -> Iterator[tuple[str, Any]]:
        """Names with values; those that are merged in come first, so that others win."""
        own: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                yield from self.merged(value, depth)
                continue
            name = self.of(key, depth + 1)
            if not isinstance(name, str):
                shown = key.value if key.id == "scalar" else _shown(name)
                raise _at(key, f"the name {_short(shown)} is no text: write it in quotes")
            if name in own:
                raise _at(key, f"{_named(name)} stands there twice")
            own[name] = self.of(value, depth + 1)
        yield from own.items()

    def merged(self, node: Any, depth: int) -> Iterator[tuple[str, Any]]:
        """The pairs of what `<<` names: one mapping, or several of which the first wins."""
        for one in reversed(node.value if node.id == "sequence" else [node]):
            if one.id != "mapping":
                raise _at(one, "<< takes names with values")
            yield from self.pairs(one, depth + 1)


def _at(node: Any, problem: str) -> _Problem:
    return _Problem(f"line {node.start_mark.line + 1}: {problem}")


def _decimal(node: Any) -> int:
    text = node.value.replace("_", "")
    if not text.lstrip("+-").isdecimal() or text.lstrip("+-")[:1] == "0" != text.lstrip("+-"):
        raise _at(
            node,
            f"{node.value} would be a number that is not decimal: write it without zeros in front, "
            "or in quotes for a text",
        )
    return _whole(text)


def _truth(node: Any) -> bool:
    if node.value.lower() not in ("yes", "true", "on", "no", "false", "off"):
        raise _at(node, f"{_short(node.value)!r} is neither true nor false")
    return node.value.lower() in ("yes", "true", "on")


def _fraction(node: Any) -> float:
    text = node.value.replace("_", "")
    try:
        value = float(text)
    except ValueError:  # .inf, and 1:30.5, which is a number to the base of 60
        value = math.nan
    if not math.isfinite(value):
        raise _at(node, f"{node.value} is no number that can be used, a text only in quotes")
    return value


SCALARS: dict[str, Any] = {
    "str": lambda node: node.value,
    "null": lambda node: None,
    "bool": _truth,
    "int": _decimal,
    "float": _fraction,
}
