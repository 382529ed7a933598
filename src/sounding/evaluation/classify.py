"""Classify audio files with a run, at a budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter

from ..core.budget import Budget, kept_layers, mean_layers
from ..data.audio import Seconds
from ..data.features import load_features
from ..data.folder import Clip
from ..runtime.answer import Answer
from ..training.runs import Run
from .predict import predict


def classify(
    run: Run,
    files: Sequence[Path | str],
    budget: Budget = None,
    *,
    max_seconds: Seconds | None = None,
) -> Iterator[Answer]:
    """Classify each file by itself, in order.

    Raises:
        ValueError: a budget that is not allowed.
        AudioError: a file that cannot be used, when its turn comes.
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
        start = perf_counter()
        logits, executed = predict(run, run.collate(features), asked)
        milliseconds = 1000 * (perf_counter() - start)
        yield Answer.of(
            logits[0].numpy(),
            executed[0].numpy(),
            run.labels,
            file=str(file),
            kept_layers=asked if isinstance(asked, int) else None,
            milliseconds=milliseconds,
        )
