"""Registries: what ships, what other packages bring, and what a script adds, by name.

A package outside brings its own by an entry point of the group of a registry::

    [project.entry-points."sounding.tasks"]
    loudness = "my_package.loudness:Loudness"
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from threading import Lock
from typing import Any, Generic, TypeVar

from .errors import UsageError

Value = TypeVar("Value")


class UnknownNameError(UsageError, KeyError):
    """Nothing is registered under a name."""

    __str__ = Exception.__str__  # that of KeyError shows the text in quotes


class Registry(Mapping[str, Value], Generic[Value]):
    """Values by their names, in the order in which they were added.

    What ships is added when the package `home` is imported, at the first look-up. So a module
    below that package can ask for the names without importing upward. What ships may be added by
    the place it is imported from when it is first asked for (`add_later`): the names are quick.

    Args:
        what: one of the values, for messages: "task".
        home: the package that adds what ships.
        group: of the entry points of other packages.

    Example:
        >>> units = Registry("unit", home="sounding.registry", group="sounding.units")
        >>> units.add("hour", 3600)
        >>> units["hour"], "minute" in units
        (3600, False)
        >>> units["our"]
        Traceback (most recent call last):
        sounding.registry.UnknownNameError: unknown unit 'our', did you mean 'hour'? Known: hour
    """

    def __init__(self, what: str, *, home: str, group: str) -> None:
        self.what, self.home, self.group = what, home, group
        self._values: dict[str, Value | EntryPoint] = {}
        self._complete = False
        self._lock = Lock()
        self._default = ""

    @property
    def default(self) -> str:
        """The name that is taken where none is given, as the home package sets it."""
        import_module(self.home)
        return self._default

    @default.setter
    def default(self, name: str) -> None:
        self._default = name

    def add(self, name: str, value: Value) -> None:
        """Add a value under a name of its own.

        Raises:
            ValueError: a name that is taken, or is no name.
        """
        self._add(name, value)

    def add_later(self, name: str, value: str) -> None:
        """Add a value that is imported when it is first asked for.

        Args:
            value: "package.module:attribute".

        Raises:
            ValueError: a name that is taken, or is no name.
        """
        self._add(name, EntryPoint(name, value, self.group))

    def __getitem__(self, name: str) -> Value:
        """Return the value of a name.

        Raises:
            UnknownNameError: a ValueError that lists the names and tells the nearest.
        """
        self._load()
        value = self._values.get(name)
        if isinstance(value, EntryPoint):
            value = self._import(value)
        if value is None:
            raise UnknownNameError(unknown_name(self.what, name, self))
        return value

    def __iter__(self) -> Iterator[str]:
        self._import_others()
        return iter(tuple(self._values))

    def __len__(self) -> int:
        self._import_others()
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        self._import_others()
        return name in self._values

    def _add(self, name: str, value: Value | EntryPoint) -> None:
        import_module(self.home)  # so that whoever takes a name that ships is told, and not we
        self._put(name, value)

    def _put(self, name: str, value: Value | EntryPoint) -> None:
        if not isinstance(name, str) or not name:
            raise UsageError(f"the name of a {self.what} is a text; got {name!r}")
        if name in self._values:
            raise UsageError(
                f"there is a {self.what} {name!r} already, {_shown(self._values[name])}: choose "
                f"another name for {_shown(value)}"
            )
        self._values[name] = value

    def _load(self) -> None:
        """Add what ships and what other packages bring, once."""
        import_module(self.home)  # which is quick from the second time on, and waits for a thread
        with self._lock:
            if self._complete:
                return
            for entry in entry_points(group=self.group):
                try:
                    self._put(entry.name, entry)
                except ValueError as error:
                    self._warn(entry, error)
            self._complete = True

    def _import_others(self) -> None:
        """Import what other packages bring, so that a name is told only if it has a value."""
        self._load()
        for value in tuple(self._values.values()):
            if isinstance(value, EntryPoint) and value.dist is not None:
                self._import(value)

    def _import(self, entry: EntryPoint) -> Value | None:
        """Import a value; one of another package that cannot be is left out with a warning."""
        try:
            value: Value = entry.load()
        except Exception as error:
            if entry.dist is None:  # one that ships: no install should lack it
                raise
            self._values.pop(entry.name, None)
            self._warn(entry, error)
            return None
        self._values[entry.name] = value
        return value

    def _warn(self, entry: EntryPoint, error: Exception) -> None:
        package = entry.dist.name if entry.dist is not None else "an unknown package"
        warnings.warn(
            f"the {self.what} {entry.name!r} of the package {package} ({entry.value}) is left out: "
            f"{type(error).__name__}: {error}",
            stacklevel=4,
        )


def unknown_name(what: str, name: object, known: Collection[str]) -> str:
    """Say that nothing has a name, which one is the nearest, and what there is."""
    near = get_close_matches(str(name), known, n=1)
    hint = f", did you mean {near[0]!r}?" if near else "."
    return f"unknown {what} {name!r}{hint} Known: {', '.join(known)}"


def _shown(value: Any) -> str:
    if isinstance(value, EntryPoint):
        return value.value
    return f"{value.__module__}.{value.__qualname__}" if isinstance(value, type) else repr(value)


POLICIES: Registry[Any] = Registry("policy", home="sounding.policies", group="sounding.policies")
BACKBONES: Registry[Any] = Registry(
    "backbone", home="sounding.model.backbones", group="sounding.backbones"
)
TASKS: Registry[Any] = Registry("task", home="sounding.tasks", group="sounding.tasks")
METHODS: Registry[Any] = Registry("method", home="sounding.methods", group="sounding.methods")
