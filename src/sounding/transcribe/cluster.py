"""Transcription by several processes or machines, with Ray Data.

Every worker loads the model once and takes file after file. All of them see the same paths: on
several machines the audio and the texts are on a shared file system.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..progress import progress
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
) -> list[str]:
    """As `transcribe`, by several workers at once. What is finished is not done again.

    Args:
        recognizer: makes it, in each worker.
        settings: of `Job`.
        address: of a Ray cluster; None starts one on this machine.
        threads: of each worker.

    Returns:
        What went wrong, a line for each file that has no text now.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ValueError: no worker.
    """
    if workers < 1:
        raise ValueError(f"{workers} workers: give at least 1")
    if not sources:
        return []
    ray = _ray()
    local = {} if address else {"num_cpus": workers * threads}
    ray.init(address=address, log_to_driver=False, logging_level="error", **local)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [
            {"path": os.fspath(s.path.absolute()), "name": s.name,
             "target": os.fspath(s.target.absolute())}
            for s in sources
        ]  # fmt: skip
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Worker,
            fn_constructor_args=(recognizer, settings, threads),
            concurrency=workers,
            num_cpus=threads,
        )
        failures = []
        with progress("transcribe files", len(sources)) as show:
            for done, row in enumerate(results.iter_rows(), start=1):
                failures.append(row["failure"])
                show(done, row["name"])
        return [failure for failure in failures if failure]
    finally:
        ray.shutdown()


class _Worker:
    """Transcribes a file a call."""

    def __init__(
        self, recognizer: Callable[[], Recognizer], settings: dict[str, Any], threads: int
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self.job = Job(recognizer(), **settings)

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        source = Source(Path(row["path"]), row["name"], Path(row["target"]))
        return {"name": row["name"], "failure": transcribe_one(source, self.job)}


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
