"""A run's answer for a batch at a budget, by the rules of the method that trained it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..training.exits import ExitHeads
from ..training.methods import random_masks
from ..training.runs import Batch, Run

CHOOSING = ("input", "static", "i3d")
RANDOM = ("random", "dld")


@torch.inference_mode()
def predict(
    run: Run, batch: Batch, k: int | str, random: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits with `k` kept layers, and the layers that ran.

    "input", "static" and "i3d" ask their selector; "full" and "early-exit" keep the first k
    layers, the latter with the head of that exit; "random" and "dld" keep the layers of the masks
    `random`, by default always the same k random ones.

    Args:
        k: or a mean budget ("mean:3"), for the methods that have one.

    Shape: random [batch, layers] bool -> [batch, labels] float, [batch, layers] bool.
    """
    dynamic, layers = run.dynamic, run.dynamic.num_layers
    if run.exits is not None:
        return _exits(run, run.exits, batch, k)
    if isinstance(k, str) or run.config.method in CHOOSING or k == layers:
        out = dynamic(**batch, budget=k)
    elif run.config.method in RANDOM:
        if random is None:
            random = random_masks(np.random.default_rng(0), 1, layers, k)[0]
        out = dynamic(**batch, mask=random)
    else:
        out = dynamic(**batch, mask=torch.arange(layers) < k)
    return out.logits, out.executed_layers


def _exits(run: Run, exits: ExitHeads, batch: Batch, k: int | str) -> tuple[Tensor, Tensor]:
    if isinstance(k, int):
        outputs, executed = run.dynamic.layer_outputs(batch, k)
        return exits(*outputs[-1], k), executed
    outputs, executed = run.dynamic.layer_outputs(batch, budget=k)
    depths = executed.sum(1)
    logits = torch.zeros(len(depths), len(run.labels))
    for depth in depths.unique().tolist():
        rows = (depths == depth).nonzero().squeeze(1)
        state, frame_mask = outputs[depth - 1]
        valid = None if frame_mask is None else frame_mask[rows]
        logits[rows] = exits(state[rows], valid, depth).float()
    return logits, executed
