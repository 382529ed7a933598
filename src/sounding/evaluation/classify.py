"""What a run answers to audio files, at a budget: a class, or a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
from torch import Tensor

from ..core.budget import Budget, kept_layers, mean_layers
from ..data.audio import Seconds
from ..data.features import load_features
from ..data.folder import Clip
from ..runtime.answer import Answer, not_finite
from ..training.runs import Run
from .predict import say


def classify(
    run: Run,
    files: Sequence[Path | str],
    budget: Budget = None,
    *,
    max_seconds: Seconds | None = None,
) -> Iterator[Answer]:
    """Answer to each file by itself, in order.

    Raises:
        ValueError: a budget that is not allowed.
        AudioError: a file that cannot be used, or to which the answer is not finite, when its turn
            comes; ask for the others again.
    """
    layers = run.dynamic.num_layers
    asked: int | str
    if isinstance(budget, str) and mean_layers(budget, layers=layers) is not None:
        asked = budget
    else:
        (asked,) = kept_layers(budget, layers=layers, batch=1)
    for file in files:
        features = load_features(
            [Clip(Path(file), "", "test")], run.extractor, max_seconds=max_seconds
        )
        if not np.isfinite(features[0]).all():  # a decoder would say something all the same
            raise not_finite(str(file))
        start = perf_counter()
        said = say(run, run.collate(features), asked)
        milliseconds = 1000 * (perf_counter() - start)
        if said.logits is not None and not said.logits.isfinite().all():
            raise not_finite(str(file))
        yield Answer(
            file=str(file),
            label=said.texts[0],
            probability=_probability(run, said.logits),
            kept_layers=asked if isinstance(asked, int) else int(said.executed.sum()),
            executed_layers=said.executed[0].nonzero().squeeze(1).tolist(),
            layers=layers,
            milliseconds=milliseconds,
            logits=None if said.logits is None else said.logits[0].float().numpy(),
        )


def _probability(run: Run, logits: Tensor | None) -> float | None:
    """As `Answer.probability`. Shape: logits [1, ...]."""
    return None if logits is None else float(run.task.confidence(logits, None))
