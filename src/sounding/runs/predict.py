"""A run's answer for a batch at a budget, by the rules of the method that trained it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..budget import Budget
from ..policies.masks import random_masks
from ..tasks.base import Prediction
from .run import Batch, Run


@torch.inference_mode()
def predict_logits(
    run: Run, batch: Batch, k: int | Budget, random: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the logits with `k` kept layers, and the layers that ran.

    Methods that draw masks keep the layers of the masks `random`, by default always the same k
    random ones; all others ask their policy.

    Args:
        k: or another budget, such as a mean one, for the policies that serve it.

    Shape: random [batch, layers] bool -> [batch, labels] float, [batch, layers] bool.
    """
    out = run.dynamic(**batch, **choice_of(run, k, random))
    return out.logits, out.executed_layers


def predict(run: Run, batch: Batch, k: int | Budget, random: Tensor | None = None) -> Prediction:
    """Return what `predict_logits` does, with the class or the text of each input.

    See `Task.predict`.
    """
    return run.task.predict(run.dynamic, batch, choice_of(run, k, random))


def choice_of(run: Run, k: int | Budget, random: Tensor | None = None) -> dict[str, Any]:
    """Return the budget, or the mask, for a call of the model; see `predict_logits`."""
    layers = run.dynamic.num_layers
    if isinstance(k, Budget) or not run.method.draws_masks or k == layers:
        return {"budget": k}
    if random is None:
        random = random_masks(np.random.default_rng(0), 1, layers, k)[0]
    return {"mask": random}


def exact_or_mean(budget: Any, layers: int) -> int | Budget:
    """Return what `predict` takes for the budget of one input, as `Budget.parse` takes it.

    Raises:
        BudgetError: a budget that is not allowed.
    """
    asked = Budget.parse(budget)
    return asked.kept_layers(layers=layers)[0] if asked.is_exact else asked
