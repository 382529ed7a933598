"""Beam search for recognition by CTC, with a language model of words if there is one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.text import BLANK, SPACE, UNKNOWN, collapse, spelled
from ..errors import UsageError
from ..files import open_regular

LM_WEIGHT = 1.5
TOKENS = 40  # likeliest tokens of a frame that a beam goes on with
NEVER = -1e4  # log probability
THRESHOLD = 50.0  # below the best score, where a beam ends


class BeamDecoder:
    """Finds the likeliest text of a clip, over all paths that make it, from its logits.

    Args:
        tokens: of the model, in the order of its logits.
        beam: texts that are kept at each frame.
        lm: an n-gram model of words in the ARPA format, as KenLM writes and reads it. Only its
            words are recognized then.
        lm_weight: of its log probability.

    Raises:
        ModuleNotFoundError: flashlight-text is not installed; the text says how to install it.
        UsageError: a beam below 1, a file that is no ARPA model, or pieces of words as tokens
            with a model of words.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        beam: int = 25,
        *,
        lm: Path | str | None = None,
        lm_weight: float = LM_WEIGHT,
    ) -> None:
        if beam < 1:
            raise UsageError(f"a beam of {beam}: give at least 1")
        self.tokens = list(tokens)
        self.words: Any = None
        if lm is None:
            self.search = self._free(beam)
        else:
            self.search = self._with_words(beam, Path(lm), lm_weight)

    def __call__(self, logits: Tensor) -> str:
        """Return the likeliest text. Shape: logits [frames, tokens]."""
        if not len(logits):
            return ""
        scores = logits.detach().float().log_softmax(-1).cpu()
        if self.words is not None:  # a word ends with a space, the last one too
            end = torch.full((1, len(self.tokens)), NEVER)
            end[0, self.tokens.index(SPACE)] = 0
            scores = torch.cat([scores, end])
        scores = scores.contiguous()
        best = self.search.decode(scores.data_ptr(), *scores.shape)[0]
        if self.words is not None:
            return " ".join(self.words.get_entry(word) for word in best.words if word >= 0)
        return spelled(self.tokens[i] for i in collapse(best.tokens))

    def _free(self, beam: int) -> Any:
        lib, _ = _flashlight()
        options = lib.LexiconFreeDecoderOptions(
            beam_size=beam,
            beam_size_token=min(TOKENS, len(self.tokens)),
            beam_threshold=THRESHOLD,
            lm_weight=0.0,
            sil_score=0.0,
            log_add=True,
            criterion_type=lib.CriterionType.CTC,
        )
        blank = self.tokens.index(BLANK)  # also what stands before the first and after the last
        return lib.LexiconFreeDecoder(options, lib.ZeroLM(), blank, blank, [])

    def _with_words(self, beam: int, path: Path, weight: float) -> Any:
        lib, dictionary = _flashlight()
        if any(len(token) > 1 for token in self.tokens if token not in (BLANK, UNKNOWN)):
            raise UsageError("a language model of words needs a vocabulary of characters")
        words = [word for word in _unigrams(path) if word not in ("<s>", "</s>", UNKNOWN)]
        spelled = {word: s for word in words if (s := self._spell(word)) is not None}
        if not spelled:
            raise UsageError(f"{path} has no word that can be spelled with the model's tokens")
        self.words = dictionary.create_word_dict({word: [[word]] for word in (*spelled, UNKNOWN)})
        try:
            model = _kenlm()(str(path), self.words)
        except RuntimeError as error:  # its last line has the reason and the place
            reason = str(error).strip().splitlines()[-1]
            raise UsageError(f"{path} is damaged as an ARPA language model: {reason}") from None
        trie = lib.Trie(len(self.tokens), self.tokens.index(SPACE))
        start = model.start(False)
        for word, spelling in spelled.items():
            index = self.words.get_index(word)
            _, score = model.score(start, index)
            trie.insert(spelling, index, score)
        trie.smear(lib.SmearingMode.MAX)
        options = lib.LexiconDecoderOptions(
            beam_size=beam,
            beam_size_token=min(TOKENS, len(self.tokens)),
            beam_threshold=THRESHOLD,
            lm_weight=weight,
            word_score=0.0,
            unk_score=-math.inf,
            sil_score=0.0,
            log_add=True,
            criterion_type=lib.CriterionType.CTC,
        )
        unknown = self.words.get_index(UNKNOWN)
        space, blank = self.tokens.index(SPACE), self.tokens.index(BLANK)
        return lib.LexiconDecoder(options, trie, model, space, blank, unknown, [], False)

    def _spell(self, word: str) -> list[int] | None:
        """Spell a word as characters and the space behind it; None where one is no token."""
        spelled = [*word, SPACE]
        known = set(self.tokens)
        return [self.tokens.index(c) for c in spelled] if known.issuperset(spelled) else None


def _unigrams(path: Path) -> list[str]:
    """Return the words of an ARPA file."""
    found, inside = [], False
    try:
        with open_regular(path) as raw, TextIOWrapper(raw, encoding="utf-8") as file:
            for line in file:
                line = line.strip()
                if line.startswith("\\"):
                    if inside:
                        break
                    inside = line == "\\1-grams:"
                elif inside and line:
                    found.append(line.split("\t")[1])
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise UsageError(f"{path} cannot be read as an ARPA language model: {error}") from None
    if not found:
        raise UsageError(f"{path} is no ARPA language model: it has no 1-grams")
    return found


def _kenlm() -> Any:
    from flashlight.lib.text.decoder.kenlm import KenLM

    return KenLM


def _flashlight() -> tuple[Any, Any]:
    try:
        from flashlight.lib.text import decoder, dictionary
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            'a beam search needs more packages: pip install "sounding[asr]"'
        ) from None
    return decoder, dictionary
