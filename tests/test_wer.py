"""Errors of recognized text, and their rates with intervals."""

from __future__ import annotations

import builtins
import doctest

import numpy as np
import pytest

from sounding.data import text
from sounding.data.text import character_errors, normalize_text, whisper_plain, word_errors
from sounding.statistics import ratio_bootstrap


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors"),
    [
        ("a b c", "a b c", 0),
        ("a b c", "a x c", 1),
        ("a b c", "a c", 1),
        ("a b c", "a b x y c", 2),
        ("a b c", "", 3),
        ("a", "b c d", 3),
        ("a  b", " a b ", 0),
    ],
)
def test_word_errors_are_substituted_missing_and_added_words(reference, hypothesis, errors):
    assert word_errors(reference, hypothesis) == errors


def test_an_empty_reference_counts_what_was_added():
    assert word_errors("", "a b") == 2
    assert word_errors("  ", "") == 0
    assert character_errors("", "ab") == 2


def test_character_errors_count_spaces():
    assert character_errors("one two", "onetwo") == 1
    assert character_errors("kitten", "sitting") == 3


def test_the_rate_of_a_set_weighs_clips_by_their_words():
    errors, words = np.array([0.0, 5.0]), np.array([90.0, 10.0])
    assert ratio_bootstrap(errors, words).mean == 0.05
    assert ratio_bootstrap(errors, words, groups=["a", "b"]) == ratio_bootstrap(errors, words)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        words = rng.integers(3, 20, 100)
        interval = ratio_bootstrap(rng.binomial(words, 0.2), words, seed=trial)
        hits += interval.low <= 0.2 <= interval.high
    assert 0.9 <= hits / 200 <= 0.99


def test_speakers_with_like_clips_make_the_interval_wide():
    speakers = [speaker for speaker in range(10) for _ in range(20)]
    errors, words = 5.0 * (np.array(speakers) % 2), np.full(200, 10.0)
    by_clip = ratio_bootstrap(errors, words)
    by_speaker = ratio_bootstrap(errors, words, groups=speakers)
    assert by_clip.mean == by_speaker.mean == 0.25
    assert by_speaker.high - by_speaker.low > 3 * (by_clip.high - by_clip.low)


def test_differences_of_errors_give_the_paired_interval():
    same = ratio_bootstrap(np.zeros(20), np.full(20, 5.0))
    assert same == (0.0, 0.0, 0.0)
    better = ratio_bootstrap(-np.ones(20), np.full(20, 5.0))
    assert better == pytest.approx((-0.2, -0.2, -0.2))


@pytest.mark.parametrize(
    ("errors", "words", "groups"), [([], [], None), ([1], [0], None), ([1], [2], ["a", "b"])]
)
def test_a_rate_of_nothing_is_refused(errors, words, groups):
    with pytest.raises(ValueError, match=r"divide by|groups"):
        ratio_bootstrap(errors, words, groups=groups)


def test_whispers_normalization_is_that_of_its_papers():
    assert whisper_plain("Mr. Smith's colour, isn't it?") == "mister smith is color is not it"
    assert whisper_plain("It cost twenty-five dollars (um) [laughs].") == "it cost $25"
    assert whisper_plain("  THREE hundred  cats ") == "300 cats"
    assert whisper_plain("...") == ""


def test_plain_normalization_leaves_the_words():
    assert normalize_text("Twenty-five, DON'T 'quote'!") == "twenty five don't quote"
    assert normalize_text("Ünïcode_text — 2½") == "ünïcode text 21 2"
    assert normalize_text(" ' ") == ""
    assert doctest.testmod(text).failed == 0


@pytest.mark.parametrize("package", ["jiwer", "whisper_normalizer.english"])
def test_a_missing_package_is_named(package, monkeypatch):
    builtin = builtins.__import__

    def without(name, *args, **kwargs):
        if name == package:
            raise ModuleNotFoundError(name)
        return builtin(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    text._whisper.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"sounding\[asr\]"):
        word_errors(whisper_plain("a"), "b")
    text._whisper.cache_clear()
