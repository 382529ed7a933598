"""Top-k as ONNX has it."""

from __future__ import annotations

import torch
from torch import Tensor


def highest(scores: Tensor, k: Tensor) -> Tensor:
    """As `top_k_mask`, without a sort, which ONNX does not promise to be stable."""
    one, other = scores[:, :, None], scores[:, None, :]
    index = torch.arange(scores.shape[1])
    earlier = index[None, :] < index[:, None]
    rank = ((other > one) | ((other == one) & earlier)).sum(-1)
    return rank < k[:, None]
