"""Errors of recognized text against what was said, and their rate over a set of clips.

Needs the extra `asr`: jiwer aligns, whisper-normalizer is OpenAI's text normalizer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from .statistics import Interval, ratio_bootstrap

Normalization: TypeAlias = Literal["whisper", "plain"]


def normalize(text: str, how: Normalization = "whisper") -> str:
    """Text as it is compared: in lower case, without punctuation, words with one space between.

    Args:
        how: "whisper": as Whisper's papers count English (contractions written out, numbers in
            digits, American spelling, no "um"); "plain": letters, digits and apostrophes as they
            are.

    Raises:
        ValueError: an unknown normalization, or one whose package is missing.

    >>> normalize("It's  Mr. O’Brien!", "plain")
    "it's mr o'brien"
    """
    if how == "whisper":
        return _whisper()(text).strip()
    if how != "plain":
        raise ValueError(f"unknown normalization {how!r}: use one of {get_args(Normalization)}")
    text = unicodedata.normalize("NFKC", text).replace("\u2019", "'").lower()
    words = (word.strip("'") for word in re.findall(r"[\w']+", text.replace("_", " ")))
    return " ".join(word for word in words if word)


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Substituted, left out and added words, and the words of the reference.

    Both texts are compared as they are: `normalize` them first.

    Raises:
        ValueError: jiwer is missing.
    """
    if not reference.split():  # jiwer takes none
        return len(hypothesis.split()), 0
    out = _jiwer().process_words(reference, hypothesis)
    return _errors(out), len(reference.split())


def character_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """As `word_errors`, in characters; a space is one."""
    if not reference:
        return len(hypothesis), 0
    return _errors(_jiwer().process_characters(reference, hypothesis)), len(reference)


def error_rate(
    counts: Sequence[tuple[int, int]],
    *,
    speakers: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Errors over reference words (or characters) of a set, with its 95 % bootstrap interval.

    Clips are drawn again, or speakers with all their clips: those of one speaker are alike, so
    that only the second says what other speakers might give.

    Args:
        counts: (errors, reference words) of each clip.
        speakers: of each clip; None draws clips.

    Raises:
        ValueError: no reference word at all, or speakers of another number.
    """
    errors, words = np.array(counts, dtype=float).reshape(-1, 2).T
    return ratio_bootstrap(errors, words, groups=speakers, resamples=resamples, seed=seed)


def _errors(out: Any) -> int:
    return int(out.substitutions + out.deletions + out.insertions)


def _jiwer() -> Any:
    try:
        import jiwer
    except ImportError:
        raise ValueError("error rates need jiwer: pip install 'sounding[asr]'") from None
    return jiwer


@cache
def _whisper() -> Callable[[str], str]:
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError:
        raise ValueError(
            "Whisper's normalizer needs whisper-normalizer: pip install 'sounding[asr]'"
        ) from None
    return EnglishTextNormalizer()
