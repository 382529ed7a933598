"""Whisper as it is, encoder and decoder, with layers chosen for each piece."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..budget import Budget
from ..data.audio import AudioError, Seconds
from ..data.features import extract
from ..data.language import known_languages, language_code
from ..data.text import printable
from ..errors import UsageError
from ..model.decoder import asked_layers
from ..model.dynamic import DynamicModel
from ..model.io import CONFIG
from ..model.loading import load
from ..model.processors import WithoutTokens
from ..runs.device import PROCESSOR, find_device
from ..weights import pretrained, pretrained_model, resolve
from ..weights.ready import wrap_ready
from .recognizer import Recognition, weights_digest
from .threads import token_by_token

REPETITIVE = 2.4  # bytes of a text over those of its zlib form; OpenAI's value
TAIL_SECONDS: Seconds = 2.0  # of silence behind a piece
LEARNED_TAIL_SECONDS: Seconds = 0.5  # where the model has learned to end at its own length
TOKENS_PER_SECOND, TOKENS_AT_LEAST = 12, 24  # speech has far fewer; a loop ends here


class WhisperRecognizer:
    """A `Recognizer` by Whisper: greedy, each piece by itself and at its own length.

    Whisper has learned to end its answer in the silence behind the speech, and without it often
    says the same again; so each piece gets two seconds of silence, or half a second where the model
    was distilled at its own length (`sounding distill`). It may still fall into a loop,
    mostly where a piece is short or noisy. Its answers are bounded by the length of the piece; one
    that repeats itself is decoded again with the piece padded to 30 s, and if it still does, once
    more without repeating any three tokens, and marked.

    Args:
        dynamic: a wrapped `WhisperForConditionalGeneration`.
        extractor, tokenizer: of the same model.
        language: of the speech, such as "en" or "English"; None lets a multilingual model guess,
            piece by piece.
        pad: each piece with silence to the window of 30 s, as Whisper was trained.
        decoder_budget: kept layers of the decoder, as of `DynamicModel.generate`.
        name: of the model, for people.

    Raises:
        UsageError: another kind of model, or a language that it does not know.
    """

    batch_size = 1

    def __init__(
        self,
        dynamic: DynamicModel,
        extractor: Any,
        tokenizer: Any,
        *,
        language: str | None = None,
        pad: bool = False,
        decoder_budget: Any = None,
        name: str = "whisper",
    ) -> None:
        _check_kind(dynamic, name)
        self.dynamic, self.extractor, self.tokenizer = dynamic.eval(), extractor, tokenizer
        self.language, self.pad = _language(dynamic, language), pad
        self.tail = silence_behind(dynamic)
        self._spoken: dict[str, Any] = {}  # for `generate`
        if getattr(dynamic.generation_config, "lang_to_id", None):
            # without its task, a model that guesses the language babbles
            self._spoken = {"language": self.language, "task": "transcribe"}
        if unspoken := getattr(dynamic.generation_config, "suppress_tokens", None):
            without = WithoutTokens(unspoken, dynamic.config.vocab_size)  # and not by transformers
            self._spoken |= {"suppress_tokens": [], "logits_processor": [without]}
        if decoder_budget is not None:
            asked_layers(decoder_budget, None, layers=len(dynamic.decoder_stack or []), batch=1)
            self._spoken["decoder_budget"] = Budget.parse(decoder_budget)
        self.sampling_rate = int(extractor.sampling_rate)
        self.layers = dynamic.num_layers
        window = dynamic.backbone.window(dynamic.base)
        self.max_seconds: Seconds = window * extractor.hop_length / extractor.sampling_rate
        digest = weights_digest(dynamic)
        self.settings = {
            "model": printable(name),
            "weights": digest,
            "language": self.language,
            "pad": pad,
        }
        if decoder_budget is not None:
            self.settings["decoder_budget"] = str(Budget.parse(decoder_budget))

    @classmethod
    def load(
        cls,
        model: str,
        *,
        language: str | None = None,
        pad: bool = False,
        decoder_budget: Any = None,
        device: str = PROCESSOR.type,
    ) -> WhisperRecognizer:
        """Load a model by a name of `sounding.weights`, a directory or a hub id.

        A model for which parts come with the package gets them (`weights.ready`).

        Args:
            device: that it computes on, as the setting of `TrainConfig`.

        Raises:
            UsageError: no Whisper, or one without its tokenizer or feature extractor.
        """
        from transformers import (
            AutoConfig,
            WhisperFeatureExtractor,
            WhisperForConditionalGeneration,
            WhisperTokenizerFast,
        )

        path = resolve(model)
        if (Path(path) / CONFIG).is_file():
            dynamic = load(Path(path))
        else:
            kind = pretrained(AutoConfig, path).model_type
            if kind != "whisper":
                raise UsageError(f"{model} is a {kind}, expected a Whisper: try whisper-base")
            whisper, info = pretrained_model(
                WhisperForConditionalGeneration,
                path,
                dtype=torch.float32,
                output_loading_info=True,
            )
            if info["missing_keys"]:
                raise UsageError(
                    f"{model} lacks weights of a Whisper with its decoder: use another"
                )
            dynamic = wrap_ready(whisper, model)
        _check_kind(dynamic, model)
        dynamic.to(find_device(device))
        try:
            extractor = pretrained(WhisperFeatureExtractor, path)
            tokenizer = pretrained(WhisperTokenizerFast, path)
        except ValueError:
            raise UsageError(
                f"{model} lacks its tokenizer or feature extractor: copy tokenizer.json, "
                "tokenizer_config.json and preprocessor_config.json to it"
            ) from None
        return cls(
            dynamic,
            extractor,
            tokenizer,
            language=language,
            pad=pad,
            decoder_budget=decoder_budget,
            name=model,
        )

    def __call__(self, pieces: Sequence[np.ndarray], budget: Any = None) -> list[Recognition]:
        """Return the text of each piece, [samples] float32.

        Raises:
            AudioError: a piece of which no finite features can be made.
            UsageError: a piece above the window, or a budget that is not allowed.
        """
        return [self._recognize(piece, budget) for piece in pieces]

    def _recognize(self, piece: np.ndarray, budget: Any) -> Recognition:
        limit = int(self.dynamic.config.max_target_positions) // 2
        seconds = len(piece) / self.sampling_rate
        tokens = min(limit, TOKENS_AT_LEAST + int(TOKENS_PER_SECOND * seconds))
        text, executed = self._generate(piece, budget, self.pad, max_new_tokens=tokens)
        if is_repetitive(text) and not self.pad:
            text, executed = self._generate(piece, budget, True, max_new_tokens=tokens)
        repetitive = is_repetitive(text)
        if repetitive:
            limits = {"max_new_tokens": tokens, "no_repeat_ngram_size": 3}
            text, executed = self._generate(piece, budget, True, **limits)
        return Recognition(text, executed, repetitive)

    def _features(self, piece: np.ndarray, pad: bool) -> torch.Tensor:
        """Return the features of a piece. Shape: [samples] -> [1, mels, frames]."""
        window = round(self.max_seconds * self.sampling_rate)
        if len(piece) > window:
            raise UsageError(
                f"a piece of {len(piece) / self.sampling_rate:.1f} s, expected at most "
                f"{self.max_seconds:g} s: cut it"
            )
        tail = window if pad else len(piece) + round(self.tail * self.sampling_rate)
        piece = np.pad(piece, (0, min(tail, window) - len(piece)))
        features = extract(piece, self.extractor)
        if not np.isfinite(features).all():  # the decoder would say something all the same
            raise AudioError(
                "a piece of the audio has features that are NaN or infinite: look for samples far "
                "beyond -1 and 1"
            )
        return torch.from_numpy(features.T[None].copy())

    def _generate(
        self, piece: np.ndarray, budget: Any, pad: bool, **limits: Any
    ) -> tuple[str, tuple[int, ...]]:
        features = self._features(piece, pad).to(self.dynamic.device)
        encoder = self.dynamic.backbone.owner(self.dynamic.base)
        with token_by_token(encoder, self.dynamic.model.get_decoder()):
            out = self.dynamic.generate(
                features,
                budget=budget,
                do_sample=False,
                num_beams=1,
                return_dict_in_generate=True,
                **self._spoken,
                **limits,
            )
        text = self.tokenizer.decode(out["sequences"][0], skip_special_tokens=True)
        executed = out["executed_layers"][0].nonzero().squeeze(1).tolist()
        return text.strip(), tuple(executed)


def silence_behind(dynamic: DynamicModel) -> Seconds:
    """Return how much silence a clip at its own length needs behind it."""
    updates = dynamic.updates
    learned = updates is not None and updates.own_length
    return LEARNED_TAIL_SECONDS if learned else TAIL_SECONDS


def is_repetitive(text: str) -> bool:
    """Return whether a text compresses better than speech does."""
    data = text.encode()
    return len(data) > REPETITIVE * len(zlib.compress(data))


def _check_kind(dynamic: DynamicModel, name: str) -> None:
    kind = type(dynamic.model).__name__
    if kind != "WhisperForConditionalGeneration":
        raise UsageError(
            f"{name} holds a {kind}, expected a Whisper with its decoder: try whisper-base"
        )


def _language(dynamic: DynamicModel, language: str | None) -> str | None:
    """Return the code of the wanted language; None to guess it, or where there is one only.

    Raises:
        UsageError: it is not one of the model's.
    """
    known = known_languages(dynamic.generation_config)
    if language is None:
        return None
    if not known:
        raise UsageError("this model knows one language: leave --language out")
    code = language_code(language, known)
    return code if len(known) > 1 else None
