"""Transcription by several processes or machines, with Ray Data.

Every worker loads the model once and takes file after file. All of them see the same paths: on
several machines the audio and the texts are on a shared file system.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..data.text import printable
from ..errors import SoundingError, UsageError
from ..progress import Interrupted, progress
from .job import Job, transcribe_one
from .recognizer import Recognizer
from .sources import Source


def transcribe_on_cluster(
    sources: Sequence[Source],
    recognizer: Callable[[], Recognizer],
    settings: dict[str, Any],
    *,
    workers: int,
    address: str | None = None,
    threads: int = 1,
    failed: Callable[[str], None] = lambda failure: None,
) -> list[str]:
    """Transcribe by several workers at once, as `transcribe` does by one.

    What is finished is not done again.

    Args:
        recognizer: makes it, in each worker.
        settings: of `Job`.
        address: of a Ray cluster; None starts one on this machine.
        threads: of each worker.
        failed: called with each failure as it comes.

    Returns:
        What went wrong, a line for each file that has no text now.

    Raises:
        Interrupted: on SIGINT.
        ModuleNotFoundError: Ray is not installed.
        OSError: no Ray cluster at `address`.
        UsageError: no worker; what is no address; or a worker cannot go on with any file, as
            without room for texts.
    """
    if workers < 1:
        raise UsageError(f"{workers} workers: give at least 1")
    if not sources:
        return []
    ray = _ray()
    local = {} if address else {"num_cpus": workers * threads}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error", **local)
    except ValueError as error:  # of the address, if there is one
        if address is None:
            raise
        raise UsageError(
            f"a cluster at {address!r}: {error}: give auto, or HOST:PORT as `ray status` shows it"
        ) from None
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        results = ray.data.range(len(sources), override_num_blocks=len(sources)).map(
            _Worker,
            fn_constructor_args=(recognizer, settings, threads, _absolute(sources)),
            concurrency=workers,
            num_cpus=threads,
        )
        failures = []
        with progress("transcribe files", len(sources)) as show:
            for done, row in enumerate(results.iter_rows(), start=1):
                for text in row["warnings"]:
                    warnings.warn(text, stacklevel=1)
                if row["problem"]:
                    raise UsageError(row["problem"])
                if row["failure"]:
                    failures.append(row["failure"])
                    failed(row["failure"])
                show(done, row["name"])
        return failures
    except KeyboardInterrupt:  # the pieces that are done are in the journals
        raise Interrupted("stopped; the same command goes on") from None
    finally:
        ray.shutdown()


def _absolute(sources: Sequence[Source]) -> list[Source]:
    """Return sources that mean the same in a worker, which has its own working directory."""
    return [replace(s, path=s.path.absolute(), folder=s.folder.absolute()) for s in sources]


class _Worker:
    """Transcribes a file a call: rows are numbers, since Ray has no names that are no UTF-8."""

    def __init__(
        self,
        recognizer: Callable[[], Recognizer],
        settings: dict[str, Any],
        threads: int,
        sources: Sequence[Source],
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self.job = Job(recognizer(), **settings)
        self.sources = sources

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        source = self.sources[row["id"]]
        failure = problem = ""
        with warnings.catch_warnings(record=True) as caught:
            try:
                failure = transcribe_one(source, self.job)
            except (SoundingError, OSError) as error:  # Ray would show a traceback
                problem = str(error)
        return {
            "name": printable(source.name),
            "failure": printable(failure),
            "problem": printable(problem),
            "warnings": [printable(str(one.message)) for one in caught if _is_ours(one.category)],
        }


def _is_ours(category: type[Warning]) -> bool:
    return category.__module__.startswith("sounding.")


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent home
    try:
        import ray
        import ray.data
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "several workers need Ray: pip install 'sounding[cluster]'"
        ) from None
    return ray
