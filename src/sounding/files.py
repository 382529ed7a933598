"""Files and directories that are there as a whole or not at all, after a kill or on a full disk.

What is being written stands beside its target under a temporary name, which says whose it is:
.NAME.HASH.HOST-PID.RANDOM.tmp. What a killed process left is found by that name and removed by the
next write beside it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import platform
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Any

from .errors import SoundingError, UsageError

LOCK = ".lock"  # in a directory that one process at a time works on
SEAL = "seal"  # key of the checksum of a JSON file
UNSET = "0" * 64  # stands where a checksum will, while it is taken
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LONGEST = 255  # bytes of a name, on nearly all file systems
SHOWN = 60  # bytes of a target's name that a temporary name begins with
DAY = 24 * 3600.0
WRITING: set[str] = set()  # temporary names of this process
MAKING = threading.Lock()  # while one is made
TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.([0-9a-f]{8})-([0-9]+)\.[^.]{8}\.tmp", re.DOTALL)


class WriteError(SoundingError, OSError):
    """There is no room for a file; the text says where, and what to do."""

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed and renamed to `path`.

    On any error, an interrupt included, the temporary file is removed and `path` is untouched.

    Raises:
        WriteError: no room is left.
    """
    path = Path(path)
    with _room(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _tidy(path.parent.absolute())
        with MAKING:
            handle, name = tempfile.mkstemp(prefix=_prefix(path), suffix=".tmp", dir=path.parent)
            temporary = Path(name)
            WRITING.add(temporary.name)
        os.close(handle)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
            WRITING.discard(temporary.name)


@contextmanager
def atomic_directory(path: Path | str, *, keep_others: bool = False) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; on success it takes the place of `path`.

    An existing `path` is replaced as a whole, the last of several writers wins. A kill between the
    two renames leaves the old content as `.NAME.old`, from where `recover` takes it. A symbolic
    link is followed: its target is replaced.

    Args:
        keep_others: keep the files of an existing `path` that were not written anew.

    Raises:
        UsageError: `path` is a file.
        WriteError: no room is left.
    """
    path = Path(path).resolve()
    if path.is_file():
        raise UsageError(f"{path} is a file: give the name of a directory")
    with temporary_directory(path) as temporary:
        recover(path)
        yield temporary
        _open_up(temporary)
        with _renaming(path.parent):
            _put_back(path)
            if keep_others and path.exists():
                _link_missing(path, temporary)
            try:
                if path.exists():
                    os.replace(path, _old(path))
                os.replace(temporary, path)
            finally:
                _put_back(path)  # in case of an interrupt between the two


def _open_up(directory: Path) -> None:
    """Give all in a directory the rights of the umask: safetensors writes for its user alone."""
    mask = _umask()
    for path in (directory, *directory.rglob("*")):
        if not path.is_symlink():
            os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~mask)


@contextmanager
def temporary_directory(beside: Path | str) -> Iterator[Path]:
    """Yield a directory beside a path, for what is big; it is removed, after a kill too.

    Raises:
        WriteError: no room is left.
    """
    beside = Path(beside)
    with _room(beside):
        beside.parent.mkdir(parents=True, exist_ok=True)
        _tidy(beside.parent.absolute())
        with MAKING:
            made = Path(tempfile.mkdtemp(prefix=_prefix(beside), suffix=".tmp", dir=beside.parent))
            WRITING.add(made.name)
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)
            WRITING.discard(made.name)


def remove_leftovers(path: Path | str) -> None:
    """Remove what kills in the middle of a write left beside `path`, whoever wrote it.

    Call it where no other process writes to `path`.
    """
    path = Path(path)
    before = re.compile(rf"\.{re.escape(path.name)}\.[^.]{{8}}\.tmp")  # of earlier versions
    for leftover in _listed(path.parent):
        name = leftover.name
        ours = name.startswith(_target(path)) and TEMPORARY.fullmatch(name)
        if ours or before.fullmatch(name):
            _remove(leftover)


def remove_dead(directory: Path | str) -> None:
    """Remove what dead processes were writing into `directory`, to any target."""
    for leftover in _listed(Path(directory)):
        match = TEMPORARY.fullmatch(leftover.name)
        if match and not _may_live(match[1], int(match[2]), leftover):
            _remove(leftover)


_tidy = cache(remove_dead)  # once for each directory: a write is not to list thousands of files


def _may_live(host: str, pid: int, leftover: Path) -> bool:
    """Return whether the process that writes to a temporary path may still be at it."""
    if host != _host():  # whose processes we cannot see
        try:
            return time.time() - leftover.lstat().st_mtime < DAY
        except OSError:
            return True
    if pid == os.getpid():  # or of one before us, as every first process of a container is 1
        with MAKING:
            return leftover.name in WRITING
    import psutil

    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def _listed(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _prefix(path: Path) -> str:
    """Return what a temporary name for this target by this process begins with."""
    return f"{_target(path)}{_host()}-{os.getpid()}."


def _target(path: Path) -> str:
    return f".{_short(path.name)}.{_hash(os.fsencode(path.name))}."


def _short(name: str) -> str:
    """Return as much of a name as leaves room for more behind it."""
    while len(os.fsencode(name)) > SHOWN:
        name = name[:-1]
    return name


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:8]


@cache
def _host() -> str:
    """Return the machine and the namespace in which process ids mean something."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return _hash("\n".join(parts).encode())


@contextmanager
def _room(path: Path) -> Iterator[None]:
    """Say of a full disk which path there was no room for."""
    try:
        yield
    except Exception as error:
        code = _code(error)
        if code not in NO_ROOM:
            raise
        raise WriteError(
            code,
            f"{path} cannot be written ({os.strerror(code)}): what was there before is unchanged; "
            f"make room in {path.parent}, and the same command goes on",
        ) from error


def _code(error: Exception) -> int:
    """Return the code of a system error, also one from Rust (safetensors); 0 of others."""
    if isinstance(error, OSError):
        return error.errno or 0
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told else 0


def recover(path: Path | str) -> None:
    """Put back what a kill in the middle of `atomic_directory` left beside `path`."""
    path = Path(path).resolve()
    if _old(path).exists():
        with _renaming(path.parent):
            _put_back(path)


def _put_back(path: Path) -> None:
    if not path.exists() and _old(path).exists():
        os.replace(_old(path), path)
    shutil.rmtree(_old(path), ignore_errors=True)


def _old(path: Path) -> Path:
    name = f".{path.name}.old"
    if len(os.fsencode(name)) > LONGEST:
        name = f"{_target(path)}old"
    return path.parent / name


@contextmanager
def _renaming(directory: Path) -> Iterator[None]:
    """Let one process at a time exchange directories in `directory`, where the system can."""
    try:
        import fcntl

        handle = os.open(directory, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def locked(directory: Path | str) -> Iterator[None]:
    """Keep `directory` to this process until the end of the block; a kill lets go of it too.

    Raises:
        UsageError: another process has it.
    """
    from filelock import FileLock, Timeout

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"{directory} is in use by another process: wait for its end, or give another directory"
        ) from None
    except NotImplementedError:  # a file system without locks
        yield
        return
    try:
        yield
    finally:
        lock.release()


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


def open_regular(path: Path | str) -> BufferedReader:
    """Open a file to read; refuse a pipe or a device, which might never end.

    Raises:
        OSError: a missing file, one that may not be read, or no regular file.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "it is a directory", os.fspath(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device, no file", os.fspath(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def sha256(path: Path | str) -> str:
    """Return the sha256 of a file's content, in hex."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path | str, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8.

    A byte of a file's name that is no UTF-8 becomes "?".
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode(errors="replace"))


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` to `path` atomically, as indented JSON with a final newline."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_sealed_json(path: Path | str, value: Mapping[str, Any]) -> None:
    """Write an object as `write_json` does, with its checksum under the key "seal", as the last.

    `typed.read_json` refuses the file once a bit of it has changed, and takes the key away.
    """
    text = json.dumps({**value, SEAL: UNSET}, indent=2, ensure_ascii=False) + "\n"
    data = text.encode(errors="replace")
    with atomic_path(path) as temporary:
        temporary.write_bytes(set_seal(data, data.rindex(UNSET.encode())))


def set_seal(data: bytes, place: int) -> bytes:
    """Put the checksum of some bytes to `place` in them, where `UNSET` stands."""
    digest = hashlib.sha256(data).hexdigest().encode()
    return data[:place] + digest + data[place + len(UNSET) :]


def seal_file(path: Path | str) -> None:
    """Put the checksum of a file to the first place where `UNSET` stands in it."""
    with Path(path).open("rb+") as file, mmap.mmap(file.fileno(), 0) as data:
        place, digest = data.find(UNSET.encode()), hashlib.sha256(data).hexdigest()
        data[place : place + len(UNSET)] = digest.encode()


def file_seal_holds(path: Path | str, digest: str, after: str = "") -> bool:
    """Return whether `digest`, which stands in a file behind `after`, is its checksum."""
    with (
        Path(path).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        place = data.find(digest.encode(), max(0, data.find(after.encode())))
        return place >= 0 and seal_holds(data, place, digest)


def seal_holds(data: bytes | mmap.mmap, place: int, digest: str) -> bool:
    """Return whether the checksum at `place` in some bytes is `digest`, and is right."""
    if len(digest) != len(UNSET) or data[place : place + len(UNSET)] != digest.encode():
        return False
    found = hashlib.sha256()
    with memoryview(data) as view, view[:place] as before, view[place + len(UNSET) :] as after:
        for part in (before, UNSET.encode(), after):
            found.update(part)
    return found.hexdigest() == digest


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
