"""Features of a clip in NumPy, equal to those of the feature extractors of `transformers`.

A clip is never padded: its features have its own length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

# samples [samples] float32 -> [frames, bins] or [samples] float32
Extractor: TypeAlias = Callable[[np.ndarray], np.ndarray]

FLOOR = 1e-10  # of the mel energies, before the logarithm
RANGE = 8.0  # decades below the loudest value of the clip that are kept


def extractor(settings: dict[str, Any]) -> Extractor:
    """The extractor that the metadata of an exported model describe.

    Raises:
        ValueError: settings of an unknown kind, or damaged ones.
    """
    values = dict(settings)
    kind = values.pop("kind", None)
    try:
        if kind == LogMel.kind:
            return LogMel(**values)
        if kind == Waveform.kind:
            return Waveform(**values)
    except TypeError as error:
        raise ValueError(f"the settings of the features are damaged: {error}") from None
    raise ValueError(f"unknown features {kind!r}: expected {LogMel.kind!r} or {Waveform.kind!r}")


class LogMel:
    """Whisper's log-mel spectrogram (`WhisperFeatureExtractor`).

    Args:
        mels: number of bins.
        n_fft: samples of a window.
        hop: samples from one frame to the next.
        rate: in Hz.
    """

    kind = "log-mel"

    def __init__(self, mels: int, n_fft: int, hop: int, rate: int) -> None:
        self.n_fft, self.hop = n_fft, hop
        self.window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)
        self.filters = mel_filters(mels, n_fft, rate).astype(np.float32)

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Shape: [samples] float32 -> [frames, mels] float32."""
        half = self.n_fft // 2
        padded = np.pad(samples, half, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.n_fft)[:: self.hop]
        frames = frames[:-1]  # Whisper leaves out the last one
        power = np.abs(np.fft.rfft(frames * self.window)) ** 2
        energy = np.maximum(power.astype(np.float32) @ self.filters, np.float32(FLOOR))
        log = np.log10(energy)
        log = np.maximum(log, log.max() - np.float32(RANGE))
        return ((log + 4) / 4).astype(np.float32)


class Waveform:
    """The samples themselves (`Wav2Vec2FeatureExtractor`: wav2vec 2.0, Moonshine, ...).

    Args:
        normalize: to zero mean and unit variance.
    """

    kind = "waveform"

    def __init__(self, normalize: bool) -> None:
        self.normalize = normalize

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Shape: [samples] float32 -> the same."""
        if not self.normalize:
            return samples
        return ((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)).astype(np.float32)


def mel_filters(mels: int, n_fft: int, rate: int) -> np.ndarray:
    """Triangular filters of Slaney's mel scale and norm, from 0 Hz to half the rate.

    Shape: -> [n_fft // 2 + 1, mels] float64.
    """
    edges = _hertz(np.linspace(0, _mel(rate / 2), mels + 2))
    bins = np.linspace(0, rate / 2, n_fft // 2 + 1)
    widths = np.diff(edges)
    rising = (bins[:, None] - edges[:-2]) / widths[:-1]
    falling = (edges[2:] - bins[:, None]) / widths[1:]
    triangles = np.maximum(0, np.minimum(rising, falling))
    return triangles * (2 / (edges[2:] - edges[:-2]))


# Slaney's scale: linear up to 1 kHz (15 mel), from there on 27 mel for a factor of 6.4.
def _mel(hertz: float) -> float:
    return 3 * hertz / 200 if hertz < 1000 else 15 + math.log(hertz / 1000) * 27 / math.log(6.4)


def _hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, 200 * mel / 3, 1000 * np.exp(math.log(6.4) / 27 * (mel - 15)))
