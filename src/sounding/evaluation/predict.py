"""A run's answer for a batch at a budget, by the rules of the method that trained it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..training.methods import random_masks
from ..training.runs import Batch, Run

RANDOM = ("random", "dld")


@torch.inference_mode()
def predict(
    run: Run, batch: Batch, k: int | str, random: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits with `k` kept layers, and the layers that ran.

    "random" and "dld" keep the layers of the masks `random`, by default always the same k random
    ones; all others ask their selector, which is "the first k" for "full" and "early-exit".

    Args:
        k: or a mean budget ("mean:3"), for the methods that have one.

    Shape: random [batch, layers] bool -> [batch, labels] float, [batch, layers] bool.
    """
    dynamic, layers = run.dynamic, run.dynamic.num_layers
    if isinstance(k, str) or run.config.method not in RANDOM or k == layers:
        out = dynamic(**batch, budget=k)
    else:
        if random is None:
            random = random_masks(np.random.default_rng(0), 1, layers, k)[0]
        out = dynamic(**batch, mask=random)
    return out.logits, out.executed_layers
