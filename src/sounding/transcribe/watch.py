"""What is told of a job while it runs, and how a signal ends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter

from ..data.audio import Seconds
from ..progress import Advance, Interrupted, Stop
from .journal import Journal


class Watch:
    """Progress in seconds of audio, the real-time factor of what is new, and the end by a signal.

    Args:
        show: what `progress` yields; by default nothing is shown.
        stop: what `stop_signals` yields.
    """

    def __init__(self, show: Advance = lambda done, note: None, stop: Stop | None = None) -> None:
        self.show, self.stop = show, stop or Stop()
        self.started = perf_counter()
        self.name = ""  # of the file in progress
        self.before = 0.0  # seconds of audio of the files before it
        self.position: Seconds | None = None  # seconds of it that are done, once that is known
        self.new = 0.0  # seconds that were worked on

    def begin(self, name: str) -> None:
        """Go on to the next file."""
        self.name, self.position = name, None
        if self.stop():
            raise Interrupted(f"stopped before {name}; the same command goes on")

    def end(self, length: Seconds) -> None:
        """Count a file whose header says that length."""
        self.before += length

    def at_once(self, doing: str) -> AbstractContextManager[None]:
        """Let a signal end at once what goes on between two pieces."""
        return self.stop.at_once(f"stopped in {self.name} while {doing}; the same command goes on")

    @contextmanager
    def stage(self, doing: str) -> Iterator[Callable[[Seconds], None]]:
        """Say what goes on before the first piece or behind the last; a signal ends it at once.

        Yield a function to call with the seconds of audio that are done.
        """

        def told(seconds: Seconds) -> None:
            self._show(self.position or 0.0, f"{doing}, {seconds:.0f} s done")

        with self.at_once(doing):
            self._show(self.position or 0.0, doing)
            yield told

    def seen(self, journal: Journal, pieces: int = 0) -> None:
        """Tell how far a file is, and how many pieces of it are new."""
        if pieces:
            self.new += journal.position - (self.position or 0.0)
        self.position = journal.position
        factor = (perf_counter() - self.started) / self.new if self.new else 0.0
        self._show(self.position, f"real-time factor {factor:.2f}" if self.new else "")
        if self.stop() and not journal.finished:
            raise Interrupted(
                f"stopped in {self.name} after {len(journal.pieces)} of {len(journal.cuts)} "
                "pieces; the same command goes on"
            )

    def _show(self, seconds: Seconds, note: str) -> None:
        self.show(round(self.before + seconds), f"{self.name}, {note}" if note else self.name)
