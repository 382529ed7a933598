"""Random numbers that follow from a seed, whoever draws them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def seeded(*entropy: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch; put their states back at the end.

    Not all randomness of a training is ours: dropout draws from torch, the masking of
    `transformers` from NumPy, and which generator a library takes may change with its version.

    Args:
        entropy: what the numbers follow from, such as seed, step and rank; each 0 or more.
        device: an accelerator whose generator is seeded too.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    other: Any = None if device is None or device.type == "cpu" else _generator_of(device)
    before = None if other is None else other.get_rng_state()
    made = [one.generate_state(4) for one in np.random.SeedSequence(entropy).spawn(3)]
    random.seed(made[0].tobytes())
    np.random.seed(made[1])
    # `torch.manual_seed` would change other devices too
    seed = int.from_bytes(made[2].tobytes()[:8], "little")
    torch.default_generator.manual_seed(seed)
    if other is not None:
        other.manual_seed(seed % 2**63)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if other is not None:
            other.set_rng_state(before)


def _generator_of(device: torch.device) -> Any:
    """Return the module of torch that seeds a device, such as `torch.cuda`; None without one."""
    return getattr(torch, device.type, None)
