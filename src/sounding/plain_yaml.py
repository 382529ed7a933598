"""YAML as the values that JSON has, and nothing else: no dates, no tags, no numbers by surprise.

Here is also what reading YAML has in common with reading JSON (`typed`): a `Problem`, and how a
value is shown in it.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Iterator
from functools import cache
from typing import Any

YAML_BYTES = 2**18  # at most: settings are written by hand
YAML_VALUES = 20_000  # at most, with those that aliases stand for
YAML_DEPTH = 50
LARGEST = 2**63  # no whole number of ours is beyond it


class Problem(ValueError):
    """What is wrong with a file or a value, without its name."""


def parse_yaml(data: bytes) -> Any:
    """Return YAML as values that JSON has; None for an empty document.

    Raises:
        Problem: no YAML, or what JSON has not.
    """
    import yaml

    try:
        root = yaml.compose(data.decode(), Loader=_yaml()[0])
        return None if root is None else _Values().of(root)
    except UnicodeDecodeError:
        raise Problem("it is no UTF-8 text") from None
    except yaml.YAMLError as error:
        told = " ".join(str(error).split()).replace('in "<unicode string>", ', "in ")
        raise Problem(f"it is no YAML: {told}") from None
    except RecursionError:
        raise Problem("it is nested too deeply") from None


def to_yaml(value: dict[str, Any]) -> str:
    """Write values as YAML text that `read_yaml` reads."""
    import yaml

    return yaml.dump(value, Dumper=_yaml()[1], sort_keys=False)


@cache
def _yaml() -> tuple[Any, Any]:
    """Make loader and dumper of PyYAML that know 1e-4 for a number, as YAML 1.2 does."""
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
        """Return the value of a node."""
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
            raise _at(node, f"{short(node.value)!r} is a {kind}: write a text in quotes")
        raise _at(node, f"the tag {short(node.tag)} is not allowed")

    def pairs(self, node: Any, depth: int) -> Iterator[tuple[str, Any]]:
        """Yield names with values; those that are merged in come first, so that others win."""
        own: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                yield from self.merged(value, depth)
                continue
            name = self.of(key, depth + 1)
            if not isinstance(name, str):
                text = key.value if key.id == "scalar" else shown(name)
                raise _at(key, f"the name {short(text)} is no text: write it in quotes")
            if name in own:
                raise _at(key, f"{named(name)} stands there twice")
            own[name] = self.of(value, depth + 1)
        yield from own.items()

    def merged(self, node: Any, depth: int) -> Iterator[tuple[str, Any]]:
        """Yield the pairs of what `<<` names: one mapping, or several of which the first wins."""
        for one in reversed(node.value if node.id == "sequence" else [node]):
            if one.id != "mapping":
                raise _at(one, "<< takes names with values")
            yield from self.pairs(one, depth + 1)


def _at(node: Any, problem: str) -> Problem:
    return Problem(f"line {node.start_mark.line + 1}: {problem}")


def _decimal(node: Any) -> int:
    text = node.value.replace("_", "")
    if not text.lstrip("+-").isdecimal() or text.lstrip("+-")[:1] == "0" != text.lstrip("+-"):
        raise _at(
            node,
            f"{node.value} would be a number that is not decimal: write it without zeros in front, "
            "or in quotes for a text",
        )
    return whole(text)


def _truth(node: Any) -> bool:
    if node.value.lower() not in ("yes", "true", "on", "no", "false", "off"):
        raise _at(node, f"{short(node.value)!r} is neither true nor false")
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


def whole(text: str) -> int:
    """Read a whole number.

    Raises:
        Problem: one that is too large to be meant.
    """
    if len(text) > len(str(LARGEST)) or abs(int(text)) >= LARGEST:
        raise Problem(f"the number {short(text)} is too large")
    return int(text)


def shown(value: Any) -> str:
    """Return a value as an error shows it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list | dict):
        return f"a list of {len(value)}" if isinstance(value, list) else "names with values"
    return reprlib.repr(value)


def named(name: str) -> str:
    """Return a name that others chose as an error shows it: short, on one line."""
    return short(name) if name.isprintable() else ascii(short(name))


def short(text: str) -> str:
    """Return a text that is not too long for an error."""
    return text if len(text) <= 40 else f"{text[:37]}..."
