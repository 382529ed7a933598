"""A gate for each layer, predicted from the state: I3D (arXiv 2303.07624)."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..budget import Budget, threshold_for
from ..errors import UsageError
from .base import Context, Policy
from .masks import top_k_mask
from .noise import gumbel_like
from .plans import EveryLayer, Gates, Plan, UpFront, for_rows
from .pooling import float_dtype, hidden_width, no_autocast, pool
from .traced import highest

SCOPES = ("global", "local")


class GateSelector(Policy):
    """Keeps the layers whose gates are open.

    A "global" selector predicts all gates from what enters layer 0, a "local" one each gate from
    what would enter its layer.
    Asked for exactly k layers it keeps the k most open gates ("local": in order, open gates first
    come, and the last ones where they are needed), asked for a mean it keeps the gates above a
    threshold.

    Args:
        width: of the features.
        layers: number of gates.
        hidden: width of the predictor; by default far below 0.5 % of the MACs of a second of audio.
        scope: "global" or "local".
    """

    kind = "gates"
    reads_threshold = True

    def __init__(
        self, width: int, layers: int, hidden: int | None = None, scope: str = "global"
    ) -> None:
        super().__init__()
        if scope not in SCOPES:
            raise UsageError(f'scope is "global" or "local"; got {scope!r}')
        hidden = hidden_width(width) if hidden is None else hidden
        self.width, self.layers, self.hidden, self.scope = width, layers, hidden, scope
        copies, outputs = (layers, 1) if scope == "local" else (1, layers)
        self.reads = copies
        self.project = nn.ModuleList(nn.Linear(2 * width, hidden) for _ in range(copies))
        self.score = nn.ModuleList(nn.Linear(hidden, outputs) for _ in range(copies))
        score: Any
        for score in self.score:
            nn.init.normal_(score.weight, std=0.01)
            nn.init.constant_(score.bias, 1.0)  # open at the start

    @classmethod
    def for_encoder(cls, width: int, layers: int) -> Self:
        """Make a selector for an encoder of that width and number of layers, to be trained."""
        return cls(width, layers)

    def config(self) -> dict[str, Any]:
        """Return what `from_config` needs to build this selector again."""
        return {n: getattr(self, n) for n in ("kind", "width", "layers", "hidden", "scope")}

    def logits(self, state: Tensor, frame_mask: Tensor | None, index: int = 0) -> Tensor:
        """Score the gates: all of them, or that of layer `index` for "local".

        Shape: state [batch, frames, width] -> [batch, layers] or [batch, 1].
        """
        with no_autocast(state.device.type):
            score: Any = self.score[index]
            pooled = pool(state.detach().float(), frame_mask).to(float_dtype(score))
            logits: Tensor = score(torch.tanh(self.project[index](pooled))).float()
            return logits

    def serves(self, budget: Budget) -> bool:
        """Return whether the budget is of kept layers, or a mean."""
        return budget.is_exact or budget.is_mean

    def plan(self, budget: Budget, context: Context) -> Plan:
        """Plan to keep the k most open gates, or for a mean those above its threshold."""
        if budget.is_mean:
            mean = budget.mean_layers(layers=context.layers)
            return self.above(threshold_for(mean, self.calibrated()))
        if self.scope == "global" or budget.keeps_all(layers=context.layers):
            return super().plan(budget, context)
        return LocalGates(self, torch.tensor(context.kept_layers(budget)))

    def forward(self, features: Tensor, frame_mask: Tensor | None, k: Tensor) -> Gates:
        """Keep the k most open "global" gates. Shape: as `Policy.forward`."""
        return Gates(top_k_mask(self.logits(features, frame_mask), k))

    def above(self, threshold: float) -> Plan:
        """Plan to keep the gates above a threshold, and the most open one at least."""
        if self.scope == "local":
            return LocalGates(self, None, threshold)
        return UpFront(_Above(self, threshold), None)

    def graph(self) -> nn.Module | None:
        """Return the choice by "global" gates; None for "local" ones, read before each layer."""
        return _Mask(self) if self.scope == "global" else None


class _Above(nn.Module):
    """The choice of "global" gates by a threshold."""

    def __init__(self, selector: GateSelector, threshold: float) -> None:
        super().__init__()
        self.selector, self.threshold = selector, threshold

    def forward(self, features: Tensor, frame_mask: Tensor | None, k: Tensor) -> Gates:
        """Keep the gates above the threshold, whatever k. Shape: as `Policy.forward`."""
        logits = self.selector.logits(features, frame_mask)
        best = torch.zeros_like(logits, dtype=torch.bool)
        best.scatter_(1, logits.argmax(1, keepdim=True), True)
        return Gates((logits > self.threshold) | best)


class LocalGates:
    """Chooses layer by layer, by the gates of a "local" `GateSelector`.

    Args:
        k: kept layers of each input, or None to keep all gates above the threshold.
            Shape: [batch] int.
    """

    def __init__(self, selector: GateSelector, k: Tensor | None, threshold: float = 0.0) -> None:
        self.selector, self.k, self.threshold = selector, k, threshold
        self.used = torch.empty(0)

    def __call__(
        self, index: int, state: Tensor, frame_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return which inputs run layer `index`. Shape: -> [batch] bool."""
        rows = state.shape[0]
        if index == 0:
            self.used = torch.zeros(rows, dtype=torch.long)
        logit = self.selector.logits(state, frame_mask, index)[:, 0].to("cpu")
        left = self.selector.layers - index
        keep = logit > self.threshold
        if self.k is None:
            keep |= (self.used == 0) & (left == 1)  # at least one
        else:
            k = for_rows(self.k, rows)
            keep = (keep & (self.used < k)) | (k - self.used >= left)
        self.used = self.used + keep
        return keep, None


class SampledGates:
    """Gates of a `GateSelector` for `EveryLayer`, drawn anew for each input.

    Attributes:
        soft: the relaxed gates so far, [batch] for each layer, for a penalty on their mean.
    """

    def __init__(self, selector: GateSelector, temperature: float = 1.0) -> None:
        self.selector, self.temperature = selector, temperature
        self.soft: list[Tensor] = []
        self._all = torch.empty(0)

    def __call__(self, index: int, state: Tensor, frame_mask: Tensor | None) -> Tensor:
        """Return the weight of the gate of layer `index`. Shape: -> [batch] float."""
        if self.selector.scope == "local":
            logit = self.selector.logits(state, frame_mask, index)[:, 0]
        else:
            if index == 0:
                self._all = self.selector.logits(state, frame_mask)
            logit = self._all[:, index]
        noisy = logit + gumbel_like(logit) - gumbel_like(logit)
        soft = torch.sigmoid(noisy / self.temperature)
        self.soft.append(soft)
        return (noisy > 0).to(soft.dtype) + soft - soft.detach()

    def plan(self) -> EveryLayer:
        """Plan a pass in which every layer runs, and counts where its gate is open."""
        return EveryLayer(self)


class _Mask(nn.Module):
    """The layers that "global" gates keep: k of them, or those above a finite threshold."""

    def __init__(self, selector: GateSelector) -> None:
        super().__init__()
        self.selector = selector

    def forward(self, state: Tensor, k: Tensor, threshold: Tensor) -> Tensor:
        """Return the layers to keep.

        Shape: state [batch, frames, width], k [batch], threshold [] -> [batch, layers] bool.
        """
        logits = self.selector.logits(state, None)
        best = highest(logits, torch.ones_like(k))
        mean = threshold < math.inf
        # ONNX Runtime has no `Where` of bool
        return (mean & ((logits > threshold) | best)) | (~mean & highest(logits, k))
