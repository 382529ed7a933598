"""Top-k as ONNX has it."""

from __future__ import annotations

import torch
from torch import Tensor


def highest(scores: Tensor, k: Tensor) -> Tensor:
    """Return the mask of the k highest scores, as `top_k_mask` does, but without a sort.

    ONNX does not promise that its sort is stable. Shape: as `top_k_mask`.
    """
    one, other = scores[:, :, None], scores[:, None, :]
    index = torch.arange(scores.shape[1])
    earlier = index[None, :] < index[:, None]
    rank = ((other > one) | ((other == one) & earlier)).sum(-1)
    return rank < k[:, None]
