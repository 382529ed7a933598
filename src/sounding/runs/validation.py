"""How good a model is on validation clips in the middle of its training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..data.features import FeatureSet
from ..policies.masks import random_masks
from ..tasks.base import Targets
from .mask_outputs import study_batches
from .predict import choice_of
from .run import Run
from .validations import Validation


def validate(
    run: Run,
    features: FeatureSet,
    targets: Targets,
    *,
    step: int,
    part: tuple[int, int] = (0, 1),
    total: Callable[[Tensor], Tensor] = lambda own: own,
) -> Validation:
    """Measure a run on validation clips; it is in evaluation mode afterwards.

    Methods that draw masks get the same random ones each time.

    Args:
        part: which of the batches to answer; see `study_batches`.
        total: adds up what several processes have.
    """
    layers = run.dynamic.num_layers
    depths = run.method.validated(layers)
    drawn = {k: random_masks(np.random.default_rng(k), len(targets), layers, k) for k in depths}
    errors, losses = own = torch.zeros(2, len(depths), len(targets))
    for rows, batch in study_batches(run, features, part=part):
        some = [targets[row] for row in rows]
        inputs = run.task.inputs(batch, some)
        for place, k in enumerate(depths):
            logits = run.dynamic(**inputs, **choice_of(run, k, drawn[k][rows])).logits
            valid = run.frame_mask(batch, logits)
            losses[place, rows] = run.task.losses(logits[None], valid, some)[0].float().cpu()
            errors[place, rows] = run.task.errors(logits[None], valid, some)[0].cpu()
    errors, losses = total(own)
    weight = sum(run.task.weight(target) for target in targets)
    return Validation(step, float(errors.mean(0).sum()) / max(1, weight), float(losses.mean()))
