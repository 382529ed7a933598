"""What a command does to its process: threads, signals, warnings, the streams, its error."""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import SoundingError, UsageError

HERE = f"{Path(__file__).parents[1]}{os.sep}"
INTERRUPTED = 130  # as a shell says of a program that Ctrl-C ended
INTERNAL = 70  # EX_SOFTWARE of sysexits.h


@contextmanager
def command_process() -> Iterator[None]:
    """Prepare the process for a command, and put back what is of the process alone.

    Threads of OpenMP sleep while they wait, a warning of ours is one line, SIGTERM does what Ctrl-C
    does, and every name can be written, whatever the encoding of the terminal.
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
        UsageError: it is closed, or a terminal.
    """
    pipe = "pipe audio into it, as in: sounding transcribe - < talk.flac"
    if sys.stdin is None or sys.stdin.closed:
        raise UsageError(f"- is standard input, which is closed: {pipe}")
    if sys.stdin.isatty():
        raise UsageError(f"- is standard input, and nothing is piped into it: {pipe}")
    return sys.stdin.buffer


def quiet_transformers() -> None:
    """Show our own progress in place of the bars and reports of transformers."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def describe(error: BaseException) -> tuple[str, int]:
    """Describe an error that ends a command, in a line, with the exit code.

    What the user can mend is told in the error's own words. Anything else is a fault of ours, and
    is told as one: its text was not written for the user.
    """
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, SoundingError):
        return str(error), error.exit_code
    if isinstance(error, ModuleNotFoundError):
        from .. import explain_missing

        return explain_missing(error), SoundingError.exit_code
    if isinstance(error, OSError):
        return str(error), SoundingError.exit_code
    text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    return f"internal error: {text}; --debug shows where", INTERNAL
