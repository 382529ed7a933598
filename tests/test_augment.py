"""What changes a training clip: the speed that was asked for, and as much masked."""

from __future__ import annotations

import numpy as np
import pytest

from sounding.data.augment import change_speed, mask_spans

RATE = 16000


def tone(hertz=440.0, seconds=1.0):
    return (0.1 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype("f4")


def loudest(audio):
    return np.abs(np.fft.rfft(audio)).argmax() * RATE / len(audio)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speed_changes_length_and_pitch_as_asked(factor):
    made = change_speed(tone(), factor, RATE)
    assert made.dtype == np.float32
    assert len(made) == pytest.approx(RATE / factor, abs=1)
    assert loudest(made) == pytest.approx(440 * factor, abs=2)


def test_a_clip_that_would_be_longer_than_30_s_stays_as_it_is():
    audio = tone(seconds=29)
    assert change_speed(audio, 0.9, RATE) is audio
    assert len(change_speed(audio, 1.1, RATE)) < len(audio)


@pytest.mark.parametrize("shape", [(16000,), (400, 80), (400, 3), (5, 80)])
@pytest.mark.parametrize("share", [0.05, 0.3])
def test_masks_take_their_share_and_leave_the_rest(shape, share):
    rng = np.random.default_rng(0)
    clean = rng.normal(size=shape).astype("f4")
    before = clean.copy()
    span = max(1, shape[0] // 40)
    masked = np.mean([mask_spans(clean, share, span, rng) != clean for _ in range(200)])
    axes = len(shape)
    expected = 1 - np.exp(-share * axes)  # spans that overlap, and bands that cross times
    assert masked == pytest.approx(expected, rel=0.15)
    assert np.array_equal(clean, before)


def test_what_is_masked_has_the_mean_of_the_clip():
    clean = np.random.default_rng(0).normal(3, 1, size=(200, 20)).astype("f4")
    made = mask_spans(clean, 0.2, 10, np.random.default_rng(1))
    changed = made[made != clean]
    assert changed.size
    assert np.allclose(changed, clean.mean())
    rows = (made != clean).all(1)
    assert rows.sum() >= 10  # whole frames, in spans
