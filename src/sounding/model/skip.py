"""What passes a layer that is not run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .backbones.base import Backbone

SKIPS = ("identity", "norm", "adapter")
RANK = 32  # of the adapters


class SkipPath(nn.Module):
    """What passes a skipped layer: the identity, the layer's final norm, or an adapter.

    "identity" changes nothing; "norm" applies the final norm of the skipped layer; "adapter" is a
    small linear map.

    The adapter of a layer stands in for it: a scale, a shift and a low-rank map (in the spirit of
    FlexiDepth, arXiv 2503.23798), the identity at the start, about 1 % of a layer's MACs. At
    full depth nothing is skipped, so none of it runs.

    Raises:
        ValueError: an unknown kind, or "norm" for layers that end in none.
    """

    def __init__(
        self, kind: str, backbone: Backbone, layers: list[nn.Module], width: int, rank: int = RANK
    ) -> None:
        super().__init__()
        if kind not in SKIPS:
            raise UsageError(f"skip is one of {', '.join(SKIPS)}; got {kind!r}")
        if kind == "norm" and backbone.final_norm(layers[0]) is None:
            raise UsageError(
                f'skip="norm" needs layers that end in a norm; those of this {backbone.name} do not'
            )
        self.kind, self.backbone = kind, backbone
        self.matrices = ("down", "up") if kind == "adapter" else ()  # the rest are vectors
        if kind == "adapter":
            count = len(layers)
            self.scale = nn.Parameter(torch.zeros(count, width))
            self.shift = nn.Parameter(torch.zeros(count, width))
            self.down = nn.Parameter(torch.randn(count, rank, width) / width**0.5)
            self.up = nn.Parameter(torch.zeros(count, width, rank))

    def forward(self, index: int, layer: nn.Module, hidden: Tensor) -> Tensor:
        """Return what comes out where layer `index` would have been.

        Shape: [batch, frames, width].
        """
        if self.kind == "identity":
            return hidden
        if self.kind == "norm":
            norm = self.backbone.final_norm(getattr(layer, "_orig_mod", layer))
            assert norm is not None  # refused above
            normalized: Tensor = norm(hidden)
            return normalized
        weights = (self.scale, self.shift, self.down, self.up)
        scale, shift, down, up = (weight[index].to(hidden.dtype) for weight in weights)
        low_rank = nn.functional.linear(nn.functional.linear(hidden, down), up, shift)
        return torch.addcmul(low_rank.to(hidden.dtype), hidden, 1 + scale)

    def macs(self, frames: int) -> int:
        """Return the multiply-accumulates of one skipped layer for one input of so many frames."""
        if self.kind != "adapter":
            return 0
        return 2 * frames * self.down[0].numel()
