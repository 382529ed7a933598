"""A head of its own for each number of kept layers below full depth: of a classifier or for CTC.

One head that answers after any number of layers serves some of them badly. Early exit (Wright et
al., arXiv 2309.09546) has a head after each layer; here a head belongs to a number of kept layers,
whichever these are. At full depth the model's own head answers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..policies.pooling import float_dtype, frame_mean
from .derive import original_class
from .heads import CLASSIFIERS, CTC, head_of, is_a

HEAD_WIDTH = 256  # as the classification heads of transformers


class ExitHeads(nn.Module):
    """Heads of norm, projection, classifier and mean over the valid frames, for k = 1 to L - 1.

    Args:
        layers: L.
        width: of the encoder.
        labels: number of classes, or of tokens.
        pooled: whether the answer is one a clip, or one a frame.
    """

    def __init__(self, layers: int, width: int, labels: int, *, pooled: bool = True) -> None:
        super().__init__()
        self.layers, self.width, self.labels, self.pooled = layers, width, labels, pooled
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, HEAD_WIDTH), nn.Linear(HEAD_WIDTH, labels)
            )
            for _ in range(layers - 1)
        )

    def config(self) -> dict[str, Any]:
        """Return what the class takes to build these heads again."""
        return {n: getattr(self, n) for n in ("layers", "width", "labels", "pooled")}

    def forward(self, state: Tensor, frame_mask: Tensor | None, k: int) -> Tensor:
        """Return what the head of `k` kept layers answers to the state behind them.

        Shape: state [batch, frames, width]; frame_mask [batch, frames] bool or None
        -> [batch, labels], or [batch, frames, labels].
        """
        head: Any = self.heads[k - 1]
        logits: Tensor = head(state.to(float_dtype(head)))
        if not self.pooled:
            return logits
        return frame_mean(logits, frame_mask)

    def answer(
        self, state: Tensor, frame_mask: Tensor | None, executed: Tensor, own: Tensor
    ) -> Tensor:
        """Return the answer to each input by the head of as many layers as it ran.

        Args:
            own: what the model's own head answers, kept at full depth.

        Shape: executed [batch, layers] bool; own as `forward` -> the same.
        """
        kept = executed.sum(1)
        logits = own
        for k in sorted(set(kept.tolist())):
            if k < self.layers:
                rows = (kept == k).nonzero().squeeze(1).to(state.device)
                valid = None if frame_mask is None else frame_mask[rows]
                part = self(state[rows], valid, max(1, k)).to(own.dtype)
                logits = torch.index_copy(logits, 0, rows, part)
        return logits

    def macs(self, frames: int) -> int:
        """Return the multiply-accumulates of one answer for one input of so many frames."""
        return frames * HEAD_WIDTH * (self.width + self.labels)


def new_exits(model: Any, layers: int, width: int) -> ExitHeads:
    """Make the exits of a classifier or a CTC model, to be trained.

    Raises:
        UsageError: another kind of model.
    """
    head = head_of(model)
    if is_a(head, *CLASSIFIERS):
        return ExitHeads(layers, width, head.config.num_labels)
    if is_a(head, CTC):
        return ExitHeads(layers, width, head.config.vocab_size, pooled=False)
    raise UsageError(
        f"exits are heads of a classifier or for CTC, not of a {original_class(model).__name__}"
    )
