"""What a run answers to many clips: under many masks, at each depth, and how sure it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.features import FeatureSet, batches
from ..policies.masks import first_masks
from ..policies.pooling import pool
from ..progress import progress
from ..tasks.base import Targets
from .precision import autocast
from .run import Batch, Run

BATCH = 32


class MaskOutputs(NamedTuple):
    """What a model answers to clips under masks.

    Shape:
        losses, errors: [masks, clips], of the task; 0 without targets.
        confidence, certainty: [masks, clips]: how sure the answer is, by its likeliest class and
            by minus its entropy in nats; for an answer a frame the means over the valid frames.
        pooled: [clips, 2 * width]: what a policy reads.
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
    """Return what a run's model answers to clips under each of several masks.

    A search shows progress.

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
            losses[:, rows] = run.task.losses(out.logits, valid, some).cpu()
            errors[:, rows] = run.task.errors(out.logits, valid, some).cpu()
        for index, logits in enumerate(out.logits):
            sure[index, rows] = run.task.confidence(logits, valid).cpu()
            certain[index, rows] = run.task.certainty(logits, valid).cpu()
        found = pool(out.features.float(), out.frame_mask).cpu()
        read = torch.zeros(len(features), found.shape[-1]) if read is None else read
        read[rows] = found
    assert read is not None
    return MaskOutputs(losses, errors, sure, certain, read)


def depths(
    run: Run, features: FeatureSet, targets: Targets | None = None, precision: str | None = None
) -> MaskOutputs:
    """Return what `mask_outputs` does, for the first 1, 2, ... layers."""
    return mask_outputs(run, features, first_masks(run.dynamic.num_layers), targets, precision)


def pooled(run: Run, features: FeatureSet) -> Tensor:
    """Return what the policy reads of each clip, pooled. Shape: -> [clips, 2 * width]."""
    needed = max(1, run.dynamic.policy.after)
    mask = first_masks(run.dynamic.num_layers)[needed - 1]
    return mask_outputs(run, features, mask[None]).pooled


def study_batches(
    run: Run,
    features: FeatureSet,
    precision: str | None = None,
    title: str = "",
    part: tuple[int, int] = (0, 1),
) -> Iterator[tuple[list[int], Batch]]:
    """Yield batches of clips of similar length in inference mode, with progress under a title.

    Args:
        part: of how many equal parts which one to take, and their number.
    """
    run.dynamic.eval()
    size = BATCH if run.task.batches else 1
    order = sorted(range(len(features)), key=lambda index: len(features[index]))
    told = progress(title, len(features)) if title else nullcontext(None)
    computing = autocast(precision or run.config.precision, run.dynamic.device)
    done = 0
    with torch.inference_mode(), computing, told as show:
        for places in batches(order, size, seed=0, epoch=0, shuffle=False)[part[0] :: part[1]]:
            rows = [order[place] for place in places]
            yield rows, run.collate([features[row] for row in rows])
            done += len(rows)
            if show is not None:
                show(done, "")
