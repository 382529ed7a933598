"""What makes the steps of a training faster, or smaller, while it lasts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..model.layer import uncompiled
from ..runs.run import Run

TF32 = "high"  # for torch: the precision of products in fp32


@contextmanager
def as_set(run: Run) -> Iterator[None]:
    """Compile the layers, save memory for gradients and use TF32 as the settings of a run say.

    Afterwards everything is as it was before.
    """
    config = run.config
    before = torch.get_float32_matmul_precision()
    layers = [uncompiled(layer) for layer in run.dynamic.stack.layers] if config.compile else []
    try:
        if config.tf32:
            torch.set_float32_matmul_precision(TF32)
        if config.gradient_checkpointing:
            _checkpoint(run, on=True)
        for layer in layers:
            layer.compile()
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        if config.gradient_checkpointing:
            _checkpoint(run, on=False)
        for layer in layers:
            layer._compiled_call_impl = None


def _checkpoint(run: Run, *, on: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it has another name from transformers 6 on
        if on:
            run.dynamic.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            run.dynamic.gradient_checkpointing_disable()
