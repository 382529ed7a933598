"""An export held against PyTorch: the same logits and the same layers, at every budget."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

from ..budget import Budget
from ..data.features import extract
from ..runs.predict import predict_logits
from ..runs.run import Run
from ..runtime import Model
from .parts import ExportError

SECONDS = (0.4, 0.75, 1.1)  # of the inputs
TOLERANCE = 1e-4  # of the largest logit
FEATURE_TOLERANCE = 1e-3  # a bin near the floor differs more than the others
ROUNDS = 15


@dataclass(frozen=True)
class Difference:
    """How an export differs from PyTorch.

    Attributes:
        error: the largest difference of a logit, over the largest logit of its input, where the
            same layers ran.
        agreeing: of so many `answers`, with the same class.
        other_layers: answers that ran other layers.
    """

    error: float
    agreeing: int
    answers: int
    other_layers: int


def validate(run: Run, model: Model, *, exact: bool) -> Difference:
    """Compare an export with its run on made-up sounds, at every budget.

    Args:
        exact: refuse any difference above float noise (not for int8).

    Raises:
        ExportError: other features, other layers or other logits than PyTorch's.
    """
    errors, agreeing, other = [0.0], [], []
    for seconds in SECONDS:
        samples = sound(min(seconds, model.meta.limit_seconds), model.meta.rate)
        features = extract(samples, run.extractor)
        apart = float(np.abs(model.extract(samples) - features).max())
        if not apart < FEATURE_TOLERANCE:
            raise ExportError(f"the features of the runtime differ from PyTorch's by {apart:.1e}")
        for budget in budgets(model):
            expected, executed = reference(run, features, budget, model.meta.mask)
            k, threshold = model.meta.budget(budget)
            logits, ran = model.predict(features[None], k, threshold)
            error = float(np.abs(logits - expected).max() / np.abs(expected).max())
            agreeing.append(bool((logits.argmax(-1) == expected.argmax(-1)).all()))
            other.append(not np.array_equal(ran, executed))
            if not other[-1]:
                errors.append(error)
            if not np.isfinite(error) or (exact and (other[-1] or error >= TOLERANCE)):
                raise ExportError(
                    f"the export differs from PyTorch at budget {budget}: relative error "
                    f"{error:.1e}, layers {_names(ran)} in place of {_names(executed)}; "
                    "nothing was written"
                )
    return Difference(max(errors), sum(agreeing), len(agreeing), sum(other))


def budgets(model: Model) -> list[int | Budget | None]:
    """Return every number of kept layers, and the calibrated mean budgets."""
    if model.meta.mask is not None:
        return [None]
    means = [Budget.mean(mean) for mean, _ in model.meta.mean_budgets]
    return [*range(1, model.meta.layers + 1), *means]


def reference(
    run: Run, features: np.ndarray, budget: int | Budget | None, mask: list[bool] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return PyTorch's answer to the features of one clip, and the layers that ran.

    Shape: -> [1, labels], [1, layers] bool.
    """
    batch = run.collate([features])
    if mask is None:
        assert budget is not None
        logits, executed = predict_logits(run, batch, budget)
    else:
        with torch.inference_mode():
            out = run.dynamic(**batch, mask=torch.tensor(mask))
        logits, executed = out.logits, out.executed_layers
    return logits.numpy(), executed.numpy()


def sound(seconds: float, rate: int) -> np.ndarray:
    """Make a tone that glides through noise, always the same. Shape: -> [samples] float32."""
    rng = np.random.default_rng(round(1000 * seconds))
    time = np.arange(int(seconds * rate)) / rate
    glide = np.sin(2 * np.pi * (300 + 400 * time) * time) * np.sin(np.pi * time / seconds)
    return (0.2 * glide + rng.normal(0, 0.02, len(time))).astype(np.float32)


def faster(model: Model, other: Model) -> float:
    """Return how many times as fast `model` is as `other` at full depth, by paired timings."""
    seconds = min(1.0, model.meta.limit_seconds)
    features = model.extract(sound(seconds, model.meta.rate))[None]
    ratios = []
    for number in range(ROUNDS + 2):
        taken = {}
        for one in (model, other) if number % 2 else (other, model):
            began = perf_counter()
            one.predict(features, one.meta.layers)
            taken[one] = perf_counter() - began
        if number >= 2:  # the first are to warm up
            ratios.append(taken[other] / taken[model])
    return float(np.median(ratios))


def _names(mask: np.ndarray) -> str:
    return ", ".join(str(index) for index in np.flatnonzero(mask))
