"""The device that a training computes on, and the study of it."""

from __future__ import annotations

import os

import torch

from ..errors import UsageError
from .config import AUTO_DEVICE

PROCESSOR = torch.device("cpu")


def find_device(name: str) -> torch.device:
    """Return the device of a name: of several processes, each takes the next one.

    Args:
        name: "auto" is an accelerator (CUDA, MPS, XPU, ...) where there is one, and else the
            processor; or a name of torch's, with or without a number.

    Raises:
        UsageError: there is no such device.
    """
    known = torch.accelerator.is_available()
    there = torch.accelerator.current_accelerator() if known else None
    if name == AUTO_DEVICE and there is None:
        return PROCESSOR
    asked = there if name == AUTO_DEVICE else _named(name)
    if asked is None or asked.type == PROCESSOR.type:
        return PROCESSOR
    count = torch.accelerator.device_count() if there is not None else 0
    index = asked.index
    if index is None:
        index = int(os.environ.get("LOCAL_RANK", "0")) % max(1, count)
    if there is None or asked.type != there.type or index >= count:
        have = "cpu alone" if there is None else f"cpu and {count} of {there.type}"
        raise UsageError(f"there is no device {name!r}: this machine, and this torch, have {have}")
    return torch.device(asked.type, index)


def _named(name: str) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError:
        raise UsageError(
            f"device is auto, cpu, or another name of torch's, as cuda, cuda:1 or mps; got {name!r}"
        ) from None
