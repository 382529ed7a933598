"""What a run answers to many clips: under many masks, at each depth, and how sure it is."""

from __future__ import annotations

from ..policies.masks import first_masks

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..policies.selectors import GateSelector
from ..policies.pooling import pool
from ..data.features import FeatureSet, batches
from ..progress import progress

from .precision import autocast
from .run import Batch, Run
from ..tasks.kinds import Targets

BATCH = 32
STEP = 0.25  # between calibrated means


class MaskOutputs(NamedTuple):
    """What becomes of clips under masks.

    Shape:
        losses, errors: [masks, clips], of the task; 0 without targets.
        confidence, certainty: [masks, clips]: how sure the answer is, by its likeliest class and
            by minus its entropy in nats; for an answer a frame the means over the valid frames.
        pooled: [clips, 2 * width]: what a selector reads.
    """

    losses: Tensor
    errors: Tensor
    confidence: Tensor
    certainty: Tensor
    pooled: Tensor


def mask_outputs(
    run: Run,
    features: FeatureSet,
    masks: Tensor,
    targets: Targets | None = None,
    precision: str | None = None,
) -> MaskOutputs:
    """What a run's model answers to clips under each of several masks; a search shows progress.

    Args:
        targets: of the clips; without them neither losses nor errors are known.
        precision: by default that of the training, here and below.
    """
    losses, errors, sure, certain = torch.zeros(4, len(masks), len(features))
    read: Tensor | None = None
    title = f"search {len(masks)} masks" if len(masks) > run.dynamic.num_layers else ""
    for rows, batch in study_batches(run, features, precision, title):
        some = None if targets is None else [targets[row] for row in rows]
        out = run.dynamic.forward_masks(run.task.inputs(batch, some), masks)
        valid = out.frame_mask if run.task.by_frame else None
        if some is not None:
            losses[:, rows] = run.task.losses(out.logits, valid, some)
            errors[:, rows] = run.task.errors(out.logits, valid, some)
        for index, logits in enumerate(out.logits):
            sure[index, rows] = run.task.confidence(logits, valid)
            certain[index, rows] = run.task.certainty(logits, valid)
        found = pool(out.features.float(), out.frame_mask)
        read = torch.zeros(len(features), found.shape[-1]) if read is None else read
        read[rows] = found
    assert read is not None
    return MaskOutputs(losses, errors, sure, certain, read)


def depths(
    run: Run, features: FeatureSet, targets: Targets | None = None, precision: str | None = None
) -> MaskOutputs:
    """As `mask_outputs`, of the first 1, 2, ... layers."""
    return mask_outputs(run, features, first_masks(run.dynamic.num_layers), targets, precision)


def pooled(run: Run, features: FeatureSet) -> Tensor:
    """What the selector reads of each clip, pooled. Shape: -> [clips, 2 * width]."""
    needed = max(1, getattr(run.dynamic.selector, "after", 0))
    mask = first_masks(run.dynamic.num_layers)[needed - 1]
    return mask_outputs(run, features, mask[None]).pooled


def gate_logits(run: Run, features: FeatureSet, precision: str | None = None) -> Tensor:
    """Of the "global" gates. Shape: -> [clips, layers]."""
    selector = run.dynamic.selector
    assert isinstance(selector, GateSelector)
    layers = run.dynamic.num_layers
    first = torch.arange(layers) < 1
    made = torch.zeros(len(features), layers)
    for rows, batch in study_batches(run, features, precision):
        read = run.dynamic.forward_masks(run.task.inputs(batch, None), first[None])
        made[rows] = selector.logits(read.features, read.frame_mask)
    return made


def study_batches(
    run: Run, features: FeatureSet, precision: str | None = None, title: str = ""
) -> Iterator[tuple[list[int], Batch]]:
    """Clips of similar length together, in inference mode; with progress under a title."""
    run.dynamic.eval()
    size = BATCH if run.batches else 1
    order = sorted(range(len(features)), key=lambda index: len(features[index]))
    told = progress(title, len(features)) if title else nullcontext(None)
    done = 0
    with torch.inference_mode(), autocast(precision or run.config.precision), told as show:
        for places in batches(order, size, seed=0, epoch=0, shuffle=False):
            rows = [order[place] for place in places]
            yield rows, run.collate([features[row] for row in rows])
            done += len(rows)
            if show is not None:
                show(done, "")


def stops(sureness: Tensor, threshold: float) -> Tensor:
    """After how many layers each clip stops.

    Shape: sureness [layers - 1, clips], after 1, 2, ... layers -> [clips] int.
    """
    sure = torch.cat([sureness >= threshold, torch.ones(1, sureness.shape[1], dtype=torch.bool)])
    return sure.int().argmax(0) + 1


def calibrate(run: Run, features: FeatureSet, precision: str = "fp32") -> list[tuple[float, float]]:
    """Thresholds for the mean budgets from 1 to L, measured on these clips.

    Returns:
        [mean, threshold] by rising mean; see `DynamicModel.mean_budgets`. Empty for a run that has
        nothing to decide by.
    """
    layers = run.dynamic.num_layers
    if run.config.method == "i3d":
        if run.config.gates == "local":
            return []
        logits = gate_logits(run, features, precision)

        def mean_at(threshold: float) -> float:
            return float((logits > threshold).sum(1).clamp(min=1).float().mean())

        return table(mean_at, logits.flatten(), layers, rising=False)
    decides = run.config.method in ("input", "early-exit") and run.config.recognition != "decoder"
    if not decides or layers == 1:
        return []
    return depth_table(depths(run, features, None, precision).confidence[:-1], layers)


def depth_table(sureness: Tensor, layers: int) -> list[tuple[float, float]]:
    """As `calibrate`, for inputs that stop once they are sure. Shape: [layers - 1, clips]."""
    return table(
        lambda threshold: float(stops(sureness, threshold).float().mean()),
        sureness.flatten(),
        layers,
        rising=True,
    )


def table(
    mean_at: Callable[[float], float], values: Tensor, layers: int, *, rising: bool
) -> list[tuple[float, float]]:
    """For each mean the threshold among `values` whose mean comes closest to it."""
    ordered = np.unique(values.numpy())
    edges = (ordered[1:] + ordered[:-1]) / 2
    cuts = np.concatenate([[ordered[0] - 1], edges, [ordered[-1] + 1]])
    wanted = np.arange(1, layers + STEP / 2, STEP)
    found = []
    for mean in wanted:
        low, high = 0, len(cuts) - 1  # mean_at is monotone over the cuts
        while low < high:
            middle = (low + high) // 2
            got = mean_at(float(cuts[middle]))
            if (got < mean) if rising else (got > mean):
                low = middle + 1
            else:
                high = middle
        best = min(
            (max(0, low - 1), low), key=lambda index: abs(mean_at(float(cuts[index])) - mean)
        )
        found.append((float(mean), float(cuts[best])))
    return found
