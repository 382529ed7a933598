"""Selectors: which layers run, given what enters layer 0 and the budget.

`InputSelector` is our own design in the style of input-driven layer dropping (IDLD,
arXiv 2507.07954); the paper's own selector is not public. The gate relaxation follows the
straight-through Gumbel estimator (arXiv 1611.01144) with top-k by perturbed scores
(arXiv 1903.06059).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Gates:
    """The chosen layers.

    Shape:
        mask: [batch, layers], bool: True where a layer runs.
        weight: [batch, layers], float: 1 on chosen layers in value, with the gradient of the
            relaxed gate; None where no gradient is wanted.
    """

    mask: Tensor
    weight: Tensor | None = None


def top_k_mask(scores: Tensor, k: Tensor) -> Tensor:
    """The `k[i]` highest of `scores[i]`; a tie goes to the earlier layer.

    Shape: scores [batch, layers], k [batch] int -> [batch, layers] bool.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(-1, order, torch.arange(scores.shape[-1], device=scores.device).expand_as(order))
    return rank < k[:, None]


class StaticSelector(nn.Module):
    """The same scores for every input. `StaticSelector.first(layers)` keeps the first k.

    Shape: scores [layers].
    """

    kind = "static"
    scores: Tensor

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.register_buffer("scores", scores.float())

    @classmethod
    def first(cls, layers: int) -> StaticSelector:
        """Keep the first k layers: the trunk of an early exit at depth k."""
        return cls(-torch.arange(layers, dtype=torch.float32))

    def config(self) -> dict[str, object]:
        """What `selector_from_config` needs to build this selector again."""
        return {"kind": self.kind, "layers": self.scores.numel()}

    def forward(self, features: Tensor, frame_mask: Tensor | None, k: Tensor) -> Gates:
        """Shape: features [batch, frames, width]; k [batch] -> gates [batch, layers]."""
        return Gates(top_k_mask(self.scores.expand(features.shape[0], -1), k))


def depth_prior(layers: int, slope: float = 6.0) -> Tensor:
    """Scores that fall with depth: what most good masks of a pretrained encoder look like.

    LayerSkip (arXiv 2404.16710) drops deeper layers more often in the same spirit.

    Shape: -> [layers] float.
    """
    return -slope / layers * torch.arange(layers, dtype=torch.float32)


class InputSelector(nn.Module):
    """Scores each layer from the pooled input features and the budget; the top k run.

    Mean and standard deviation over the valid frames, standardized by running statistics, pass a
    two-layer MLP whose hidden layer is shifted by an embedding of k. In training the scores get
    Gumbel noise and the gates carry a straight-through gradient.

    Args:
        width: of the features that enter layer 0.
        layers: number of layers to score.
        hidden: width of the MLP.
        temperature: of the relaxed gates; lower is closer to the hard choice.
        noise: scale of the Gumbel noise in training; 0 turns exploration off.
    """

    kind = "input"
    center: Tensor
    spread: Tensor
    seen: Tensor

    def __init__(
        self,
        width: int,
        layers: int,
        hidden: int = 64,
        *,
        temperature: float = 1.0,
        noise: float = 1.0,
    ) -> None:
        super().__init__()
        self.width, self.layers, self.hidden = width, layers, hidden
        self.temperature, self.noise = temperature, noise
        self.project = nn.Linear(2 * width, hidden)
        self.budget = nn.Embedding(layers + 1, hidden)
        self.score = nn.Linear(hidden, layers)
        nn.init.zeros_(self.budget.weight)
        nn.init.normal_(self.score.weight, std=0.01)  # near-uniform choice at the start
        with torch.no_grad():
            self.score.bias.copy_(depth_prior(layers))
        self.register_buffer("center", torch.zeros(2 * width))
        self.register_buffer("spread", torch.ones(2 * width))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def config(self) -> dict[str, object]:
        """What `selector_from_config` needs to build this selector again."""
        names = ("kind", "width", "layers", "hidden", "temperature", "noise")
        return {name: getattr(self, name) for name in names}

    def scores(self, features: Tensor, frame_mask: Tensor | None, k: Tensor) -> Tensor:
        """One score a layer, without noise.

        Shape: features [batch, frames, width]; frame_mask [batch, frames] bool, False on padding;
        k [batch] int -> [batch, layers] float32.
        """
        # The features of one input must give one choice: pool in float32 under autocast too.
        with _no_autocast(features.device.type):
            pooled = pool(features.detach().float(), frame_mask)
            if self.training:
                self._observe(pooled)
            pooled = (pooled - self.center) / self.spread
            pooled = pooled.to(self.project.weight.dtype)  # of a model cast as a whole
            hidden = torch.tanh(self.project(pooled) + self.budget(k))
            return self.score(hidden).float()

    def forward(self, features: Tensor, frame_mask: Tensor | None, k: Tensor) -> Gates:
        """Choose `k[i]` layers for input i. Shapes as in `scores`."""
        scores = self.scores(features, frame_mask, k)
        if not self.training:
            return Gates(top_k_mask(scores, k))
        uniform = torch.rand_like(scores).clamp_(1e-9, 1 - 1e-7)
        noisy = scores - self.noise * torch.log(-torch.log(uniform))
        mask = top_k_mask(noisy, k)
        soft = torch.softmax(noisy / self.temperature, dim=-1) * k[:, None]
        return Gates(mask, mask + soft - soft.detach())

    def _observe(self, pooled: Tensor) -> None:
        """Running mean and deviation, so that an answer never depends on the rest of a batch."""
        with torch.no_grad():
            self.seen += 1
            rate = max(0.01, 1 / int(self.seen))
            center, spread = self.center, self.spread
            center.lerp_(pooled.mean(0).to(center.dtype), rate)
            deviation = (pooled - center).square().mean(0).sqrt().clamp(min=1e-3)
            spread.lerp_(deviation.to(spread.dtype), rate)


def _no_autocast(device: str) -> AbstractContextManager[object]:
    available = torch.amp.is_autocast_available(device)  # not on the meta device
    return torch.autocast(device, enabled=False) if available else nullcontext()


def pool(features: Tensor, frame_mask: Tensor | None) -> Tensor:
    """Mean and standard deviation over the valid frames.

    Shape: [batch, frames, width], frame_mask [batch, frames] bool or None -> [batch, 2 * width].
    """
    # In place: one temporary of the size of the features instead of two halves the time.
    if frame_mask is None:
        mean = features.mean(1)
        variance = (features - mean[:, None]).square_().mean(1)
    else:
        weight = frame_mask.unsqueeze(-1).to(features.dtype)
        count = weight.sum(1).clamp(min=1)
        mean = (features * weight).sum(1) / count
        variance = (features - mean[:, None]).mul_(weight).square_().sum(1) / count
    return torch.cat([mean, (variance + 1e-8).sqrt()], dim=-1)


def selector_from_config(config: dict[str, object]) -> InputSelector | StaticSelector:
    """Build a selector from its `config()`, with fresh weights."""
    values = dict(config)
    kind = values.pop("kind", None)
    try:
        if kind == InputSelector.kind:
            return InputSelector(**values)  # type: ignore[arg-type]
        if kind == StaticSelector.kind:
            return StaticSelector.first(int(values["layers"]))  # type: ignore[call-overload]
    except (TypeError, KeyError, RuntimeError) as error:
        raise ValueError(f"the settings of the selector are damaged: {error}") from None
    raise ValueError(f"unknown selector kind {kind!r}: expected 'input' or 'static'")
