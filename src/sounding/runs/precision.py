"""The precision in which a training, and the study of it, compute."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def precision_on(device: torch.device, precision: str) -> str:
    """Return what that setting of `TrainConfig` means on a device: "fp32", "bf16" or "fp16".

    "auto" is bf16 where the device computes with it natively, and fp16 on an accelerator that does
    not; then gradients are scaled.
    """
    if precision != "auto":
        return precision
    if device.type == "cpu":
        known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return "bf16" if known.get("avx512_bf16") or known.get("amx_bf16") else "fp32"
    if not torch.amp.is_autocast_available(device.type):
        return "fp32"
    supported = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    native = supported is not None and supported(including_emulation=False)
    return "bf16" if native else "fp16"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return a context that computes in the precision of that setting; weights stay fp32."""
    dtype = TYPES.get(precision_on(device, precision))
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
