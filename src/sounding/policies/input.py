"""Score each layer of an input by what enters layer 0, or leaves the first layers.

Our own design in the style of input-driven layer dropping (IDLD, arXiv 2507.07954); the paper's own
selector is not public. The gate relaxation follows the straight-through Gumbel estimator
(arXiv 1611.01144) with top-k by perturbed scores (arXiv 1903.06059).
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .base import Policy
from .masks import top_k_mask
from .noise import gumbel_like
from .plans import Gates
from .pooling import float_dtype, hidden_width, no_autocast, pool
from .static import depth_prior
from .traced import highest


class InputSelector(Policy):
    """Scores each layer from the pooled input features and the budget; the top k run.

    Mean and standard deviation over the valid frames, standardized by running statistics, pass a
    two-layer MLP whose hidden layer is shifted by an embedding of k.

    Args:
        width: of the features that enter layer 0.
        layers: number of layers to score.
        hidden: width of the MLP; by default far below 0.5 % of the MACs of a second of audio.
        after: layers that always run before the selector reads: 0 for the input features, 1 for
            what layer 0 makes of them.
        prior: whether the scores begin as those that fall with depth.
    """

    kind = "input"
    center: Tensor
    spread: Tensor
    seen: Tensor
    fallback: Tensor
    falls_back: Tensor

    def __init__(
        self,
        width: int,
        layers: int,
        hidden: int | None = None,
        *,
        after: int = 0,
        prior: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= after < layers:
            raise UsageError(f"after is from 0 to {layers - 1}; got {after}")
        self.width, self.layers, self.after = width, layers, after
        self.hidden = hidden_width(width) if hidden is None else hidden
        self.project = nn.Linear(2 * width, self.hidden)
        self.budget = nn.Embedding(layers + 1, self.hidden)
        self.score = nn.Linear(self.hidden, layers)
        nn.init.zeros_(self.budget.weight)
        nn.init.normal_(self.score.weight, std=0.01)  # near-uniform choice at the start
        with torch.no_grad():
            self.score.bias.copy_(depth_prior(layers) if prior else torch.zeros(layers))
        self.register_buffer("center", torch.zeros(2 * width))
        self.register_buffer("spread", torch.ones(2 * width))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        # of each k: scores that stand in for those of the input, and whether they do; bytes, since
        # an average of models (torch's AveragedModel) subtracts buffers, which bool does not know
        self.register_buffer("fallback", torch.zeros(layers + 1, layers))
        self.register_buffer("falls_back", torch.zeros(layers + 1, dtype=torch.uint8))

    def fall_back(self, k: int, mask: Tensor) -> None:
        """Keep the layers of `mask` for every input whose budget is k. Shape: mask [layers]."""
        if int(mask.sum()) != k or not bool(mask[: self.after].all()):
            raise UsageError(f"a mask of {k} layers is needed, with the first {self.after} in it")
        self.fallback[k] = mask.float()
        self.falls_back[k] = 1

    @classmethod
    def for_encoder(cls, width: int, layers: int) -> Self:
        """Make a selector for an encoder of that width and number of layers, to be trained."""
        return cls(width, layers)

    def config(self) -> dict[str, Any]:
        """Return what `from_config` needs to build this selector again."""
        names = ("kind", "width", "layers", "hidden", "after")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> InputSelector:
        """Build a selector from its `config`; relaxation settings of older files are ignored."""
        return cls(**{n: v for n, v in config.items() if n not in ("temperature", "noise")})

    def scores(self, features: Tensor, frame_mask: Tensor | None, k: Tensor) -> Tensor:
        """Score each layer.

        Shape: features [batch, frames, width]; frame_mask [batch, frames] bool, False on padding;
        k [batch] int -> [batch, layers] float32.
        """
        # The features of one input must give one choice: pool in float32 under autocast too.
        with no_autocast(features.device.type):
            pooled = pool(features.detach().float(), frame_mask)
            if self.training:
                self._observe(pooled if self.gather is None else self.gather(pooled))
            return self.scores_of(pooled, k)

    def scores_of(self, pooled: Tensor, k: Tensor) -> Tensor:
        """Score each layer from pooled features.

        Shape: pooled [batch, 2 * width], k [batch] int -> [batch, layers] float32.
        """
        fixed = self.falls_back[k].bool()[:, None]
        scores = torch.where(fixed, self.fallback[k].float(), self._outputs(pooled, k))
        if self.after:  # these have run
            scores[:, : self.after] = torch.inf
        return scores

    def _outputs(self, pooled: Tensor, k: Tensor) -> Tensor:
        """Return the outputs of the MLP.

        Shape: pooled [batch, 2 * width], k [batch] -> [batch, layers] float32.
        """
        with no_autocast(pooled.device.type):
            pooled = (pooled - self.center) / self.spread
            pooled = pooled.to(float_dtype(self))  # of a model cast as a whole
            hidden = torch.tanh(self.project(pooled) + self.budget(k))
            scores: Tensor = self.score(hidden).float()
            return scores

    def forward(self, features: Tensor, frame_mask: Tensor | None, k: Tensor) -> Gates:
        """Keep the k best layers; in training by `relaxed` gates, to learn from any loss.

        Shape: as `Policy.forward`.
        """
        if self.training:
            return self.relaxed(features, frame_mask, k)
        if k.is_cpu and bool(self.falls_back[k].all()):  # elsewhere to ask would take longer
            return Gates(self.fallback[k] > 0.5)  # nothing to read
        return Gates(top_k_mask(self.scores(features, frame_mask, k), k))

    def compute_choice(self, features: Tensor, k: Tensor) -> None:
        """Compute the scores, also for a budget whose layers `fall_back` has fixed.

        Otherwise there would be nothing to count. Shape: as `Policy.compute_choice`.
        """
        self.scores(features, None, k)

    def relaxed(
        self, features: Tensor, frame_mask: Tensor | None, k: Tensor, temperature: float = 1.0
    ) -> Gates:
        """Choose by scores with Gumbel noise, with the gradient of relaxed gates.

        The weight of a gate is 0 or 1 in value; its gradient is that of k times the softmax of
        the scores.

        Args:
            temperature: of the relaxed gates; lower is closer to the hard choice.
        """
        scores = self.scores(features, frame_mask, k)
        noisy = scores + gumbel_like(scores)
        mask = top_k_mask(noisy, k)
        soft = torch.softmax(noisy[:, self.after :] / temperature, dim=-1)
        soft = soft * (k[:, None] - self.after).clamp(min=0)
        soft = nn.functional.pad(soft, (self.after, 0))
        return Gates(mask, mask + soft - soft.detach())

    @torch.inference_mode()
    def choose_pooled(self, pooled: Tensor, k: int) -> Tensor:
        """Choose k layers from pooled features. Shape: as `Policy.choose_pooled`."""
        device = self.center.device
        budget = torch.full((len(pooled),), k, device=device)
        return top_k_mask(self.scores_of(pooled.to(device), budget), budget).to(pooled.device)

    def graph(self) -> nn.Module:
        """Return the choice as a module that `torch.export` traces."""
        return _Mask(self)

    def _observe(self, pooled: Tensor) -> None:
        """Update the running mean and deviation.

        They standardize the features, so that an answer never depends on the rest of its batch.
        """
        with torch.no_grad():
            self.seen += 1
            rate = max(0.01, 1 / int(self.seen))
            center, spread = self.center, self.spread
            center.lerp_(pooled.mean(0).to(center.dtype), rate)
            deviation = (pooled - center).square().mean(0).sqrt().clamp(min=1e-3)
            spread.lerp_(deviation.to(spread.dtype), rate)


class _Mask(nn.Module):
    """The layers that a selector keeps, as a module to trace."""

    def __init__(self, selector: InputSelector) -> None:
        super().__init__()
        self.selector = selector

    def forward(self, state: Tensor, k: Tensor) -> Tensor:
        """Return the layers to keep.

        Shape: state [batch, frames, width], k [batch] -> [batch, layers] bool.
        """
        return highest(self.selector.scores_of(pool(state, None), k), k)
