"""A text a clip, by the model's own decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSpeechSeq2Seq, AutoTokenizer

from ..data.folder import AudioFolder
from ..data.language import known_languages, language_code
from ..data.text import normalize_text
from ..model.dynamic import DynamicModel
from ..weights import pretrained, resolve
from .base import Batch, Prediction, Target, Targets, divergence
from .heads import whole
from .setup import Settings
from .texts import Texts
from .written import WrittenImitation


class Decoder(WrittenImitation, Texts):
    """A text a clip, by the model's own decoder, which is told the tokens before (teacher forcing).

    Losses, distances and errors are of the tokens that come after the prompt (language, task).
    """

    runtime = None
    no_export = "a decoder writes a text token by token: export a run that uses CTC"
    exits = False  # one decoder answers at every depth
    batches = False
    cuts = True  # `generate` of Whisper does
    token_by_token = True
    by_mask = False  # but for teacher forcing
    title = "A speech recognizer (its own decoder)"

    def __init__(self, labels: Sequence[str] = (), **given: Any) -> None:
        super().__init__(labels, **given)
        self.start: list[int] = []
        if self.tokenizer is not None:
            self.start = self.tokenizer("")["input_ids"][:-1]
        self.prompt = len(self.start)

    @classmethod
    def make_tokenizer(cls, settings: Settings, folder: AudioFolder, directory: Path) -> Any:
        """Return the backbone's own tokenizer, set to the language of the texts."""
        tokenizer = pretrained(AutoTokenizer, resolve(settings.backbone))
        if hasattr(tokenizer, "set_prefix_tokens"):  # Whisper; no effect if it knows one language
            language = language_code(settings.language)
            tokenizer.set_prefix_tokens(language, "transcribe", predict_timestamps=False)
        return tokenizer

    @classmethod
    def load_tokenizer(cls, directory: Path) -> Any:
        """Return the tokenizer that lies beside a saved model."""
        return pretrained(AutoTokenizer, directory)

    def build(self, path: Path | str) -> Any:
        """Return the whole model in `path`.

        Raises:
            ValueError: it does not know the language of the texts, as far as it says what it knows.
        """
        model = whole(AutoModelForSpeechSeq2Seq, path, dtype=torch.float32)
        self.language(model.generation_config)
        return model

    def language(self, generation_config: Any) -> str | None:
        """Return the code of the language of the texts; None for a model that does not say.

        Raises:
            ValueError: the model does not know it.
        """
        known = known_languages(generation_config)
        if self.settings is None or not (known or _multilingual(generation_config)):
            return None
        return language_code(self.settings.language, known)

    def pretrained(self, dynamic: DynamicModel) -> nn.Module:
        """Return the whole model: its decoder was pretrained, too."""
        model: nn.Module = dynamic.model
        return model

    def positions(self, target: Target) -> int:
        """Return one for each token of prompt and text, and one for the end."""
        return len(target.ids)

    def room(self, model: nn.Module) -> float:
        """Return how many positions the decoder has; infinity for one that does not say."""
        names = ("max_target_positions", "max_position_embeddings")
        known = (getattr(model.config, name, None) for name in names)
        return next((value for value in known if value), math.inf)

    def collate(
        self, features: Sequence[NDArray[np.float32]], extractor: Any, window: int | None
    ) -> Batch:
        """Return a batch as the model takes it; Whisper's decoder knows no padding mask."""
        if window:
            features = _with_silence(features)
        return super().collate(features, extractor, window)

    def inputs(self, batch: Batch, targets: Targets | None) -> Batch:
        """Return a batch with the tokens before each one; without targets the start only."""
        size = len(next(iter(batch.values()))) if batch else 0
        device = next(iter(batch.values())).device if batch else None
        before = [self.start] * size if targets is None else [target.ids[:-1] for target in targets]
        return {**batch, "decoder_input_ids": self._padded(before).to(device)}

    def losses(self, logits: Tensor, frame_mask: Tensor | None, targets: Targets) -> Tensor:
        """Return the cross-entropy of the tokens of each clip, in the mean.

        Shape: logits [masks, batch, tokens, vocabulary] -> [masks, batch].
        """
        wanted, counted = self._wanted(targets, logits.device)
        each = wanted[counted].expand(len(logits), -1)
        given = logits[:, counted].float().flatten(0, 1)
        losses = cross_entropy(given, each.flatten(), reduction="none")
        return _mean(losses.view(each.shape), counted)

    def distances(
        self, logits: Tensor, teacher: Tensor, frame_mask: Tensor | None, targets: Targets
    ) -> Tensor:
        """Return the divergence from a teacher over the tokens of each clip, in the mean.

        Shape: logits [masks, batch, tokens, vocabulary], teacher [batch, ...] -> [masks, batch].
        """
        counted = self._wanted(targets, logits.device)[1]
        return _mean(divergence(logits[:, counted], teacher[counted]), counted)

    @torch.inference_mode()
    def predict(self, dynamic: DynamicModel, batch: Batch, choice: Mapping[str, Any]) -> Prediction:
        """Return the texts that `generate` writes. A batch has inputs of one length."""
        asked: dict[str, Any] = {**batch, **choice, **self.spoken(dynamic)}
        out = dynamic.generate(**asked, return_dict_in_generate=True)
        return Prediction(self.spell(out["sequences"].tolist()), out["executed_layers"], None)

    def decode(self, logits: Tensor, frame_mask: Tensor | None) -> list[str]:
        """Return the likeliest tokens as texts. Shape: logits [batch, tokens, vocabulary]."""
        return self.spell(logits.argmax(-1).tolist())

    def spell(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Return what was generated, as normalized text."""
        found = self.tokenizer.batch_decode(list(ids), skip_special_tokens=True)
        return [normalize_text(text) for text in found]

    def errors(self, logits: Tensor, frame_mask: Tensor | None, targets: Targets) -> Tensor:
        """Return how many tokens are not the likeliest, given those before."""
        wanted, counted = self._wanted(targets, logits.device)
        return ((logits.argmax(-1) != wanted) & counted).sum(-1).float()

    def spoken(self, dynamic: DynamicModel) -> dict[str, Any]:
        """Return what `generate` is told of the language."""
        if not _multilingual(dynamic.generation_config):
            return {}
        return {"language": self.language(dynamic.generation_config), "task": "transcribe"}

    def _wanted(self, targets: Targets, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the tokens, and which of them count. Shape: [batch, tokens] int and bool."""
        wanted = self._padded([target.ids[1:] for target in targets])
        place = torch.arange(wanted.shape[1])
        ends = torch.tensor([len(target.ids) - 1 for target in targets])
        counted = (place >= self.prompt - 1) & (place < ends[:, None])
        return wanted.to(device), counted.to(device)

    def _padded(self, ids: Sequence[Sequence[int]]) -> Tensor:
        longest = max(len(one) for one in ids)
        pad = self.tokenizer.pad_token_id
        return torch.tensor([[*one, *[pad] * (longest - len(one))] for one in ids])


def _multilingual(generation_config: Any) -> bool:
    return bool(getattr(generation_config, "is_multilingual", False))


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Return the mean over the tokens of each clip that count.

    With a vocabulary of 50,000 the other tokens would cost much.

    Shape: values [masks, all counted], counted [batch, tokens] bool -> [masks, batch].
    """
    clip = counted.nonzero()[:, 0]
    sums = values.new_zeros(len(values), len(counted)).index_add(1, clip, values)
    return sums / counted.sum(-1)


def _with_silence(features: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Return log-mel features made as long as the longest one.

    Silence has the lowest value of a clip: the extractor cuts off what is 80 dB below the loudest.
    """
    longest = max(len(one) for one in features)
    return [
        np.pad(one, ((0, longest - len(one)), (0, 0)), constant_values=one.min())
        for one in features
    ]
