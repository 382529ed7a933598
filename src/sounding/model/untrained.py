"""A warning for a model that leaves layers out and was never trained to."""

from __future__ import annotations

import warnings
from typing import Any

import torch

UNTRAINED = (
    "this model was never trained with layers left out: below full depth it answers with noise. "
    "Train it (`sounding train`; of a recognizer `sounding distill`, from audio alone; or with "
    "budgets in a loop of yours), load one that is trained, or set dynamic.trained"
)


class UntrainedWarning(UserWarning):
    """A model that was never trained below full depth is asked to leave layers out."""


def warn_untrained(dynamic: Any, text: str) -> None:
    """Warn once for each model."""
    if not dynamic.warned:
        dynamic.warned = True
        warnings.warn(text, UntrainedWarning, stacklevel=4)


def note_depth(dynamic: Any, *, full: bool) -> None:
    """Note that training reaches a depth below full; warn where it never has."""
    if full or dynamic.trained:
        return
    if dynamic.training and torch.is_grad_enabled():
        dynamic.trained = True
    elif not dynamic.training:
        warn_untrained(dynamic, UNTRAINED)
