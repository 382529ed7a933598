"""The same layers for every input: the first k, or those of the highest learned scores."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from .base import Policy
from .masks import top_k_mask
from .plans import Gates
from .traced import highest


def depth_prior(layers: int, slope: float = 6.0) -> Tensor:
    """Return scores that fall with depth, as most good masks of a pretrained encoder do.

    LayerSkip (arXiv 2404.16710) drops deeper layers more often in the same spirit.

    Shape: -> [layers] float.
    """
    return -slope / layers * torch.arange(layers, dtype=torch.float32)


class StaticScores(Policy):
    """Keeps the k layers of the highest scores, which do not depend on the input.

    Learned scores are those of Dynamic Encoder Size (arXiv 2407.18930).

    Args:
        scores: one a layer. Shape: [layers].
        learn: whether training changes them.
    """

    kind = "static"
    reads = 0

    def __init__(self, scores: Tensor, *, learn: bool = False) -> None:
        super().__init__()
        self.layer_scores = nn.Parameter(scores.float(), requires_grad=learn)

    @classmethod
    def for_encoder(cls, width: int, layers: int) -> Self:
        """Make a policy that keeps the first k of so many layers."""
        return cls.first(layers)

    @classmethod
    def first(cls, layers: int) -> Self:
        """Make a policy that keeps the first k layers: the trunk of an early exit at depth k."""
        return cls(-torch.arange(layers, dtype=torch.float32))

    def scores(self, features: Tensor, frame_mask: Tensor | None, k: Tensor) -> Tensor:
        """Score each layer. Shape: features [batch, frames, width] -> [batch, layers] float32."""
        return self.layer_scores.float().expand(features.shape[0], -1)

    def forward(self, features: Tensor, frame_mask: Tensor | None, k: Tensor) -> Gates:
        """Keep the k layers of the highest scores. Shape: as `Policy.forward`."""
        return Gates(top_k_mask(self.scores(features, frame_mask, k), k))

    def config(self) -> dict[str, Any]:
        """Return what `from_config` needs to build this policy again."""
        return {"kind": self.kind, "layers": self.layer_scores.numel()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build a policy from its `config`; further training does not change its scores."""
        return cls(torch.zeros(config["layers"]))

    def fixed_mask(self, k: int) -> Tensor:
        """Return the k layers of the highest scores. Shape: -> [layers] bool."""
        return top_k_mask(self.layer_scores.detach().cpu()[None], torch.tensor([k]))[0]

    def graph(self) -> nn.Module:
        """Return the choice as a module that `torch.export` traces."""
        return _Mask(self)


class _Mask(nn.Module):
    """The layers of the highest scores."""

    def __init__(self, policy: StaticScores) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, state: Tensor, k: Tensor) -> Tensor:
        """Return the layers to keep.

        Shape: state [batch, frames, width], k [batch] -> [batch, layers] bool.
        """
        return highest(self.policy.scores(state, None, k), k)
