"""The input decides how many layers run, and static scores decide which.

It is for a model with a decoder, which answers after its last layer only, so that it cannot stop
where it is sure. What each depth would cost an input, the divergence of its answer from that of the
full depth, is predicted from the state after the first layers; `methods.depths` fits that to clips.
A mean budget then keeps for each input the k with the lowest sum of the predicted cost and a price
for each layer (a Lagrange multiplier), which was found on validation clips for that mean.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from ..budget import Budget, BudgetError, threshold_for
from ..errors import UsageError
from .base import Context, MeanBudgets
from .masks import top_k_mask
from .plans import Fixed, Gates, Plan, UpFront
from .pooling import no_autocast, pool
from .static import StaticScores


class PredictedDepth(StaticScores):
    """Keeps the layers of the highest scores: k of them, or as many as an input seems to need.

    Args:
        scores: one a layer. Shape: [layers].
        width: of the features.
        after: layers that run before it reads the state.
        least: the fewest layers that it keeps at a mean budget; its first `after` are among them.

    Shape:
        center, spread: [2 * width]: what standardizes pooled features.
        slopes [depths, 2 * width], offsets [depths]: of the logarithm of the predicted divergence,
            in nats a token, for `least`, `least` + 1, ... layers.

    Raises:
        UsageError: a reading or a depth that the scores do not allow.
    """

    kind = "predicted"
    reads = 1
    center: Tensor
    spread: Tensor
    slopes: Tensor
    offsets: Tensor

    def __init__(self, scores: Tensor, width: int, *, after: int = 0, least: int = 1) -> None:
        super().__init__(scores)
        layers = len(scores)
        if not 0 <= after <= least <= layers or least < 1:
            raise UsageError(
                f"after and least are 0 <= after <= least <= {layers}, and least is 1 or more; got "
                f"after {after}, least {least}"
            )
        self.width, self.layers, self.after, self.least = width, layers, after, least
        depths = layers - least + 1
        self.register_buffer("center", torch.zeros(2 * width))
        self.register_buffer("spread", torch.ones(2 * width))
        self.register_buffer("slopes", torch.zeros(depths, 2 * width))
        self.register_buffer("offsets", torch.zeros(depths))

    @classmethod
    def for_encoder(cls, width: int, layers: int) -> Self:
        """Make a policy that keeps the first k layers, whose predictor is to be fitted."""
        return cls(-torch.arange(layers, dtype=torch.float32), width)

    @property
    def depths(self) -> list[int]:
        """The numbers of layers that a mean budget chooses from."""
        return list(range(self.least, self.layers + 1))

    def config(self) -> dict[str, Any]:
        """Return what `from_config` needs to build this policy again."""
        names = ("kind", "width", "layers", "after", "least")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build a policy from its `config`, with fresh weights."""
        values = dict(config)
        return cls(torch.zeros(values.pop("layers")), **values)

    def serves(self, budget: Budget) -> bool:
        """Return whether the budget is of kept layers, or a mean."""
        return budget.is_exact or budget.is_mean

    def plan(self, budget: Budget, context: Context) -> Plan:
        """Plan to keep the layers of the highest scores: k, or as many as seem to be needed."""
        if budget.is_mean:
            mean = budget.mean_layers(layers=context.layers)
            if mean < self.least:
                raise BudgetError(
                    f"budget {str(budget)!r} is not allowed: this model chooses from {self.least} "
                    f'to {self.layers} layers; give "mean:{self.least}" or more, or a number of '
                    "kept layers"
                )
            chosen = _Cheapest(self, threshold_for(mean, self.calibrated()))
            return UpFront(chosen, torch.full((context.batch,), self.layers), after=self.after)
        k = torch.tensor(context.kept_layers(budget))
        scores = self.layer_scores.detach().to("cpu").expand(context.batch, -1)
        return Fixed(top_k_mask(scores, k))  # nothing is read

    def calibrated(self) -> MeanBudgets:
        """Return the prices of a layer by mean.

        Raises:
            UsageError: the predictor is not fitted yet.
        """
        if not self.mean_budgets:
            raise UsageError(
                "this model has not learned how many layers an input needs: fit that by "
                "`sounding calibrate RUN --data DIR`, or give a number of kept layers"
            )
        return self.mean_budgets

    def costs(self, pooled: Tensor) -> Tensor:
        """Return the predicted divergence from the full depth, in nats a token, by `depths`.

        Shape: pooled [batch, 2 * width], as `pooling.pool` returns them -> [batch, depths].
        """
        with no_autocast(pooled.device.type):
            standard = (pooled.float() - self.center.float()) / self.spread.float()
            # sums row by row: a matrix product may round otherwise in another batch
            logs = (standard[:, None] * self.slopes.float()).sum(-1) + self.offsets.float()
            return logs.exp()

    def compute_choice(self, features: Tensor, k: Tensor) -> None:
        """Predict the costs, so that the operations are counted. Shape: as `forward` takes them."""
        nn.functional.linear(pool(features.float(), None), self.slopes.float())  # as in `costs`


class _Cheapest(nn.Module):
    """The choice at a price of a layer."""

    def __init__(self, policy: PredictedDepth, price: float) -> None:
        super().__init__()
        self.policy, self.price = policy, price

    def forward(self, features: Tensor, frame_mask: Tensor | None, k: Tensor) -> Gates:
        """Choose for each input by its own state, whatever k. Shape: as `Policy.forward`."""
        policy = self.policy
        costs = policy.costs(pool(features.detach().float(), frame_mask))
        kept = cheapest(costs, self.price, policy.least)
        return Gates(top_k_mask(policy.scores(features, frame_mask, kept), kept))


def cheapest(costs: Tensor, price: float, least: int) -> Tensor:
    """Return how many layers have the lowest sum of cost and price; a tie goes to fewer layers.

    Shape: costs [inputs, depths], of `least`, `least` + 1, ... layers -> [inputs] int.
    """
    depths = torch.arange(costs.shape[1], device=costs.device)
    return (costs.double() + price * depths).argmin(1) + least
