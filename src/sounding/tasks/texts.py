"""What the tasks that write down what is said have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..data.folder import AudioFolder, Clip
from ..data.text import character_errors, normalize_text, tokens_of, word_errors
from ..statistics import ratio_bootstrap, speaker_groups
from .base import Prediction, Score, Target, Targets, Task


class Texts(Task):
    """A text a clip, normalized; scored by the word error rate."""

    data = "text"
    metric = "wer"
    titles: ClassVar[Mapping[str, str]] = {"wer": "WER"}
    transcribes = True
    pipeline_tag = "automatic-speech-recognition"

    def mismatch(self, model: nn.Module) -> str:
        """Say that the tokenizer has other tokens than the labels; "" where it has the same."""
        same = self.labels == tokens_of(self.tokenizer)
        return "" if same else "names other tokens than its model"

    def targets(self, folder: AudioFolder, clips: Sequence[Clip]) -> list[Target]:
        """Return the normalized text of each clip, with its tokens."""
        texts = [normalize_text(clip.target) for clip in clips]
        ids = self.tokenizer(texts)["input_ids"] if texts else []
        return [
            Target(tuple(tokens), text, clip.speaker)
            for tokens, text, clip in zip(ids, texts, clips, strict=True)
        ]

    def weight(self, target: Target) -> int:
        """Return the number of words."""
        return len(target.text.split())

    def count(self, texts: Sequence[str], targets: Targets) -> list[float]:
        """Return the errors in words of each text."""
        return [
            float(word_errors(target.text, text))
            for text, target in zip(texts, targets, strict=True)
        ]

    def details(self, predicted: Prediction, targets: Targets) -> NDArray[np.float64] | None:
        """Return the errors in characters. Shape: -> [batch]."""
        said = [target.text for target in targets]
        return np.array(list(map(character_errors, said, predicted.texts)), dtype=np.float64)

    def score(
        self, errors: NDArray[np.float64], details: NDArray[np.float64] | None, targets: Targets
    ) -> Score:
        """Return the word error rate, with a bootstrap over speakers where there are 10 or more."""
        assert details is not None
        weight = np.array([self.weight(target) for target in targets], dtype=np.float64)
        groups = speaker_groups([target.speaker for target in targets])
        rate = ratio_bootstrap(errors.mean(0), weight, groups=groups)
        cer = float(details.sum()) / sum(len(target.text) for target in targets)
        return Score(self.metric, *rate, cer=cer)

    def knows(self) -> tuple[str, list[str]]:
        """Return the number of tokens, under a heading."""
        return "Tokens", [str(len(self.tokenizer))]
