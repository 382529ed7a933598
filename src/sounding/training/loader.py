"""The clips of each step of a training, and their batches, made ahead of time."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ..data.features import Lengths, batches
from ..errors import SoundingError
from ..runs.config import TrainConfig
from ..tasks.base import Batch
from .source import Source
from .workers import in_order

Share = Callable[[list[int], int], list[tuple[list[int], float]]]


class Order:
    """The clips of each step: a function of the step, so that a resumed training needs no state.

    Args:
        seconds: the length of each clip.
    """

    def __init__(self, seconds: Lengths, config: TrainConfig) -> None:
        self.seconds, self.config = seconds, config
        self._made = _Epoch(-1, np.zeros(0, np.int64), np.zeros(1, np.int64))
        part = config.epochs % 1
        counts = [len(self._epoch(epoch).ends) - 1 for epoch in range(math.ceil(config.epochs))]
        if part:
            counts[-1] = max(1, math.ceil(round(part * counts[-1], 9)))
        self.ends = np.cumsum(counts)  # of each epoch, in steps

    @property
    def total(self) -> int:
        """Steps of the whole training."""
        return int(self.ends[-1])

    def epoch(self, step: int) -> int:
        """Return the epoch that a step is in, from 0 on."""
        return int(np.searchsorted(self.ends, step, side="right"))

    def validated(self, every: float) -> set[int]:
        """Return after how many steps validation clips are measured, the last one included.

        Args:
            every: so many epochs; 0 for never.
        """
        if not every:
            return set()
        ends = [*range(len(self.ends)), self.config.epochs]
        times = np.arange(every, self.config.epochs, every)
        steps = np.interp(times, ends, [0, *self.ends]).round().astype(int).tolist()
        return {*(step for step in steps if step), self.total}

    def __getitem__(self, step: int) -> list[int]:
        epoch = self.epoch(step)
        place = step - (int(self.ends[epoch - 1]) if epoch else 0)
        made = self._epoch(epoch)
        rows: list[int] = made.rows[made.ends[place] : made.ends[place + 1]].tolist()
        return rows

    def _epoch(self, epoch: int) -> _Epoch:
        """Return the batches of an epoch; those of the last one that was asked for are kept."""
        if self._made.number != epoch:
            config = self.config
            made = batches(
                self.seconds,
                config.batch_size * config.accumulate,
                seed=config.seed,
                epoch=epoch,
                shuffle=True,
                most=(config.batch_seconds or math.inf) * config.accumulate,
            )
            ends = np.cumsum([0, *map(len, made)])
            self._made = _Epoch(epoch, np.fromiter(chain(*made), np.int64, ends[-1]), ends)
        return self._made


class _Epoch(NamedTuple):
    """The batches of an epoch, in arrays: of very many clips lists take several times as much.

    Shape: rows [clips], batch after batch; ends [batches + 1] in them, from 0 on.
    """

    number: int
    rows: NDArray[np.int64]
    ends: NDArray[np.int64]


class Part(NamedTuple):
    """What is computed at once of the batch of a step: all of it, or one of its parts.

    Attributes:
        rows: the clips.
        weight: of their mean loss, of all parts 1.
        batch: on the processor; empty where a clip could not be read.
        error: why it could not.
    """

    rows: list[int]
    weight: float
    batch: Batch
    error: SoundingError | None = None


class Parts(Dataset[list[Part]]):
    """The parts of each step in this process, which follow from the step alone.

    Args:
        share: which clips of a batch are this process's, part by part; see `Processes.share`.
    """

    def __init__(self, source: Source, order: Order, share: Share) -> None:
        self.source, self.order, self.share = source, order, share

    def __len__(self) -> int:
        return self.order.total

    def __getitem__(self, step: int) -> list[Part]:
        epoch = self.order.epoch(step)
        shares = self.share(self.order[step], self.order.config.accumulate)
        return [self._part(rows, weight, epoch) for rows, weight in shares]

    def _part(self, rows: list[int], weight: float, epoch: int) -> Part:
        try:
            return Part(rows, weight, self.source.batch(rows, epoch))
        except SoundingError as error:  # torch would wrap it in a traceback of a worker
            return Part(rows, weight, {}, error)


def parts(
    source: Source, order: Order, share: Share, start: int, device: torch.device
) -> Generator[list[Part]]:
    """Yield the parts of the steps from `start` on, their batches on the device.

    Raises:
        AudioError: a clip that could be read before cannot be read any more.
    """
    dataset = Parts(source, order, share)
    steps = range(start, order.total)
    for made in in_order(dataset, steps, source.config.workers, device=device):
        yield [_on(part, device) for part in made]


def _on(part: Part, device: torch.device) -> Part:
    if part.error is not None:
        raise part.error
    moved = {name: value.to(device, non_blocking=True) for name, value in part.batch.items()}
    return part._replace(batch=moved)
