"""What a run answers to audio files, at a budget: a class, or a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from torch import Tensor

from ..data.audio import Seconds
from ..data.features import load_features
from ..data.folder import Clip
from ..runs.predict import exact_or_mean, predict
from ..runs.run import Run
from ..runtime.answer import Answer, not_finite


def classify(
    run: Run,
    files: Sequence[Path | str],
    budget: Any = None,
    *,
    max_seconds: Seconds | None = None,
) -> Iterator[Answer]:
    """Yield the answer to each file by itself, in order.

    Raises:
        ValueError: a budget that is not allowed.
        AudioError: a file that cannot be used, or to which the answer is not finite, when its turn
            comes; ask for the others again.
    """
    layers = run.dynamic.num_layers
    asked = exact_or_mean(budget, layers)
    for file in files:
        features = load_features(
            [Clip(Path(file), "", "test")], run.extractor, max_seconds=max_seconds
        )
        if not np.isfinite(features[0]).all():  # a decoder would say something all the same
            raise not_finite(str(file))
        start = perf_counter()
        predicted = predict(run, run.collate(features), asked)
        milliseconds = 1000 * (perf_counter() - start)
        if predicted.logits is not None and not predicted.logits.isfinite().all():
            raise not_finite(str(file))
        yield Answer(
            file=str(file),
            label=predicted.texts[0],
            probability=_probability(run, predicted.logits),
            kept_layers=asked if isinstance(asked, int) else int(predicted.executed.sum()),
            executed_layers=predicted.executed[0].nonzero().squeeze(1).tolist(),
            layers=layers,
            milliseconds=milliseconds,
            logits=None if predicted.logits is None else predicted.logits[0].float().numpy(),
        )


def _probability(run: Run, logits: Tensor | None) -> float | None:
    """Return the probability of the answer, as `Answer.probability`. Shape: logits [1, ...]."""
    return None if logits is None else float(run.task.confidence(logits, None))
