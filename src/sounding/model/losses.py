"""The loss of logits, as the heads of `transformers` define it by their configuration.

Used by our own heads: those of `heads`, and exits, which answer in place of the model's head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def classification_loss(logits: Tensor, labels: Tensor, config: Any) -> Tensor:
    """Return the mean loss of classified clips, by the `problem_type` of a configuration.

    Where it names none, labels of whole numbers are classes, and others are one yes or no for
    each class, or a number to predict where there is one label only.

    Shape: logits [batch, labels]; labels [batch] int, or [batch, labels] float -> [].
    """
    kind = getattr(config, "problem_type", None)
    labels, logits = labels.to(logits.device), logits.float()
    if kind is None and config.num_labels == 1:
        kind = "regression"
    if kind is None and labels.is_floating_point():
        kind = "multi_label_classification"
    if kind == "regression":
        return functional.mse_loss(logits.reshape(-1), labels.reshape(-1).float())
    if kind == "multi_label_classification":
        return functional.binary_cross_entropy_with_logits(logits, labels.float())
    return functional.cross_entropy(logits, labels.reshape(-1))


def ctc_loss(logits: Tensor, labels: Tensor, lengths: Tensor | None, config: Any) -> Tensor:
    """Return the loss of texts by connectionist temporal classification (Graves et al., 2006).

    Args:
        lengths: valid frames of each input; None for all.
        config: its `pad_token_id` is the blank, `ctc_loss_reduction` and `ctc_zero_infinity` are
            those of `transformers`.

    Shape: logits [batch, frames, tokens]; labels [batch, length] int, padded with the blank or
    with negative numbers; lengths [batch] int -> [].
    """
    labels, blank = labels.to(logits.device), config.pad_token_id
    counted = (labels >= 0) & (labels != blank)
    if lengths is None:
        lengths = torch.full((len(logits),), logits.shape[1])
    with torch.backends.cudnn.flags(enabled=False):
        return functional.ctc_loss(
            logits.log_softmax(-1, dtype=torch.float32).transpose(0, 1),
            labels.masked_select(counted),
            lengths.cpu(),
            counted.sum(-1).cpu(),
            blank=blank,
            reduction=getattr(config, "ctc_loss_reduction", "mean"),
            zero_infinity=getattr(config, "ctc_zero_infinity", False),
        )


def head_loss(
    logits: Tensor, labels: Tensor, frame_mask: Tensor | None, config: Any, *, pooled: bool
) -> Tensor:
    """Return the loss of a classifier (`pooled`), or by CTC. Shape: as the two above."""
    if pooled:
        return classification_loss(logits, labels, config)
    return ctc_loss(logits, labels, None if frame_mask is None else frame_mask.sum(1), config)
