"""Selectors: which layers run, given what enters layer 0 and the budget.

`InputSelector` is our own design in the style of input-driven layer dropping (IDLD,
arXiv 2507.07954); the paper's own selector is not public. The gate relaxation follows the
straight-through Gumbel estimator (arXiv 1611.01144) with top-k by perturbed scores
(arXiv 1903.06059).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .pooling import float_dtype, gumbel_like, no_autocast, pool


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

    Learned scores are those of Dynamic Encoder Size (arXiv 2407.18930).

    Args:
        scores: one a layer. Shape: [layers].
        learn: whether training changes them.
    """

    kind = "static"
    after = 0

    def __init__(self, scores: Tensor, *, learn: bool = False) -> None:
        super().__init__()
        self.layer_scores = nn.Parameter(scores.float(), requires_grad=learn)

    def scores(self, features: Tensor, frame_mask: Tensor | None, k: Tensor) -> Tensor:
        """Shape: features [batch, frames, width] -> [batch, layers] float32."""
        return self.layer_scores.float().expand(features.shape[0], -1)

    @classmethod
    def first(cls, layers: int) -> StaticSelector:
        """Keep the first k layers: the trunk of an early exit at depth k."""
        return cls(-torch.arange(layers, dtype=torch.float32))

    def config(self) -> dict[str, object]:
        """What `selector_from_config` needs to build this selector again."""
        return {"kind": self.kind, "layers": self.layer_scores.numel()}

    def forward(self, features: Tensor, frame_mask: Tensor | None, k: Tensor) -> Gates:
        """Shape: features [batch, frames, width]; k [batch] -> gates [batch, layers]."""
        return Gates(top_k_mask(self.scores(features, frame_mask, k), k))


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
        after: layers that always run before the selector reads: 0 for the input features, 1 for
            what layer 0 makes of them.
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
        hidden: int = 64,
        *,
        temperature: float = 1.0,
        noise: float = 1.0,
        after: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= after < layers:
            raise ValueError(f"after is from 0 to {layers - 1}; got {after}")
        self.width, self.layers, self.hidden, self.after = width, layers, hidden, after
        self.gather: Callable[[Tensor], Tensor] | None = None  # from several processes
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
        # of each k: scores that stand in for those of the input, and whether they do; bytes, since
        # an average of models (torch's AveragedModel) subtracts buffers, which bool does not know
        self.register_buffer("fallback", torch.zeros(layers + 1, layers))
        self.register_buffer("falls_back", torch.zeros(layers + 1, dtype=torch.uint8))

    def fall_back(self, k: int, mask: Tensor) -> None:
        """Keep the layers of `mask` for every input whose budget is k. Shape: mask [layers]."""
        if int(mask.sum()) != k or not bool(mask[: self.after].all()):
            raise ValueError(f"a mask of {k} layers is needed, with the first {self.after} in it")
        self.fallback[k] = mask.float()
        self.falls_back[k] = 1

    def config(self) -> dict[str, object]:
        """What `selector_from_config` needs to build this selector again."""
        names = ("kind", "width", "layers", "hidden", "temperature", "noise", "after")
        return {name: getattr(self, name) for name in names}

    def scores(self, features: Tensor, frame_mask: Tensor | None, k: Tensor) -> Tensor:
        """One score a layer, without noise.

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
        """As `scores`, from features that are pooled. Shape: pooled [batch, 2 * width]."""
        scores = self._free_scores(pooled, k)
        fixed = self.falls_back[k].bool()[:, None]
        scores = torch.where(fixed, self.fallback[k].float(), scores)
        if self.after:  # these have run
            scores[:, : self.after] = torch.inf
        return scores

    def outputs(self, pooled: Tensor, k: Tensor) -> Tensor:
        """Of the MLP. Shape: pooled [batch, 2 * width], k [batch] -> [batch, outputs] float32."""
        with no_autocast(pooled.device.type):
            pooled = (pooled - self.center) / self.spread
            pooled = pooled.to(float_dtype(self))  # of a model cast as a whole
            hidden = torch.tanh(self.project(pooled) + self.budget(k))
            return self.score(hidden).float()

    def _free_scores(self, pooled: Tensor, k: Tensor) -> Tensor:
        return self.outputs(pooled, k)

    def forward(self, features: Tensor, frame_mask: Tensor | None, k: Tensor) -> Gates:
        """Choose `k[i]` layers for input i. Shapes as in `scores`."""
        known = not self.training and not k.is_meta
        if known and bool(self.falls_back[k].all()):
            return Gates(self.fallback[k] > 0.5)  # nothing to read
        scores = self.scores(features, frame_mask, k)
        if not self.training:
            return Gates(top_k_mask(scores, k))
        noisy = scores + self.noise * gumbel_like(scores)
        mask = top_k_mask(noisy, k)
        free = noisy[:, self.after :]
        soft = torch.softmax(free / self.temperature, dim=-1)
        soft = soft * (k[:, None] - self.after).clamp(min=0)
        soft = nn.functional.pad(soft, (self.after, 0))
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


class LibrarySelector(InputSelector):
    """Picks one of a few masks for each budget, in place of scoring each layer.

    A small library of masks is as cheap as scores and can hold layers that only go together
    (IG-Pruning, arXiv 2511.02213, has one mask for each cluster of inputs).

    Args:
        size: masks for each budget. The others as `InputSelector`.

    Shape: library [layers + 1, size, layers] of 0 and 1: at k, masks of k layers.
    """

    kind = "library"
    library: Tensor

    def __init__(self, width: int, layers: int, hidden: int = 64, *, size: int = 4, **rest: Any):
        super().__init__(width, layers, hidden, **rest)
        self.size = size
        self.score = nn.Linear(hidden, size)
        nn.init.normal_(self.score.weight, std=0.01)
        first = torch.arange(layers) < torch.arange(layers + 1)[:, None]
        self.register_buffer("library", first[:, None].repeat(1, size, 1).byte())

    def config(self) -> dict[str, object]:
        """What `selector_from_config` needs to build this selector again."""
        return {**super().config(), "size": self.size}

    def _free_scores(self, pooled: Tensor, k: Tensor) -> Tensor:
        return self.library[k, self.outputs(pooled, k).argmax(-1)].float()

    def forward(self, features: Tensor, frame_mask: Tensor | None, k: Tensor) -> Gates:
        """As `InputSelector.forward`, in training too: the choice of a mask has no gradient."""
        return Gates(top_k_mask(self.scores(features, frame_mask, k), k))


class GateSelector(nn.Module):
    """I3D (arXiv 2303.07624): a gate for each layer, predicted from pooled features.

    "global": all gates from what enters layer 0. "local": each from what would enter its layer.
    Trained with a straight-through Gumbel-softmax and a penalty on the mean gate; asked for exactly
    k layers it keeps the k most open gates ("local": in order, open gates first come, and the last
    ones where they are needed), asked for a mean it keeps the gates above a threshold.

    Args:
        width: of the features.
        layers: number of gates.
        hidden: width of the predictor.
        scope: "global" or "local".
    """

    kind = "gates"
    after = 0

    def __init__(self, width: int, layers: int, hidden: int = 32, scope: str = "global") -> None:
        super().__init__()
        if scope not in ("global", "local"):
            raise ValueError(f'scope is "global" or "local"; got {scope!r}')
        self.width, self.layers, self.hidden, self.scope = width, layers, hidden, scope
        self.reads = layers if scope == "local" else 1  # how often it reads the state
        copies = layers if scope == "local" else 1
        self.project = nn.ModuleList(nn.Linear(2 * width, hidden) for _ in range(copies))
        outputs = 1 if scope == "local" else layers
        self.score = nn.ModuleList(nn.Linear(hidden, outputs) for _ in range(copies))
        score: Any
        for score in self.score:
            nn.init.normal_(score.weight, std=0.01)
            nn.init.constant_(score.bias, 1.0)  # open at the start

    def config(self) -> dict[str, object]:
        """What `selector_from_config` needs to build this selector again."""
        return {
            name: getattr(self, name) for name in ("kind", "width", "layers", "hidden", "scope")
        }

    def logits(self, state: Tensor, frame_mask: Tensor | None, index: int = 0) -> Tensor:
        """Of the gates: all of them, or that of layer `index` for "local".

        Shape: state [batch, frames, width] -> [batch, layers] or [batch, 1].
        """
        with no_autocast(state.device.type):
            score: Any = self.score[index]
            pooled = pool(state.detach().float(), frame_mask).to(float_dtype(score))
            return score(torch.tanh(self.project[index](pooled))).float()

    def forward(self, features: Tensor, frame_mask: Tensor | None, k: Tensor) -> Gates:
        """Keep the k most open gates ("global"). Shapes as `InputSelector.forward`."""
        return Gates(top_k_mask(self.logits(features, frame_mask), k))


Selector: TypeAlias = InputSelector | StaticSelector | GateSelector


MOST = 4096  # of the widths of a selector that a file may ask for


def selector_from_config(config: dict[str, Any], *, width: int, layers: int) -> Selector:
    """Build a selector from its `config()`, with fresh weights.

    Args:
        width, layers: of the encoder (or decoder) that it is for.

    Raises:
        ValueError: an unknown kind, or settings that are damaged or do not fit.
    """
    values = dict(config)
    kind = values.pop("kind", None)
    if values.get("layers") != layers or values.get("width", width) != width:
        raise ValueError(f"the settings of the selector are not for {layers} layers of {width}")
    if any(type(v) is int and not 0 <= v <= MOST for n, v in values.items() if n != "width"):
        raise ValueError("the settings of the selector are damaged: a number out of range")
    try:
        if kind == InputSelector.kind:
            return InputSelector(**values)
        if kind == LibrarySelector.kind:
            return LibrarySelector(**values)
        if kind == StaticSelector.kind:
            return StaticSelector.first(layers)
        if kind == GateSelector.kind:
            return GateSelector(**values)
    except (TypeError, KeyError, RuntimeError) as error:
        raise ValueError(f"the settings of the selector are damaged: {error}") from None
    raise ValueError(
        f"unknown selector kind {kind!r}: expected 'input', 'library', 'static' or 'gates'"
    )
