"""Progress of long work, with the time left, and its end by a signal.

A live bar on a terminal, plain lines in a log.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .errors import SoundingError

Advance = Callable[[int, str], None]
LINE_EVERY = 20.0  # seconds between lines where there is no terminal


class Interrupted(SoundingError):
    """Long work was asked to stop and has kept what is done; the text says how to go on."""

    exit_code = 130  # as a shell says of a program that Ctrl-C ended


def say(text: str) -> None:
    """Print a line for people on standard error; of several processes the first one does."""
    if not int(os.environ.get("RANK", "0")):
        print(f"sounding: {text}", file=sys.stderr)


@contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """Yield a function called with (work done so far, a short note)."""
    console = Console(stderr=True)
    if int(os.environ.get("RANK", "0")):  # of several processes the first one tells
        yield lambda done, note: None
        return
    if not console.is_terminal:
        yield _lines(title, total)
        return
    columns = (  # no markup: a file may be called "talk [/b].wav"
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, note="")
        yield lambda done, note: bar.update(task, completed=done, note=note)


def _lines(title: str, total: int) -> Advance:
    start = time.monotonic()
    first: list[int] = []
    last = [start]
    ended: list[bool] = []

    def advance(done: int, note: str) -> None:
        now = time.monotonic()
        if not first:  # a resumed run does not begin at zero
            first.append(done)
        if (done < total or ended) and now - last[0] < LINE_EVERY:
            return
        if done >= total:  # said once, also where there is more to say then
            ended.append(True)
        last[0] = now
        new = done - first[0]
        left = (now - start) / new * (total - done) if new else 0.0
        minutes, seconds = divmod(int(left), 60)
        print(f"{title} {done}/{total} {note} {minutes}:{seconds:02} left", file=sys.stderr)

    return advance


class Stop:
    """Whether a signal has asked to stop; without handlers of ours it never does."""

    def __init__(self) -> None:
        self.asked = False
        self._reason = ""

    def __call__(self) -> bool:
        """Return whether a signal has asked to stop."""
        return self.asked

    @contextmanager
    def at_once(self, reason: str) -> Iterator[None]:
        """Let a signal end the work in here at once: there is nothing that would be lost.

        Raises:
            Interrupted: with `reason`; also where a signal came before.
        """
        before, self._reason = self._reason, reason
        try:
            if self.asked:
                raise Interrupted(reason)
            yield
        finally:
            self._reason = before

    def _handle(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if self._reason:
            raise Interrupted(self._reason)


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Make SIGINT and SIGTERM only ask to stop, so that what is in progress ends and is saved.

    A second signal stops at once.
    """
    stop = Stop()
    try:
        before = {s: signal.signal(s, stop._handle) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are not ours
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
