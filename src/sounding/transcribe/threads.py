"""How many threads torch computes in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def one_thread(but: nn.Module | None = None) -> Iterator[None]:
    """Let torch compute in one thread, and put the number back.

    For a model that computes little at a time: threads that wait for each other, and spin
    meanwhile, take many times the processor time, and where another program takes a core many
    times as long.

    Args:
        but: a part of the model that has work for all of them.
    """
    threads = torch.get_num_threads()
    handles = []
    if but is not None:
        handles = [
            but.register_forward_pre_hook(lambda *_: torch.set_num_threads(threads)),
            but.register_forward_hook(lambda *_: torch.set_num_threads(1), always_call=True),
        ]
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for handle in handles:
            handle.remove()
