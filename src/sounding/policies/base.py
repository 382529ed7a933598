"""What every policy is: a module that plans, for a budget, which inputs run which layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeAlias

import torch
from torch import Tensor, nn

from ..budget import Budget
from ..errors import UsageError
from .plans import Fixed, Gates, Plan, Readout, Sure, UpFront

MeanBudgets: TypeAlias = list[tuple[float, float]]  # [mean, threshold] by rising mean


@dataclass(frozen=True)
class Context:
    """The call that a plan is for.

    Attributes:
        layers: L, of the encoder.
        batch: number of inputs.
        readout: the answer of some inputs after so many layers, for a policy that reads answers;
            None where the model gives none before its last layer.
        sure: how sure an answer is.
    """

    layers: int
    batch: int
    readout: Readout | None
    sure: Sure

    def kept_layers(self, budget: Budget) -> list[int]:
        """Return how many layers each input keeps, as `Budget.kept_layers` does."""
        return budget.kept_layers(layers=self.layers, batch=self.batch)


class Policy(nn.Module):
    """A module that chooses the layers of an input. A subclass is registered by its `kind`.

    A policy that chooses all layers at once overrides `forward`; any other overrides `plan`.

    Attributes:
        kind: the name that it is registered and saved by.
        after: layers that run before it reads the state: 0 for what enters layer 0.
        reads: how often it reads a state to choose: 0 for a choice that ignores the input.
        reads_threshold: whether its `graph` takes a threshold, for mean budgets.
        mean_budgets: the thresholds that it was calibrated to, for mean budgets.
        gather: in training by several processes, turns the values of this one into those of all.
    """

    kind: ClassVar[str]
    after: int = 0
    reads: int = 1
    reads_threshold: ClassVar[bool] = False
    mean_budgets: MeanBudgets

    def __init__(self) -> None:
        super().__init__()
        self.mean_budgets = []
        self.gather: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def for_encoder(cls, width: int, layers: int) -> Self:
        """Make a policy for an encoder of that width and number of layers, to be trained."""
        return cls()

    def serves(self, budget: Budget) -> bool:
        """Return whether the policy can keep a budget of this kind."""
        return budget.is_exact

    def plan(self, budget: Budget, context: Context) -> Plan:
        """Return the plan of one call.

        Raises:
            ValueError: a budget that is out of range, or that it is not calibrated for.
        """
        k = torch.tensor(context.kept_layers(budget))
        if bool((k == context.layers).all()):  # full depth: there is nothing to choose
            return Fixed(torch.ones(context.batch, context.layers, dtype=torch.bool))
        return UpFront(self, k, after=self.after)

    def forward(self, features: Tensor, frame_mask: Tensor | None, k: Tensor) -> Gates:
        """Choose `k[i]` layers for input i.

        Shape: features [batch, frames, width], the state after `after` layers; frame_mask
        [batch, frames] bool, False on padding, or None; k [batch] int -> gates [batch, layers].
        """
        raise NotImplementedError

    def compute_choice(self, features: Tensor, k: Tensor) -> None:
        """Do the arithmetic of a choice, needed or not, so that its operations are counted.

        Shape: as `forward` takes them.
        """
        if self.reads:
            self(features, None, k)

    def calibrated(self) -> MeanBudgets:
        """Return the thresholds of mean budgets.

        Raises:
            ValueError: there are none yet.
        """
        if not self.mean_budgets:
            raise UsageError(
                "this model has no calibrated mean budgets: train it with validation clips, or "
                "set dynamic.mean_budgets"
            )
        return self.mean_budgets

    def choose_pooled(self, pooled: Tensor, k: int) -> Tensor:
        """Choose k layers from pooled features, for a policy that reads nothing else.

        Shape: pooled [clips, 2 * width], as `pooling.pool` returns them -> [clips, layers] bool.
        """
        raise NotImplementedError(f"a policy {self.kind!r} reads more than pooled features")

    def fixed_mask(self, k: int) -> Tensor | None:
        """Return the k layers that it keeps whatever the input; None where the input matters.

        Shape: -> [layers] bool.
        """
        return None

    def config(self) -> dict[str, Any]:
        """Return what `from_config` needs to build this policy again, as JSON values."""
        return {"kind": self.kind}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build a policy from its `config`, without the kind and with fresh weights."""
        return cls(**config)

    def graph(self) -> nn.Module | None:
        """Return the choice as a module that `torch.export` traces; None where there is none.

        Its `forward` takes (state [batch, frames, width], k [batch] int) and returns a mask
        [batch, layers] bool; where it `reads_threshold`, a threshold [] comes last, and k counts
        where that is infinite.
        """
        return None
