"""The precision in which a training, and the study of it, compute."""

from __future__ import annotations

from typing import Any

import torch


def uses_bf16(precision: str) -> bool:
    """Return whether that setting of `TrainConfig` means bf16 on this machine."""
    if precision != "auto":
        return precision == "bf16"
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def autocast(precision: str) -> torch.autocast:
    """Return a context that computes in that precision; weights stay fp32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=uses_bf16(precision))
