"""What the commands share: how they parse, warn, end and tell of a file that cannot be used."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

if TYPE_CHECKING:
    from ..runtime import Answer

HERE = str(Path(__file__).parents[1])


class Failure(NamedTuple):
    """A clip to which there is no answer, and why."""

    file: str
    error: str

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        from ..data.text import printable

        return {"file": printable(self.file), "error": printable(self.error)}


class Parser(argparse.ArgumentParser):
    """Help that keeps its line breaks; options before, behind and between the files of a list."""

    def __init__(self, prog: str, description: str = "", epilog: str = "", **kwargs: Any) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **kwargs,
        )
        self._parsing = False

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As that of argparse, which takes a list only where it stands together."""
        lists = any(action.nargs in ("*", "+") for action in self._get_positional_actions())
        if self._parsing or not lists:
            return super().parse_known_args(args, namespace)
        given = list(sys.argv[1:] if args is None else args)
        if "--" in given:  # which argparse forgets when it parses the list by itself
            at = given.index("--")
            rest = [
                f"./{one}" if len(one) > 1 and one[0] == "-" else one for one in given[at + 1 :]
            ]
            given = given[:at] + rest
        self._parsing = True
        try:
            return self.parse_known_intermixed_args(given, namespace)
        finally:
            self._parsing = False


@contextmanager
def command_process() -> Iterator[None]:
    """Prepare the process for a command, and put back what is of the process alone.

    Threads of OpenMP sleep while they wait, a warning of ours is one line, SIGTERM is as Ctrl-C,
    and every name can be written, whatever the encoding of the terminal.
    """
    # Threads that spin while they wait hold up the ones they wait for where cores are shared: two
    # to ten times the wall time beside one other program, and a third more processor time without
    # any. Read when torch loads, which it has not yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.stderr is None:  # closed; what is printed to it would go to standard output
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with _terminated_as_interrupted(), _warnings_in_a_line():
        yield


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Print each warning of ours once, without where in the code it comes from."""
    before, shown = warnings.formatwarning, set[str]()

    def one_line(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        ours = category is UserWarning and filename.startswith(HERE)
        if not (ours or category.__module__.startswith("sounding.")):
            return before(message, category, filename, lineno, line)
        text = "" if str(message) in shown else f"sounding: {message}\n"
        shown.add(str(message))
        return text

    warnings.formatwarning = one_line
    try:
        yield
    finally:
        warnings.formatwarning = before


def standard_input() -> BinaryIO:
    """Return the bytes of standard input.

    Raises:
        ValueError: it is closed, or a terminal.
    """
    pipe = "pipe audio into it, as in: sounding transcribe - < talk.flac"
    if sys.stdin is None or sys.stdin.closed:
        raise ValueError(f"- is standard input, which is closed: {pipe}")
    if sys.stdin.isatty():
        raise ValueError(f"- is standard input, and nothing is piped into it: {pipe}")
    return sys.stdin.buffer


def each_answer(
    model: Any,
    answer: Callable[[Any], Answer],
    clips: Iterator[Path | str],
    window: float | None,
) -> Iterator[Answer | Failure]:
    """Yield an answer to each clip, or to each window of it, or why there is none.

    Args:
        model: an exported one.
        answer: of it, to a file or samples.
        window: in seconds; None for whole clips.
    """
    for clip in clips:
        if window is not None:
            yield from answers_or_why(clip, _windows(model, answer, clip, window))
        else:
            yield from answers_or_why(clip, map(answer, [clip]))


def answers_or_why(clip: Path | str, answers: Iterator[Answer]) -> Iterator[Answer | Failure]:
    """Yield the answers to a clip, and why there are no more where it cannot be used."""
    from ..data.audio import AudioError

    try:
        yield from answers
    except (AudioError, OSError) as error:  # OSError: it is gone, or there is no microphone
        name, text = str(clip), str(error)
        yield Failure(name, text if name in text else f"{name}: {text}")


def _windows(
    model: Any, answer: Callable[[Any], Answer], clip: Path | str, window: float
) -> Iterator[Answer]:
    from dataclasses import replace

    from ..data.audio import AudioError, audio_blocks
    from ..runtime.stream import Stream, microphone

    rate = model.meta.rate
    blocks = microphone(model) if str(clip) == "mic" else audio_blocks(clip, rate=rate)
    stream = Stream(answer, rate, window=window, hop=window / 2)
    heard = None
    for block in blocks:
        for heard in stream.feed(block):
            name = f"{clip} {heard.start:.1f}-{heard.end:.1f} s"
            yield replace(heard.answer, file=name, label=heard.label)
    if heard is None:
        raise AudioError(f"{clip}: shorter than a window of {window:g} s: give a shorter one")
