"""A run's answer for a batch at a budget, by the rules of the method that trained it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..training.methods import random_masks
from ..training.runs import Run


@torch.inference_mode()
def predict(
    run: Run, batch: dict[str, Tensor], k: int, random: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits with `k` kept layers, and the layers that ran.

    "input" asks its selector; "full" and "early-exit" keep the first k layers, the latter with
    the head of that exit; "random" keeps the layers of the masks `random`, by default always the
    same k random ones.

    Shape: random [batch, layers] bool -> [batch, labels] float, [batch, layers] bool.
    """
    layers = run.dynamic.num_layers
    if run.exits is not None:
        outputs, executed = run.dynamic.layer_outputs(batch, k)
        return run.exits(*outputs[-1], k), executed
    if run.config.method == "input" or k == layers:
        out = run.dynamic(**batch, budget=k)
    elif run.config.method == "random":
        if random is None:
            random = random_masks(np.random.default_rng(0), 1, layers, k)[0]
        out = run.dynamic(**batch, mask=random)
    else:
        out = run.dynamic(**batch, mask=torch.arange(layers) < k)
    return out.logits, out.executed_layers
