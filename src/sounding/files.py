"""Writing files so that a kill or a full disk never leaves half a file behind."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed and renamed to `path`.

    On any error, an interrupt included, the temporary file is removed and `path` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path | str) -> None:
    """Remove the temporary files that a kill in the middle of `atomic_path` left beside `path`.

    Call it where no other process writes to `path`.
    """
    path = Path(path)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.????????.tmp"):
        leftover.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path | str, *, keep_others: bool = False) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; on success it takes the place of `path`.

    An existing `path` is replaced as a whole: a reader sees the old content or the new. A kill
    between the two renames leaves the old content as `.NAME.old`, from where `recover` takes it.
    A symbolic link is followed: its target is replaced.

    Args:
        keep_others: keep the files of an existing `path` that were not written anew.

    Raises:
        ValueError: `path` is a file.
    """
    path = Path(path).resolve()
    if path.is_file():
        raise ValueError(f"{path} is a file: give the name of a directory")
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        if keep_others and path.exists():
            _link_missing(path, temporary)
        if path.exists():
            os.replace(path, _old(path))
        os.replace(temporary, path)
    finally:
        recover(path)  # in case of an interrupt between the two
        shutil.rmtree(temporary, ignore_errors=True)


def recover(path: Path | str) -> None:
    """Put back what a kill in the middle of `atomic_directory` left beside `path`."""
    path = Path(path).resolve()
    if not path.exists() and _old(path).exists():
        os.replace(_old(path), path)
    shutil.rmtree(_old(path), ignore_errors=True)


def _old(path: Path) -> Path:
    return path.parent / f".{path.name}.old"


def _link_missing(source: Path, target: Path) -> None:
    """Hard-link what `target` lacks of `source`; the old files are not written to any more."""
    for item in source.iterdir():
        if (target / item.name).exists():
            continue
        if item.is_dir():
            shutil.copytree(item, target / item.name, copy_function=_link)
        else:
            _link(item, target / item.name)


def _link(source: Path | str, target: Path | str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def sha256(path: Path | str) -> str:
    """Of a file's content, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path | str, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8.

    Of the name of a file that is no UTF-8 the bytes become escapes, which JSON reads back.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` to `path` atomically, as indented JSON with a final newline."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
