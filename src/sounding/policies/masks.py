"""Masks of layers: the first k, random ones, all of them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor


def first_masks(layers: int) -> Tensor:
    """Return the first k layers for each k from 1. Shape: -> [layers, layers] bool."""
    return torch.ones(layers, layers, dtype=torch.bool).tril()


def random_masks(
    rng: np.random.Generator, batch: int, layers: int, k: ArrayLike, prior: ArrayLike = 0.0
) -> Tensor:
    """Draw masks of k random layers each.

    Args:
        k: one number, or one for each input.
        prior: log of how much more often a layer is kept than another; [layers], or 0 for all.

    Shape: -> [batch, layers] bool.
    """
    scores = np.asarray(prior) + rng.gumbel(size=(batch, layers))
    rank = (-scores).argsort(axis=1).argsort(axis=1)
    return torch.from_numpy(rank < np.broadcast_to(k, batch)[:, None])


def every_mask(layers: int, limit: int = 1023) -> Tensor | None:
    """Return all masks that keep a layer at least; None where they are more than `limit`.

    Shape: -> [2^layers - 1, layers] bool.
    """
    if 2**layers - 1 > limit:
        return None
    numbers = torch.arange(1, 2**layers)
    return (numbers[:, None] >> torch.arange(layers)) % 2 == 1


def top_k_mask(scores: Tensor, k: Tensor) -> Tensor:
    """Mark the `k[i]` highest of `scores[i]`; a tie goes to the earlier layer.

    Shape: scores [batch, layers], k [batch] int -> [batch, layers] bool.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(-1, order, torch.arange(scores.shape[-1], device=scores.device).expand_as(order))
    return rank < k[:, None]
