"""Early exit, the baseline: a head after each layer, trained by the sum of their losses.

Wright et al., arXiv 2309.09546. An exit at depth k runs the first k layers and the k-th head.
"""

from __future__ import annotations

from torch import Tensor, nn

HEAD_WIDTH = 256  # as the classification heads of transformers


class ExitHeads(nn.Module):
    """One head per layer: norm, projection, mean over the valid frames, classifier."""

    def __init__(self, layers: int, width: int, labels: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, HEAD_WIDTH), nn.Linear(HEAD_WIDTH, labels)
            )
            for _ in range(layers)
        )

    def forward(self, hidden: Tensor, frame_mask: Tensor | None, k: int) -> Tensor:
        """Logits of the exit after `k` layers.

        Shape: hidden [batch, frames, width]; frame_mask [batch, frames] bool or None
        -> [batch, labels].
        """
        logits = self.heads[k - 1](hidden)
        if frame_mask is None:
            return logits.mean(1)
        weight = frame_mask.unsqueeze(-1).to(logits.dtype)
        return (logits * weight).sum(1) / weight.sum(1)
