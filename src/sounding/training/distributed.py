"""Several processes, each with a part of every batch, as `torchrun` and `accelerate` start them.

`accelerate launch --cpu` starts only one, unless with MPI; `--multi_gpu` starts as many as asked.

Every process has the whole model and takes the same step: the gradients of its part of the batch
are added up over all of them, so the result is that of one process, within float noise, and a
training goes on with any number of them. Layers without a gradient (skipped in a step, or frozen)
are no trouble, since nothing waits for a gradient of its own accord.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from ..runs.device import PROCESSOR, find_device

T = TypeVar("T")
PATIENCE = timedelta(hours=24)  # while the first process calibrates


@dataclass(frozen=True)
class Processes:
    """The group of processes; one process is a group by itself."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this one writes the files."""
        return self.rank == 0

    def share(self, rows: list[int], pieces: int = 1) -> list[tuple[list[int], float]]:
        """Return which clips of a batch this process takes, and the weight of their mean loss.

        Where clips are fewer than processes, each process takes all of them.

        Args:
            pieces: the most that it takes them in; the same number in every process.
        """
        if len(rows) < self.count:
            own, least, whole = rows, len(rows), self.count * len(rows)
        else:
            own, least, whole = rows[self.rank :: self.count], len(rows) // self.count, len(rows)
        pieces = min(pieces, least)
        parts = [own[piece::pieces] for piece in range(pieces)]
        return [(part, len(part) / whole) for part in parts]

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Put the sum over all processes in the place of each gradient."""
        if self.count == 1:
            return
        every = list(parameters)
        has = torch.tensor([float(p.grad is not None) for p in every])
        dist.all_reduce(has)
        used = [p for p, some in zip(every, has.tolist(), strict=True) if some]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([p.grad.flatten() for p in used if p.grad is not None])
        dist.all_reduce(flat)
        parts = flat.split([p.numel() for p in used])
        for parameter, part in zip(used, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def total(self, value: float) -> float:
        """Return the sum over all processes."""
        return float(self.total_of(torch.tensor(value, dtype=torch.float64)))

    def total_of(self, values: Tensor) -> Tensor:
        """Return the sum over all processes of each value, on the processor. Shape: as values."""
        if self.count > 1:
            values = values.cpu().clone()
            dist.all_reduce(values)
        return values

    def mean(self, value: Tensor, weight: float) -> Tensor:
        """Return the mean over the parts of all processes from that of this one, `value`.

        Its gradient is that of the part, so that a loss of the mean has the gradient of one
        process once the gradients of all are added, each times its weight.

        Args:
            weight: of the part, as `share` returns it.

        Shape: [] -> [].
        """
        if self.count == 1:
            return value
        own = torch.tensor([weight * float(value.detach()), weight], dtype=torch.float64)
        summed, weights = self.total_of(own).tolist()
        return value + (summed / weights - value.detach())

    def gather(self, values: Tensor) -> Tensor:
        """Return the values of all processes, without gradients.

        Shape: [own, ...] -> [all, ...].
        """
        if self.count == 1:
            return values
        sizes = [torch.zeros((), dtype=torch.long) for _ in range(self.count)]
        dist.all_gather(sizes, torch.tensor(len(values)))
        largest = max(int(size) for size in sizes)
        padded = values.detach().new_zeros(largest, *values.shape[1:])
        padded[: len(values)] = values.detach()
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])

    def every(self, own: T) -> list[T]:
        """Return what each process has, in the order of their ranks."""
        if self.count == 1:
            return [own]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, own)
        return found

    def in_turn(self, make: Callable[[], T]) -> T:
        """Return what `make` returns; the first process makes it, and files, before the others."""
        if not self.first:
            self.wait()
        made = make()
        if self.first:
            self.wait()
        return made

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.barrier()


ALONE = Processes()


@contextmanager
def processes(device: str = PROCESSOR.type) -> Iterator[Processes]:
    """Join the group that this process was started in, and leave it at the end.

    Args:
        device: that the processes compute on, as the setting of `TrainConfig`. Gradients of an
            accelerator are added up by its own means (NCCL), everything else by gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    joined = dist.is_initialized()
    if not joined:
        backend, own = "gloo", find_device(device)
        if own != PROCESSOR:
            module = torch.get_device_module(own)
            if hasattr(module, "set_device"):  # MPS has one device
                module.set_device(own)
            backend = f"cpu:gloo,{own.type}:{dist.Backend.default_device_backend_map[own.type]}"
        dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        if not joined:
            dist.destroy_process_group()
