"""Errors of recognized text, and their rates with intervals."""

from __future__ import annotations

import builtins
import doctest

import numpy as np
import pytest

from sounding.evaluation import wer
from sounding.evaluation.statistics import ratio_bootstrap
from sounding.evaluation.wer import character_errors, error_rate, normalize, word_errors


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
    assert word_errors(reference, hypothesis) == (errors, len(reference.split()))


def test_an_empty_reference_counts_what_was_added():
    assert word_errors("", "a b") == (2, 0)
    assert word_errors("  ", "") == (0, 0)
    assert character_errors("", "ab") == (2, 0)


def test_character_errors_count_spaces():
    assert character_errors("one two", "onetwo") == (1, 7)
    assert character_errors("kitten", "sitting") == (3, 6)


def test_the_rate_of_a_set_weighs_clips_by_their_words():
    counts = [(0, 90), (5, 10)]
    assert error_rate(counts).mean == 0.05
    assert error_rate(counts, speakers=["a", "b"]) == error_rate(counts)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        words = rng.integers(3, 20, 100)
        interval = error_rate(list(zip(rng.binomial(words, 0.2), words, strict=True)), seed=trial)
        hits += interval.low <= 0.2 <= interval.high
    assert 0.9 <= hits / 200 <= 0.99


def test_speakers_with_like_clips_make_the_interval_wide():
    counts = [(speaker % 2 * 5, 10) for speaker in range(10) for _ in range(20)]
    speakers = [str(speaker) for speaker in range(10) for _ in range(20)]
    by_clip, by_speaker = error_rate(counts), error_rate(counts, speakers=speakers)
    assert by_clip.mean == by_speaker.mean == 0.25
    assert by_speaker.high - by_speaker.low > 3 * (by_clip.high - by_clip.low)


def test_differences_of_errors_give_the_paired_interval():
    same = ratio_bootstrap(np.zeros(20), np.full(20, 5.0))
    assert same == (0.0, 0.0, 0.0)
    better = ratio_bootstrap(-np.ones(20), np.full(20, 5.0))
    assert better == pytest.approx((-0.2, -0.2, -0.2))


@pytest.mark.parametrize(
    ("counts", "options"),
    [([], {}), ([(1, 0)], {}), ([(1, 2)], {"speakers": ["a", "b"]})],
)
def test_a_rate_of_nothing_is_refused(counts, options):
    with pytest.raises(ValueError, match=r"divide by|groups"):
        error_rate(counts, **options)


def test_whispers_normalization_is_that_of_its_papers():
    assert normalize("Mr. Smith's colour, isn't it?") == "mister smith is color is not it"
    assert normalize("It cost twenty-five dollars (um) [laughs].") == "it cost $25"
    assert normalize("  THREE hundred  cats ") == "300 cats"
    assert normalize("...") == ""


def test_plain_normalization_leaves_the_words():
    assert normalize("Twenty-five, DON'T 'quote'!", "plain") == "twenty five don't quote"
    assert normalize("Ünïcode_text — 2½", "plain") == "ünïcode text 21 2"
    assert normalize(" ' ", "plain") == ""
    assert doctest.testmod(wer).failed == 0
    with pytest.raises(ValueError, match=r"'whisper', 'plain'"):
        normalize("a", "norman")


@pytest.mark.parametrize("package", ["jiwer", "whisper_normalizer.english"])
def test_a_missing_package_is_named(package, monkeypatch):
    plain = builtins.__import__

    def without(name, *args, **kwargs):
        if name == package:
            raise ImportError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    wer._whisper.cache_clear()
    with pytest.raises(ValueError, match=r"sounding\[asr\]"):
        word_errors(normalize("a"), "b")
    wer._whisper.cache_clear()
