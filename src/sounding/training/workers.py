"""Processes that read and prepare what a training needs next, by `torch.utils.data`."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from ..runs.device import PROCESSOR

UNPINNED = (PROCESSOR.type, "mps")  # devices that torch pins no memory for
T = TypeVar("T")


def in_order(
    dataset: Dataset[T], indexes: range, workers: int, *, device: torch.device = PROCESSOR
) -> Iterator[T]:
    """Yield the items of a dataset in the order of the indexes, whoever makes them.

    Args:
        workers: processes that make them ahead of time; with 0 each is made when it is asked for.
        device: that tensors go to afterwards: their memory is pinned where that helps.
    """
    forks = "fork" in multiprocessing.get_all_start_methods()
    yield from DataLoader(
        dataset,
        batch_size=None,  # an item is a whole batch
        sampler=indexes,
        num_workers=workers,
        multiprocessing_context="fork" if workers and forks else None,
        worker_init_fn=_ignore_interrupts,
        pin_memory=device.type not in UNPINNED and torch.accelerator.is_available(),
        generator=torch.Generator(),  # the global one stays as it is
    )


def _ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C, which all processes of a terminal get, to the one that trains."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
