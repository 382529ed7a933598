"""Names of files and classes, whatever form they come in; and whether a file is in its folder."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060\u00ad"  # marks and joiners without a width
SHOWN = 5  # names in an error
LONGEST = 100  # characters of a name in an error


def normal(text: str) -> str:
    r"""Bring a text into composed letters (NFC), with nothing invisible around it.

    >>> normal(" caf\u0065\u0301 ")
    'café'
    """
    return composed(text).strip().strip(INVISIBLE).strip()


def folded(text: str) -> str:
    """Return what is left of a name without its case, spaces, and what cannot be seen.

    >>> folded("Hot  Dog") == folded("hotdog")
    True
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in text if not c.isspace() and unicodedata.category(c) != "Cf")


def composed(text: str) -> str:
    """Put letters and their accents together (NFC); a Mac's zip has them apart."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def plain_name(name: str) -> str:
    """Bring a file name into one form: composed, with forward slashes, without a leading `./`."""
    return str(PurePosixPath(composed(name.replace("\\", "/")))) if name else ""


def name_in(root: Path, path: Path | str) -> str:
    """Name a file within its folder: composed, and with forward slashes."""
    inside = str(path).removeprefix(f"{root}{os.sep}")  # `relative_to` takes ten times as long
    return composed(inside.replace(os.sep, "/"))


def escapes(name: str) -> bool:
    """Return whether a name leaves its folder, on this system or another."""
    forms = PurePosixPath(name), PureWindowsPath(name)
    return any(path.anchor or ".." in path.parts for path in forms)


def is_file(path: Path | str) -> bool:
    """Return whether there is a regular file of that name; no name is too odd to ask about."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):  # too long, or with a NUL
        return False


class Places:
    """The files of a folder by name.

    Args:
        root: the folder, which may be a link.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._real = os.path.realpath(root)
        self._inside: dict[str, bool] = {}  # by directory
        self._listed: dict[tuple[Path, Callable[[str], str]], dict[str, str]] = {}

    def find(self, name: str) -> Path | None:
        """Find the file of a name: as it is, with forward slashes, or in another Unicode form."""
        for given in dict.fromkeys((name, name.replace("\\", "/"), plain_name(name))):
            if is_file(self.root / given):
                return self.root / given
        return self._match(name, str)

    def nearly(self, name: str) -> str:
        """Return the name of a file that differs from `name` in case only; "" for none."""
        found = self._match(name, str.casefold)
        return "" if found is None else self.name(found)

    def name(self, path: Path | str) -> str:
        """Return what a file is called within the folder."""
        return name_in(self.root, path)

    def leads_out(self, path: Path) -> bool:
        """Return whether a file lies elsewhere, by its name or by a symbolic link on the way."""
        parent = os.path.dirname(path)
        if parent not in self._inside:
            self._inside[parent] = self._contains(parent)
        return not self._inside[parent] or (os.path.islink(path) and not self._contains(path))

    def _contains(self, path: Path | str) -> bool:
        try:
            real = os.path.realpath(path)
        except ValueError:  # a NUL
            return False
        return real == self._real or real.startswith(os.path.join(self._real, ""))

    def _match(self, name: str, form: Callable[[str], str]) -> Path | None:
        """Find the file each part of whose composed name has the same form as that of `name`."""
        at = self.root
        for part in PurePosixPath(plain_name(name)).parts:
            if (at, form) not in self._listed:
                entries = sorted(os.listdir(at)) if at.is_dir() else []
                self._listed[at, form] = {form(composed(entry)): entry for entry in entries}
            actual = self._listed[at, form].get(form(part))
            if actual is None:
                return None
            at = at / actual
        return at if is_file(at) else None


def some(names: Iterable[object]) -> str:
    """Return the first few names, and how many there are more."""
    known = [str(name) for name in names]
    shown = [name if len(name) <= LONGEST else f"{name[:LONGEST]}..." for name in known[:SHOWN]]
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return ", ".join(shown) + more


def lines(numbers: Sequence[int]) -> str:
    """Say how many rows there are, and in which lines."""
    rows = "1 row has" if len(numbers) == 1 else f"{len(numbers)} rows have"
    return f"{rows} (line {some(numbers)})"
