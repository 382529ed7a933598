"""The noise by which gates are drawn in training, the same for a clip in whatever process it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class _Batch(NamedTuple):
    """A batch of several processes: how many inputs it has, and which of them are here."""

    generator: torch.Generator
    size: int
    places: list[int]


_BATCH: ContextVar[_Batch | None] = ContextVar("batch", default=None)


@contextmanager
def whole_batch(entropy: Sequence[int], size: int, places: Sequence[int]) -> Iterator[None]:
    """Draw the noise of a whole batch meanwhile, and take that of the inputs that are here.

    Args:
        entropy: what the noise follows from, the same in all processes.
        size: inputs of the whole batch.
        places: those of the inputs of this process in it.
    """
    generator = torch.Generator()
    generator.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))
    token = _BATCH.set(_Batch(generator, size, list(places)))
    try:
        yield
    finally:
        _BATCH.reset(token)


def gumbel_like(values: Tensor) -> Tensor:
    """Draw Gumbel noise for each input. Shape: values [batch, ...] -> the same."""
    batch = _BATCH.get()
    if batch is None or len(values) != len(batch.places):
        uniform = torch.rand_like(values)
    else:
        whole = torch.rand(batch.size, *values.shape[1:], generator=batch.generator)
        uniform = whole[batch.places].to(values)
    return -torch.log(-torch.log(uniform.clamp_(1e-9, 1 - 1e-7)))
