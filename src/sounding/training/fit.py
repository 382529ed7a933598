"""The second of two stages: a selector fitted to the searched losses of a trained model.

As Dr.LLM does for the paths of a frozen model, but with few layers all masks can be searched: the
model answers some training clips, with noise, under every mask, and a fresh selector learns to
expect a low loss.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..data.features import FeatureSet
from ..policies.masks import every_mask, first_masks, random_masks
from ..policies.selectors import InputSelector, LibrarySelector, depth_prior
from ..runs.mask_outputs import mask_outputs
from ..runs.randomness import seeded
from ..runs.run import Run
from ..tasks.kinds import Targets
from .decay import split_by_decay

CLIPS = 500  # training clips, at most
SNR_DB = 15.0  # of their noise, so that the model does not just know them by heart
SAMPLED = 256  # masks where all would be too many
STEPS = 300
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.1


def fit_selector(run: Run, features: FeatureSet, targets: Targets) -> None:
    """Replace the run's selector by one fitted to these clips, of the kind of `selector_fit`."""
    layers, seed = run.dynamic.num_layers, run.config.seed
    old = run.dynamic.selector
    assert isinstance(old, InputSelector)
    masks = every_mask(layers)
    if masks is None:
        rng = np.random.default_rng(seed)
        each = rng.integers(1, layers, size=SAMPLED)
        drawn = random_masks(rng, SAMPLED, layers, each, depth_prior(layers).numpy())
        masks = torch.unique(torch.cat([first_masks(layers), drawn]), dim=0)
    masks = masks[masks[:, : old.after].all(1)]  # those that the selector can give
    found = mask_outputs(run, features, masks, targets)
    losses = found.losses
    sizes = masks.sum(1)
    by_size = {size: (sizes == size).nonzero().squeeze(1) for size in range(1, layers)}
    by_size = {size: rows for size, rows in by_size.items() if len(rows)}
    with seeded(seed):
        kind = LibrarySelector if run.config.selector_fit == "library" else InputSelector
        new = kind(old.width, layers, old.hidden, after=old.after)
    if isinstance(new, LibrarySelector):
        by_size = {size: complementary(losses, r, new.size) for size, r in by_size.items()}
        for size, rows in by_size.items():
            new.library[size] = masks[rows]
    new.center.copy_(found.pooled.mean(0))
    new.spread.copy_(found.pooled.std(0, correction=0).clamp(min=1e-3))  # of one clip too
    _descend(new, found.pooled, {s: (masks[r], losses[r].T) for s, r in by_size.items()})
    run.dynamic.selector = new.eval()


def _descend(
    selector: InputSelector, pooled: Tensor, by_size: dict[int, tuple[Tensor, Tensor]]
) -> None:
    """Lower the expected loss. Shape: by k, masks [masks, layers] and losses [clips, masks]."""
    if not by_size:
        return  # one layer: there is nothing to choose
    optimizer = torch.optim.AdamW(split_by_decay(selector, WEIGHT_DECAY), lr=LEARNING_RATE)
    for _ in range(STEPS):
        total = torch.zeros(())
        for k, (masks, losses) in by_size.items():
            energy = selector.outputs(pooled, torch.full((len(pooled),), k))
            if not isinstance(selector, LibrarySelector):
                energy = energy[:, selector.after :] @ masks[:, selector.after :].float().T
            total = total + (energy.softmax(-1) * losses).sum(1).mean()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()


def complementary(losses: Tensor, rows: Tensor, size: int) -> Tensor:
    """Masks of which the best for each clip is good: greedily, the one that helps most.

    Args:
        rows: which masks to choose from; fewer than `size` are repeated.

    Shape: losses [masks, clips], rows [some] int -> [size] int.
    """
    chosen = [int(losses[rows].mean(1).argmin())]
    while len(chosen) < min(size, len(rows)):
        so_far = losses[rows[chosen]].amin(0)
        after = torch.minimum(losses[rows], so_far).mean(1)
        after[chosen] = torch.inf
        chosen.append(int(after.argmin()))
    return rows[(chosen * size)[:size]]
