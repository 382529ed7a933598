"""A run of `sounding train` as a recognizer, by CTC or with its decoder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from ..budget import Budget
from ..data.audio import Seconds
from ..data.features import LIMIT_SECONDS, extract
from ..data.text import printable
from ..errors import UsageError
from ..runs.predict import exact_or_mean, predict
from ..runs.run import Run
from .recognizer import Recognition, weights_digest
from .threads import token_by_token


class RunRecognizer:
    """A `Recognizer` by a run, each piece by itself, as `sounding run` does.

    Args:
        name: of the run, for people.
        decoding: what a beam search of the run depends on, as JSON.

    Raises:
        UsageError: a run that tells classes.
    """

    batch_size = 1

    def __init__(self, run: Run, name: Path | str, decoding: object = "greedy") -> None:
        if not run.task.transcribes:
            raise UsageError(f"{name} tells classes, not texts: give a run trained on texts")
        self.run = run
        self.sampling_rate = int(run.extractor.sampling_rate)
        self.max_seconds: Seconds = LIMIT_SECONDS
        self.layers = run.dynamic.num_layers
        digest = weights_digest(run.dynamic)
        self.settings = {"model": printable(str(name)), "weights": digest, "decoding": decoding}

    def __call__(self, pieces: Sequence[np.ndarray], budget: Any = None) -> list[Recognition]:
        """Return the text of each piece, [samples] float32.

        Raises:
            UsageError: a budget that is not allowed.
        """
        asked = exact_or_mean(budget, self.layers)
        return [self._recognize(piece, asked) for piece in pieces]

    def _threads(self) -> AbstractContextManager[None]:
        if not self.run.task.token_by_token:
            return nullcontext()
        dynamic = self.run.dynamic
        return token_by_token(dynamic.backbone.owner(dynamic.base), dynamic.model.get_decoder())

    def _recognize(self, piece: np.ndarray, asked: int | Budget) -> Recognition:
        batch = self.run.collate([extract(piece, self.run.extractor)])
        with self._threads():
            predicted = predict(self.run, batch, asked)
        executed = predicted.executed[0].nonzero().squeeze(1).tolist()
        return Recognition(predicted.texts[0], tuple(executed))
