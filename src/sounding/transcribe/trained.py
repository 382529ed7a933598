"""A run of `sounding train` as a recognizer, by CTC or with its decoder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np

from ..budget import Budget, kept_layers, mean_layers
from ..data.audio import Seconds
from ..data.features import LIMIT_SECONDS, extract
from ..data.text import printable
from ..evaluation.predict import predict
from ..runs.run import Run
from ..tasks.kinds import Dictation
from .recognizer import Recognition, weights_digest
from .threads import token_by_token


class RunRecognizer:
    """A `Recognizer`: each piece by itself, as `sounding run` does.

    Args:
        name: of the run, for people.
        decoding: what a beam search of the run depends on, as JSON.

    Raises:
        ValueError: a run that tells classes.
    """

    batch_size = 1

    def __init__(self, run: Run, name: Path | str, decoding: object = "greedy") -> None:
        if run.tokenizer is None:
            raise ValueError(f"{name} tells classes, not texts: give a run trained on texts")
        self.run = run
        self.sampling_rate = int(run.extractor.sampling_rate)
        self.max_seconds: Seconds = LIMIT_SECONDS
        self.layers = run.dynamic.num_layers
        digest = weights_digest(run.dynamic)
        self.settings = {"model": printable(str(name)), "weights": digest, "decoding": decoding}

    def __call__(self, pieces: Sequence[np.ndarray], budget: Budget = None) -> list[Recognition]:
        """The text of each piece, [samples] float32.

        Raises:
            ValueError: a budget that is not allowed.
        """
        asked: int | str
        if isinstance(budget, str) and mean_layers(budget, layers=self.layers) is not None:
            asked = budget
        else:
            (asked,) = kept_layers(budget, layers=self.layers, batch=1)
        return [self._recognize(piece, asked) for piece in pieces]

    def _threads(self) -> AbstractContextManager[None]:
        if not isinstance(self.run.task, Dictation):
            return nullcontext()
        dynamic = self.run.dynamic
        return token_by_token(dynamic.backbone.owner(dynamic.base), dynamic.model.get_decoder())

    def _recognize(self, piece: np.ndarray, asked: int | str) -> Recognition:
        batch = self.run.collate([extract(piece, self.run.extractor)])
        with self._threads():
            predicted = predict(self.run, batch, asked)
        executed = predicted.executed[0].nonzero().squeeze(1).tolist()
        return Recognition(predicted.texts[0], tuple(executed))
