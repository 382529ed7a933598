"""Noise on clips: the ratio that was asked for, of every kind, the same each time."""

from __future__ import annotations

import numpy as np
import pytest

from sounding.data.noise import KINDS, add_noise, colored, mix

RATE = 16000


def clip(seed=0, length=8000, level=0.1):
    rng = np.random.default_rng(seed)
    time = np.arange(length) / RATE
    return (level * (np.sin(2 * np.pi * 440 * time) + rng.normal(0, 0.1, length))).astype("f4")


def seed_of(kind):
    """A seed with which the kind is drawn first."""
    return next(s for s in range(99) if np.random.default_rng(s).choice(KINDS) == kind)


def decibels(speech, noise):
    energies = np.square(speech.astype("f8")).sum(), np.square(noise.astype("f8")).sum()
    return 10 * np.log10(energies[0] / energies[1])


def slope(noise):
    """How fast the amplitude of a spectrum falls from 100 to 4000 Hz, as a power of frequency."""
    frequency = np.fft.rfftfreq(len(noise), 1 / RATE)
    band = (frequency > 100) & (frequency < 4000)
    amplitude = np.abs(np.fft.rfft(noise))[band]
    return np.polyfit(np.log(frequency[band]), np.log(amplitude), 1)[0]


@pytest.mark.parametrize("snr", [-5, 0, 7.5, 20])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [8000, 8001, 50])
def test_the_ratio_is_the_one_that_was_asked_for(kind, snr, length):
    audio = clip(length=length)
    made = add_noise(audio, snr, RATE, np.random.default_rng(seed_of(kind)))
    assert made.dtype == np.float32
    assert made.shape == audio.shape
    assert decibels(audio, made.astype("f8") - audio) == pytest.approx(snr, abs=0.1)


def test_each_kind_of_noise_has_its_spectrum():
    """That of noise like the clip is the clip's own."""
    audio = clip(length=32000)
    found = {}
    for kind in KINDS:
        noise = add_noise(audio, 0, RATE, np.random.default_rng(seed_of(kind))) - audio
        found[kind] = slope(noise)
        if kind == "like":
            spectra = [np.abs(np.fft.rfft(x))[1:-1] for x in (audio, noise)]
            assert np.corrcoef(*spectra)[0, 1] > 0.99
            assert abs(np.corrcoef(audio, noise)[0, 1]) < 0.99
    assert found["white"] == pytest.approx(0, abs=0.1)
    assert found["pink"] == pytest.approx(-0.5, abs=0.1)
    assert found["brown"] == pytest.approx(-1, abs=0.1)
    for kind, power in (("white", 0), ("pink", -0.5), ("brown", -1)):
        noise = colored(kind, 32000, RATE, np.random.default_rng(0))
        assert slope(noise) == pytest.approx(power, abs=0.1)


def test_the_same_numbers_give_the_same_noise_and_others_another():
    audio = clip()
    made = [add_noise(audio, 5, RATE, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])
    rng = np.random.default_rng(1)
    assert not np.array_equal(add_noise(audio, 5, RATE, rng), add_noise(audio, 5, RATE, rng))


@pytest.mark.parametrize("kind", KINDS)
def test_a_silent_clip_stays_as_it_is_and_no_clip_is_changed_in_place(kind):
    rng = np.random.default_rng(seed_of(kind))
    silent = add_noise(np.zeros(400, "f4"), 0, RATE, rng)
    assert silent.dtype == np.float32
    assert not silent.any()
    audio = clip()
    add_noise(audio, 0, RATE, np.random.default_rng(seed_of(kind)))
    assert np.array_equal(audio, clip())
    quiet = add_noise(clip(level=1e-4), 10, RATE, np.random.default_rng(seed_of(kind)))
    assert np.isfinite(quiet).all()


def test_every_kind_is_drawn():
    rng = np.random.default_rng(0)
    drawn = [str(rng.choice(KINDS)) for _ in range(200)]
    assert {kind: drawn.count(kind) > 25 for kind in KINDS} == dict.fromkeys(KINDS, True)


def test_a_mix_that_has_no_ratio_is_refused():
    with pytest.raises(ValueError, match="4 samples of speech, 3 of noise"):
        mix(np.ones(4), np.ones(3), 0)
    for speech, noise in ((np.zeros(4), np.ones(4)), (np.ones(4), np.zeros(4))):
        with pytest.raises(ValueError, match="silent"):
            mix(speech, noise, 0)
