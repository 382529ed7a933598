"""A directory that is watched for audio: each file once it is whole."""

from __future__ import annotations

import os
import stat
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.audio import AudioError, Seconds, announced_bytes
from ..errors import UsageError

QUIET: Seconds = 0.4  # without a change, until a file may be whole
STALE: Seconds = 10.0  # without a change, until an incomplete file is given all the same
FRESH: Seconds = 1.0  # that a list of the files open for writing is used
SHARE = 0.1  # of the time, at most, that looking takes while nothing comes

State = tuple[int, int, int]  # of a file: which it is, its bytes (-1: it is none), its last change


class OpenFileWarning(UserWarning):
    """A file is held back, since a program has had it open for writing for a while."""


@dataclass
class Waiting:
    """A file that is not yielded yet: its state, since when, and when to look closer."""

    state: State
    since: float
    closer: float
    warned: bool = False


def watch(
    directory: Path | str, suffixes: Sequence[str], *, pause: Seconds = 0.05
) -> Iterator[Path]:
    """Yield the files of a directory that appear or change from now on, each once it is whole.

    A file is whole when it has not changed for 0.4 s, is not shorter than its header announces,
    and no program has it open for writing, as far as the system tells (Linux). One that stays empty
    or too short is given after 10 s: reading it says what is wrong. A name that gets another
    content is given again. Directories and pipes with such a name are given too, hidden files are
    not. It never ends.

    Args:
        suffixes: of the files, in lower case.
        pause: between two looks, at least.

    Raises:
        UsageError: no directory.
        OSError: it is gone.

    Warns:
        OpenFileWarning: a quiet file is still open for writing.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UsageError(f"{directory}: no such directory, expected one to watch for audio")
    return _follow(directory, suffixes, pause, _states(directory, suffixes))


def _follow(
    directory: Path, suffixes: Sequence[str], pause: Seconds, given: dict[str, State]
) -> Iterator[Path]:
    waiting: dict[str, Waiting] = {}
    writers = _Writers()
    while True:
        start = time.monotonic()
        states = _states(directory, suffixes)
        for name in given.keys() - states.keys():
            del given[name]  # one that comes back is new
        new = {name: state for name, state in states.items() if given.get(name) != state}
        waiting = {
            name: waiting[name]
            if name in waiting and waiting[name].state == state
            else Waiting(state, start, start + QUIET)
            for name, state in new.items()
        }
        looked = time.monotonic() - start
        for name, one in waiting.items():
            if start < one.closer:
                continue
            if _is_whole(directory / name, one, writers, start):
                given[name] = one.state
                yield directory / name
                break  # the next one after another look
            one.closer = start + QUIET
        else:
            time.sleep(max(pause, looked / SHARE))


def _states(directory: Path, suffixes: Sequence[str]) -> dict[str, State]:
    """Return what may be audio in a directory, in the order of the names."""
    found: dict[str, State] = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(".") or Path(entry.name).suffix.lower() not in suffixes:
                continue
            try:
                status = entry.stat()
            except OSError:  # gone meanwhile, or a link to nothing
                continue
            if stat.S_ISREG(status.st_mode):
                found[entry.name] = (status.st_ino, status.st_size, status.st_mtime_ns)
            else:
                found[entry.name] = (status.st_ino, -1, 0)
    return dict(sorted(found.items()))


def _is_whole(path: Path, one: Waiting, writers: _Writers, now: float) -> bool:
    """Return whether a file that has been quiet for a moment is whole, and so to be yielded."""
    size, stale = one.state[1], now - one.since >= STALE
    if size < 0:  # what it is, its reader says
        return True
    if (size == 0 or size < _announced(path)) and not stale:
        return False
    writer = writers.of(path)
    if writer and stale and not one.warned:
        one.warned = True
        warnings.warn(
            f"{path}: waiting, since {writer} has it open for writing",
            OpenFileWarning,
            stacklevel=3,
        )
    return not writer


def _announced(path: Path) -> int:
    try:
        return announced_bytes(path) or 0
    except (AudioError, OSError):  # its reader says so too
        return 0


class _Writers:
    """The programs that have files open for writing, asked of the system now and then."""

    def __init__(self) -> None:
        self.at = -FRESH
        self.programs: dict[str, str] = {}

    def of(self, path: Path) -> str:
        """Return the program that writes to a file; "" where there is none that we may see."""
        name = os.path.realpath(path)
        now = time.monotonic()
        if now - self.at >= FRESH or name in self.programs:  # it may be done since
            self.programs, self.at = _open_for_writing(), now
        return self.programs.get(name, "")


def _open_for_writing() -> dict[str, str]:
    """Return path and program of each file that is open for writing, as far as we may see."""
    if sys.platform != "linux":  # elsewhere psutil does not say what a file is open for
        return {}
    try:
        import psutil
    except ModuleNotFoundError:
        return {}
    found: dict[str, str] = {}
    for process in psutil.process_iter():
        try:
            open_files = process.open_files()
            found |= {one.path: process.name() for one in open_files if one.mode != "r"}
        except (psutil.Error, OSError):  # of another user, or ended meanwhile
            continue
    return found
