"""Transcription of many files: killed and started again, it goes on where it stopped."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from ..budget import Budget
from ..data.audio import AudioError, Seconds, audio_blocks, duration
from ..errors import UsageError
from ..files import NO_ROOM, remove_leftovers, sha256, write_text
from ..progress import Interrupted, progress, stop_signals
from .cut import LEAST_SECONDS, MAX_SECONDS, cut
from .formats import FORMATS, Piece
from .journal import Journal, OutputError
from .recognizer import Recognizer
from .sources import LONGEST, Source
from .vad import RATE, listen
from .watch import Watch

STDIN = "standard input"
MANY = 100  # files


@dataclass(frozen=True)
class Job:
    """All settings of a transcription.

    Args:
        budget: of the encoder layers of each piece.
        formats: names of `FORMATS`.
        max_seconds: of a piece.
        overwrite: replace texts of other settings, or that are not ours.

    Raises:
        UsageError: a budget, a format or a length that is not allowed.
    """

    recognizer: Recognizer
    budget: Any = None
    formats: Sequence[str] = ("txt",)
    max_seconds: Seconds = MAX_SECONDS
    overwrite: bool = False

    def __post_init__(self) -> None:
        if unknown := [name for name in self.formats if name not in FORMATS]:
            raise UsageError(f"formats {unknown} are unknown: use some of {', '.join(FORMATS)}")
        longest = self.recognizer.max_seconds
        if not LEAST_SECONDS <= self.max_seconds <= longest:
            raise UsageError(
                f"pieces of at most {self.max_seconds:g} s: give {LEAST_SECONDS:g} to {longest:g} s"
            )
        _ = self.settings  # checks the budget

    @property
    def settings(self) -> dict[str, Any]:
        """What a text depends on besides its audio."""
        layers = self.recognizer.layers
        asked = Budget.parse(self.budget)
        if asked.is_exact:
            written: int | str = asked.kept_layers(layers=layers)[0]
        else:
            asked.mean_layers(layers=layers)  # a budget of another kind is refused
            written = str(asked)
        return {**self.recognizer.settings, "budget": written, "max_seconds": self.max_seconds}


def transcribe(
    sources: Sequence[Source], job: Job, failed: Callable[[str], None] = lambda failure: None
) -> list[str]:
    """Transcribe files one after the other; what is finished is not done again.

    Args:
        failed: called with each failure as it comes.

    Returns:
        What went wrong, a line for each file that has no text now.

    Raises:
        Interrupted: on SIGINT or SIGTERM, after the piece in progress.
        OSError: there is no room for a text.
    """
    failures: list[str] = []
    with stop_signals() as stop:
        with stop.at_once("stopped before the first file; the same command goes on"):
            lengths = _lengths(sources)
        with progress("transcribe", round(sum(lengths))) as show:
            watch = Watch(show, stop)
            for source, length in zip(sources, lengths, strict=True):
                watch.begin(source.name)
                if failure := transcribe_one(source, job, watch):
                    failures.append(failure)
                    failed(failure)
                watch.end(length)
    return failures


def transcribe_one(source: Source, job: Job, watch: Watch | None = None) -> str:
    """Transcribe a file, or what is left of it.

    Args:
        watch: is told what is done.

    Returns:
        What went wrong; empty where the file has its text.

    Raises:
        OSError: there is no room for a text.
    """
    try:
        _transcribe(source, job, watch or Watch())
    except (AudioError, OutputError) as error:
        return str(error)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        where = f"the texts of {source.path} cannot be written to {source.folder} ({reason})"
        if error.errno not in NO_ROOM:
            return f"{where}: check its rights, rename the file, or give another --out"
        raise OSError(
            f"{where}: make room there or give another --out; the same command goes on"
        ) from None
    return ""


def transcribe_stream(stream: BinaryIO, job: Job) -> str:
    """Return the text of an audio file that is read from a stream, in the first of the formats.

    Raises:
        AudioError: it cannot be used.
        Interrupted: on SIGINT or SIGTERM, at once.
        OSError: it cannot be read, or there is no room for it.
    """
    lost = f"stopped in {STDIN}, of which nothing is kept"
    with stop_signals() as stop, stop.at_once(lost), tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "audio"
        try:
            with path.open("wb") as file:
                shutil.copyfileobj(stream, file)
        except OSError as error:
            raise OSError(
                f"{STDIN} cannot be copied to {tempfile.gettempdir()} ({error.strerror}): give the "
                "name of a file, or set TMPDIR to a directory with more room"
            ) from None
        try:
            with progress("transcribe", round(duration(path))) as show:
                watch = Watch(show, stop)
                watch.begin(STDIN)
                journal = _transcribe(Source(path, STDIN, path.parent, path.name), job, watch)
        except AudioError as error:
            raise AudioError(str(error).replace(str(path), STDIN)) from None
        except Interrupted:
            raise Interrupted(lost) from None
        return FORMATS[job.formats[0]](journal.transcript(STDIN))


def slices(
    blocks: Iterator[np.ndarray], cuts: Iterable[tuple[Seconds, Seconds]], rate: int
) -> Iterator[np.ndarray]:
    """Yield the audio of each cut, [samples], out of consecutive blocks of it.

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


def _lengths(sources: Sequence[Source]) -> list[Seconds]:
    """Return the lengths of all files.

    An mp3 without a header is counted through, so that many take a while.
    """
    if len(sources) < MANY:
        return [_length(source) for source in sources]
    found = []
    with progress("read lengths", len(sources)) as show:
        for done, source in enumerate(sources, start=1):
            found.append(_length(source))
            show(done, source.name)
    return found


def _length(source: Source) -> Seconds:
    """Return the length by the header.

    It is 0 for a file that cannot be read, which is told when its turn comes.
    """
    try:
        return duration(source.path)
    except AudioError:
        return 0.0


def _transcribe(source: Source, job: Job, watch: Watch) -> Journal:
    if source.problem:
        raise AudioError(source.problem)
    duration(source.path)  # it can be read
    for name in job.formats:
        _check_name(source, source.output(name))
    source.journal.parent.mkdir(parents=True, exist_ok=True)
    with _alone(source, watch):
        audio = _sha256(source, watch)
        journal = _known(source, audio, job)
        if journal is None or not journal.finished:
            journal = journal or _begin(source, audio, job, watch)
            watch.seen(journal)
            for pieces in _recognize(source, journal, job, watch):
                for piece in pieces:
                    journal.append(piece)
                watch.seen(journal, len(pieces))
            _check_unchanged(source, journal, watch)
        for name in job.formats:
            _write(source.output(name), FORMATS[name](journal.transcript(source.name)), job)
        watch.seen(journal)
    return journal


def _check_name(source: Source, path: Path) -> None:
    """Check what a text is to be called before there is any work for it.

    Raises:
        OutputError: a name that is too long, or that of the audio.
    """
    if (size := len(os.fsencode(path.name))) > LONGEST:
        raise OutputError(
            f"{source.path}: the name of its text, {path.suffix} at the end, would have {size} "
            f"bytes, and {LONGEST} are allowed: rename the file"
        )
    if path.exists() and path.samefile(source.path):
        raise OutputError(f"{path}: is the audio itself: rename it, or give another --out")


@contextmanager
def _alone(source: Source, watch: Watch) -> Iterator[None]:
    """Keep other processes from this file, and wait for one that works on it."""
    lock = FileLock(source.journal.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with watch.stage("waiting for another process that transcribes it"):
            lock.acquire()
    except NotImplementedError:  # a file system without locks
        pass
    try:
        yield
    finally:
        lock.release()


def _known(source: Source, audio: str, job: Job) -> Journal | None:
    """Return the journal of a file; None where there is none that is to be used.

    Raises:
        OutputError: one, or a text, that is in the way.
    """
    journal = Journal.read(source.journal)
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
    return journal


def _begin(source: Source, audio: str, job: Job, watch: Watch) -> Journal:
    """Begin a journal: find where someone speaks, and so where the audio is cut."""
    remove_leftovers(source.journal)
    start = perf_counter()
    with watch.stage("looking for speech") as done:
        activity = listen(_counted(audio_blocks(source.path, rate=RATE), done))
        cuts = cut(activity, job.max_seconds)
    return Journal.begin(
        source.journal,
        audio=audio,
        settings=job.settings,
        cuts=cuts,
        duration=activity.samples / RATE,
        seconds=perf_counter() - start,
    )


def _counted(blocks: Iterable[np.ndarray], done: Callable[[Seconds], None]) -> Iterator[np.ndarray]:
    """Yield the blocks, and call `done` with the seconds that they make up so far."""
    samples = 0
    for block in blocks:
        yield block
        samples += len(block)
        done(samples / RATE)


def _sha256(source: Source, watch: Watch) -> str:
    try:
        with watch.stage("reading it"):
            return sha256(source.path)
    except OSError as error:
        raise AudioError(
            f"{source.path}: cannot be read ({error.strerror}): check that it is there, and its "
            "rights"
        ) from None


def _check_unchanged(source: Source, journal: Journal, watch: Watch) -> None:
    """Check that the pieces are of the file that is there now.

    Raises:
        AudioError: the file is not the one that was begun, and the journal is gone; or the file is
            gone, and the journal stays.
    """
    if _sha256(source, watch) != journal.head.audio:
        journal.path.unlink(missing_ok=True)
        raise AudioError(
            f"{source.path}: changed while it was transcribed, so that nothing was written: once "
            "it is whole, the same command transcribes it anew"
        )


def _difference(journal: Journal, audio: str, job: Job) -> str:
    """Say what keeps a journal from being that of this job; "" if nothing does."""
    head = journal.head
    if head.audio != audio:
        return "when the file had another content"
    for name, value in job.settings.items():
        if name != "model" and head.settings.get(name) != value:  # its weights are compared
            return f"with {name} {head.settings.get(name)}, not {value}"
    return ""


def _recognize(source: Source, journal: Journal, job: Job, watch: Watch) -> Iterator[list[Piece]]:
    """Yield the pieces that are not done yet, as many at once as the recognizer takes."""
    rate, size = job.recognizer.sampling_rate, job.recognizer.batch_size
    cuts = journal.cuts[len(journal.pieces) :]
    if not cuts:
        return
    parts = slices(audio_blocks(source.path, rate=rate), cuts, rate)
    for first in range(0, len(cuts), size):
        batch = cuts[first : first + size]
        with watch.at_once("reading it"):  # from its start, where an earlier run has stopped
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
        if path.is_file() and path.read_bytes() == text.encode():
            return
        if not job.overwrite:
            raise _foreign(path)
    write_text(path, text)


def _foreign(path: Path) -> OutputError:
    return OutputError(
        f"{path}: there already, and not as this command would write it: give --overwrite to "
        "replace it, or another --out"
    )
