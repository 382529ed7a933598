"""The number of threads in which torch computes.

Threads that wait for each other, and spin meanwhile, take many times the processor time where there
is little to share, and many times as long where another program takes a core.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread, and put the number back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def token_by_token(encoder: nn.Module, decoder: nn.Module) -> Iterator[None]:
    """Let torch compute in one thread, but the encoder and the prompt of the decoder in all.

    A token of one input is a product of matrices with one row, which two threads do not do faster
    than one.
    """

    def all_of_them(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        tokens = kwargs.get("input_ids")
        if module is encoder or tokens is None or tokens.shape[1] > 1:
            torch.set_num_threads(threads)

    def one(*_: Any) -> None:
        torch.set_num_threads(1)

    threads = torch.get_num_threads()
    with one_thread():
        handles = [
            handle
            for part in (encoder, decoder)
            for handle in (
                part.register_forward_pre_hook(all_of_them, with_kwargs=True),
                part.register_forward_hook(one, always_call=True),
            )
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
