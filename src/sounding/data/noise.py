"""Noise added to clips, at a given ratio of their energies."""

from __future__ import annotations

import numpy as np

from .features import Change

KINDS = ("white", "pink", "brown", "like")


def mix(speech: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Add noise to speech, scaled so that their energies over the whole clip are `snr_db` apart.

    Shape: speech, noise and the result [samples].

    Raises:
        ValueError: other lengths, or one of them silent.
    """
    if len(speech) != len(noise):
        raise ValueError(f"{len(speech)} samples of speech, {len(noise)} of noise: give as many")
    energies = np.square(speech).sum(), np.square(noise).sum()
    if not all(energies):
        raise ValueError("the speech or the noise is silent: a ratio of their energies needs both")
    return speech + noise * np.sqrt(energies[0] / energies[1] * 10 ** (-snr_db / 10))


def colored(kind: str, length: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Make white, pink or brown noise of any level. Shape: [length]."""
    slope = {"white": 0.0, "pink": 0.5, "brown": 1.0}[kind]  # amplitude falls as frequency^-slope
    white = rng.standard_normal(length)
    frequency = np.fft.rfftfreq(length, 1 / rate)
    return np.fft.irfft(np.fft.rfft(white) * np.maximum(frequency, 50) ** -slope, length)


def add_noise(audio: np.ndarray, snr_db: float, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Add noise of a random kind to a clip: white, pink, brown, or with its own spectrum.

    A silent clip stays as it is.

    Shape: audio [samples] -> the same, float32.
    """
    kind = str(rng.choice(KINDS))
    if kind == "like":
        spectrum = np.abs(np.fft.rfft(audio))
        turn = np.exp(2j * np.pi * rng.uniform(size=len(spectrum)))
        noise = np.fft.irfft(spectrum * turn, len(audio))
    else:
        noise = colored(kind, len(audio), rate, rng)
    if not np.square(audio).sum() or not np.square(noise).sum():
        return audio
    return mix(audio.astype(np.float64), noise, snr_db).astype(np.float32)


def noise_for(snr_db: float, rate: int, seed: int, copy: int = 0) -> Change:
    """Return a `change` of `load_features` that adds noise to each clip, always the same.

    The noise of a clip follows from its index.

    Args:
        copy: another number gives each clip other noise.
    """

    def change(index: int, audio: np.ndarray) -> np.ndarray:
        return add_noise(audio, snr_db, rate, np.random.default_rng([seed, index, copy]))

    return change
