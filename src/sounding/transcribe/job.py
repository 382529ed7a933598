"""Transcribing many files: killed and started again, it goes on where it stopped."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock

from ..core.budget import Budget, kept_layers, mean_layers
from ..data.audio import AudioError, Seconds, audio_blocks, duration
from ..files import remove_leftovers, sha256, write_text
from ..progress import Advance, Interrupted, progress, stop_signals
from .cut import LEAST_SECONDS, MAX_SECONDS, cut
from .formats import FORMATS, Piece
from .journal import Journal, OutputError
from .recognizer import Recognizer
from .sources import Source
from .vad import RATE, listen

STDIN = "standard input"


@dataclass(frozen=True)
class Job:
    """How to transcribe.

    Args:
        budget: of the encoder layers of each piece.
        formats: names of `FORMATS`.
        max_seconds: of a piece.
        overwrite: replace texts of other settings, or that are not ours.

    Raises:
        ValueError: a budget, a format or a length that is not allowed.
    """

    recognizer: Recognizer
    budget: Budget = None
    formats: Sequence[str] = ("txt",)
    max_seconds: Seconds = MAX_SECONDS
    overwrite: bool = False

    def __post_init__(self) -> None:
        if unknown := [name for name in self.formats if name not in FORMATS]:
            raise ValueError(f"formats {unknown} are unknown: use some of {', '.join(FORMATS)}")
        longest = self.recognizer.max_seconds
        if not LEAST_SECONDS <= self.max_seconds <= longest:
            raise ValueError(
                f"pieces of at most {self.max_seconds:g} s: give {LEAST_SECONDS:g} to {longest:g} s"
            )
        _ = self.settings  # checks the budget

    @property
    def settings(self) -> dict[str, Any]:
        """What a text depends on besides its audio."""
        layers = self.recognizer.layers
        budget: Any = self.budget
        if mean_layers(budget, layers=layers) is None:
            (budget,) = kept_layers(budget, layers=layers, batch=1)
        return {**self.recognizer.settings, "budget": budget, "max_seconds": self.max_seconds}


def transcribe(sources: Sequence[Source], job: Job) -> list[str]:
    """Transcribe files one after the other; what is finished is not done again.

    Returns:
        What went wrong, a line for each file that has no text now.

    Raises:
        Interrupted: on SIGINT or SIGTERM, after the piece in progress.
        OSError: a text cannot be written.
    """
    failures: list[str] = []
    lengths = [_length(source) for source in sources]
    with stop_signals() as stopped, progress("transcribe", round(sum(lengths))) as show:
        watch = _Watch(show, stopped)
        for source, length in zip(sources, lengths, strict=True):
            watch.begin(source.name)
            failures.append(transcribe_one(source, job, watch.seen))
            watch.end(length)
    return [failure for failure in failures if failure]


def transcribe_one(
    source: Source, job: Job, after: Callable[[Journal, bool], None] = lambda journal, new: None
) -> str:
    """Transcribe a file, or what is left of it.

    Args:
        after: called with what is done at the beginning, and again with what is new.

    Returns:
        What went wrong; empty where the file has its text.

    Raises:
        OSError: a text cannot be written.
    """
    try:
        _transcribe(source, job, after)
    except (AudioError, OutputError) as error:
        return str(error)
    except OSError as error:
        raise OSError(
            f"the texts of {source.path} cannot be written to {source.target.parent} "
            f"({error.strerror}): make room there or give another --out; the same command goes on"
        ) from None
    return ""


def transcribe_stream(stream: BinaryIO, job: Job) -> str:
    """The text of an audio file that is read from a stream, in the first of the formats.

    Raises:
        AudioError: it cannot be used.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "audio"
        with path.open("wb") as file:
            shutil.copyfileobj(stream, file)
        try:
            journal = _transcribe(Source(path, STDIN, path), job)
        except AudioError as error:
            raise AudioError(str(error).replace(str(path), STDIN)) from None
        return FORMATS[job.formats[0]](journal.transcript(STDIN))


def slices(
    blocks: Iterator[np.ndarray], cuts: Iterable[tuple[Seconds, Seconds]], rate: int
) -> Iterator[np.ndarray]:
    """The audio of each cut, [samples], out of consecutive blocks of it.

    Args:
        cuts: start and end in seconds, in order and not overlapping.
        rate: of the audio, in Hz.
    """
    held, first = np.zeros(0, np.float32), 0  # `first`: where what is held begins
    for seconds in cuts:
        start, end = (round(second * rate) for second in seconds)
        while first + len(held) < end and (block := next(blocks, None)) is not None:
            passed = min(start - first, len(held))
            held, first = np.concatenate([held[passed:], block]), first + passed
        yield held[start - first : end - first]


def _length(source: Source) -> Seconds:
    """By the header; 0 of a file that cannot be read, which its turn will tell."""
    try:
        return duration(source.path)
    except AudioError:
        return 0.0


def _transcribe(
    source: Source, job: Job, after: Callable[[Journal, bool], None] = lambda journal, new: None
) -> Journal:
    duration(source.path)  # it can be read
    source.journal.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(source.journal.with_suffix(".lock")):  # another process may work on this file
        journal = _open(source, job)
        after(journal, False)
        for pieces in _recognize(source, journal, job):
            for piece in pieces:
                journal.append(piece)
            after(journal, True)
        for name in job.formats:
            _write(source.output(name), FORMATS[name](journal.transcript(source.name)), job)
    return journal


def _open(source: Source, job: Job) -> Journal:
    """The journal of a file, begun where there is none or it is to be replaced."""
    journal = Journal.read(source.journal)
    audio = _sha256(source.path)
    if journal is not None and (difference := _difference(journal, audio, job)):
        if (journal.pieces or journal.finished) and not job.overwrite:
            raise OutputError(
                f"{source.path}: transcribed before {difference}: give --overwrite to replace "
                "its texts, or another --out"
            )
        journal = None
    if not (journal is not None and journal.finished) and not job.overwrite:
        for name in job.formats:
            if source.output(name).exists():
                raise _foreign(source.output(name))
    if journal is not None:
        return journal
    remove_leftovers(source.journal)
    start = perf_counter()
    activity = listen(audio_blocks(source.path, rate=RATE))
    cuts = cut(activity, job.max_seconds)
    return Journal.begin(
        source.journal,
        audio=audio,
        settings=job.settings,
        cuts=cuts,
        duration=activity.samples / RATE,
        seconds=perf_counter() - start,
    )


def _sha256(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror}): check its rights") from None


def _difference(journal: Journal, audio: str, job: Job) -> str:
    """What keeps a journal from being that of this job, for people; empty if nothing does."""
    if journal.audio != audio:
        return "when the file had another content"
    for name, value in job.settings.items():
        if name != "model" and journal.settings.get(name) != value:  # its weights are compared
            return f"with {name} {journal.settings.get(name)}, not {value}"
    return ""


def _recognize(source: Source, journal: Journal, job: Job) -> Iterator[list[Piece]]:
    """The pieces that are not done yet, as many at once as the recognizer takes."""
    rate, size = job.recognizer.sampling_rate, job.recognizer.batch_size
    cuts = journal.cuts[len(journal.pieces) :]
    if not cuts:
        return
    parts = slices(audio_blocks(source.path, rate=rate), cuts, rate)
    for first in range(0, len(cuts), size):
        batch = cuts[first : first + size]
        audio = [next(parts) for _ in batch]
        start = perf_counter()
        answers = job.recognizer(audio, job.budget)
        seconds = (perf_counter() - start) / len(batch)
        yield [
            Piece(*span, " ".join(one.text.split()), one.executed_layers, one.repetitive, seconds)
            for span, one in zip(batch, answers, strict=True)
        ]


def _write(path: Path, text: str, job: Job) -> None:
    remove_leftovers(path)
    if path.exists():
        if path.read_bytes() == text.encode():
            return
        if not job.overwrite:
            raise _foreign(path)
    write_text(path, text)


def _foreign(path: Path) -> OutputError:
    return OutputError(
        f"{path}: there already, and not as this command would write it: give --overwrite to "
        "replace it, or another --out"
    )


class _Watch:
    """Progress in seconds of audio, the real-time factor of what is new, and the end by a signal.

    Args:
        show: as `progress` gives it.
        stopped: as `stop_signals` gives it.
    """

    def __init__(self, show: Advance, stopped: Callable[[], bool]) -> None:
        self.show, self.stopped = show, stopped
        self.started = perf_counter()
        self.name = ""  # of the file in progress
        self.before = 0.0  # seconds of audio of the files before it
        self.position = 0.0  # seconds of it that are done
        self.new = 0.0  # seconds that were worked on

    def begin(self, name: str) -> None:
        self.name, self.position = name, 0.0
        if self.stopped():
            raise Interrupted(f"stopped before {name}; the same command goes on")

    def seen(self, journal: Journal, new: bool) -> None:
        position = journal.duration if journal.finished else journal.position
        if new:
            self.new += position - self.position
        self.position = position
        factor = (perf_counter() - self.started) / self.new if self.new else 0.0
        note = f"{self.name}, real-time factor {factor:.2f}" if self.new else self.name
        self.show(round(self.before + position), note)
        if self.stopped() and not journal.finished:
            raise Interrupted(
                f"stopped in {self.name} after {len(journal.pieces)} of {len(journal.cuts)} "
                "pieces; the same command goes on"
            )

    def end(self, length: Seconds) -> None:
        self.before += length
