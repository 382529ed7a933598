"""Features of a clip in NumPy, equal to those of the feature extractors of `transformers`.

A clip is never padded: its features have its own length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import numpy as np
from pydantic import Field

from ..typed import check
from .metadata import Rate

# samples [samples] float32 -> [frames, bins] or [samples] float32
Extractor: TypeAlias = Callable[[np.ndarray], np.ndarray]

FLOOR = 1e-10  # of the mel energies, before the logarithm
RANGE = 8.0  # decades below the loudest value of the clip that are kept

Bins = Annotated[int, Field(ge=1, le=1024)]
Frames = Annotated[int, Field(ge=1, le=100_000)]
Samples = Annotated[int, Field(ge=16, le=96_000)]


def extractor(settings: dict[str, Any]) -> Extractor:
    """Make the extractor that the metadata of an exported model describe.

    Raises:
        ValueError: settings of an unknown kind, or damaged ones.
    """
    values = dict(settings)
    kind = values.pop("kind", None)
    kinds: dict[str, Any] = {one.kind: one for one in (LogMel, FilterBank, Waveform)}
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"unknown features {kind!r}: expected one of {', '.join(kinds)}")
    return check(values, kinds[kind], "the settings of the features", what="are damaged")


@dataclass(eq=False)
class LogMel:
    """Whisper's log-mel spectrogram (`WhisperFeatureExtractor`).

    Args:
        mels: number of bins.
        n_fft: samples of a window.
        hop: samples from one frame to the next.
        rate: in Hz.
    """

    kind = "log-mel"
    mels: Bins
    n_fft: Samples
    hop: Samples
    rate: Rate

    def __post_init__(self) -> None:
        # windows of 1/8 s and frames of 1 ms are far beyond those of any model, and take memory
        if self.n_fft > self.rate // 8 or self.hop < self.rate // 1000:
            raise ValueError(f"a window of {self.n_fft} samples every {self.hop} of {self.rate} Hz")
        turn = 2 * np.pi * np.arange(self.n_fft) / self.n_fft
        self.window = (0.5 - 0.5 * np.cos(turn)).astype(np.float32)
        filters = mel_filters(self.mels, self.n_fft, self.rate)
        self.filters = Filters(filters.astype(np.float32))

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Return the spectrogram. Shape: [samples] float32 -> [frames, mels] float32."""
        half = self.n_fft // 2
        padded = np.pad(samples, half, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.n_fft)[:: self.hop]
        frames = frames[:-1]  # Whisper leaves out the last one
        power = np.abs(np.fft.rfft(frames * self.window)) ** 2
        energy = np.maximum(self.filters(power.astype(np.float32)), np.float32(FLOOR))
        log = np.log10(energy)
        log = np.maximum(log, log.max() - np.float32(RANGE))
        return ((log + 4) / 4).astype(np.float32)


@dataclass(eq=False)
class FilterBank:
    """Kaldi's log-mel filter bank, as long for every clip (`ASTFeatureExtractor`).

    Windows of 25 ms. A shorter clip is followed by zeros, a longer one is cut.

    Args:
        mels: number of bins.
        frames: of every clip.
        hop: samples from one frame to the next.
        rate: in Hz.
        mean, deviation: the mean is taken off, and twice the deviation divided by; None for
            neither.
    """

    kind = "filter-bank"
    n_fft, low, floor, emphasis = 512, 20.0, 1.192092955078125e-07, 0.97

    mels: Bins
    frames: Frames
    hop: Samples
    rate: Rate
    mean: float | None
    deviation: Annotated[float, Field(gt=0)] | None

    def __post_init__(self) -> None:
        self.width = self.rate * 25 // 1000
        if self.width > self.n_fft:
            raise ValueError(f"{self.rate} Hz is too much for windows of {self.n_fft} samples")
        self.window = np.hanning(self.width)
        edges = np.linspace(_kaldi_mel(self.low), _kaldi_mel(self.rate / 2), self.mels + 2)
        bins = _kaldi_mel(np.arange(self.n_fft // 2 + 1) * self.rate / self.n_fft)
        self.filters = Filters(_triangles(bins, edges))

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Return the filter bank's values. Shape: [samples] float32 -> [frames, mels] float32."""
        made = np.zeros((self.frames, self.mels), np.float32)
        if len(samples) >= self.width:
            whole = np.lib.stride_tricks.sliding_window_view(samples, self.width)
            windows = whole[:: self.hop][: self.frames].astype(np.float64)
            windows -= windows.mean(1, keepdims=True)
            before = np.concatenate([windows[:, :1], windows[:, :-1]], 1)
            windows = (windows - self.emphasis * before) * self.window
            power = np.abs(np.fft.rfft(windows, self.n_fft)) ** 2
            made[: len(power)] = np.log(np.maximum(self.filters(power), self.floor))
        if self.mean is None or self.deviation is None:
            return made
        return ((made - self.mean) / (2 * self.deviation)).astype(np.float32)


@dataclass(eq=False)
class Waveform:
    """The samples themselves (`Wav2Vec2FeatureExtractor`: wav2vec 2.0, Moonshine, ...).

    Args:
        normalize: to zero mean and unit variance.
    """

    kind = "waveform"
    normalize: bool

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Return the samples, normalized if that is on. Shape: [samples] float32 -> the same."""
        if not self.normalize:
            return samples
        return ((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)).astype(np.float32)


class Filters:
    """A product with few numbers that are not 0, without the threads of NumPy's matrix product.

    Those go on spinning for a while, in the way of the threads of the model, which is then two to
    three times as slow.

    Shape: filters [bins, mels].
    """

    def __init__(self, filters: np.ndarray) -> None:
        if not filters.any():
            raise ValueError("filters that let nothing through")
        mels, self.bins = np.nonzero(filters.T)
        self.weights = filters[self.bins, mels]
        self.starts = np.searchsorted(mels, np.arange(filters.shape[1])).clip(max=len(mels) - 1)
        self.empty = ~filters.any(0)

    def __call__(self, power: np.ndarray) -> np.ndarray:
        """Apply the filters. Shape: [frames, bins] -> [frames, mels]."""
        energy = np.add.reduceat(power[:, self.bins] * self.weights, self.starts, axis=1)
        energy[:, self.empty] = 0
        return energy


def mel_filters(mels: int, n_fft: int, rate: int) -> np.ndarray:
    """Make triangular filters of Slaney's mel scale and norm, from 0 Hz to half the rate.

    Shape: -> [n_fft // 2 + 1, mels] float64.
    """
    edges = _hertz(np.linspace(0, _mel(rate / 2), mels + 2))
    bins = np.linspace(0, rate / 2, n_fft // 2 + 1)
    return _triangles(bins, edges) * (2 / (edges[2:] - edges[:-2]))


def _triangles(bins: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Make filters that rise from one edge to the next, and fall to the one after it.

    Shape: bins [n], edges [mels + 2] -> [n, mels].
    """
    widths = np.diff(edges)
    rising = (bins[:, None] - edges[:-2]) / widths[:-1]
    falling = (edges[2:] - bins[:, None]) / widths[1:]
    return np.maximum(0, np.minimum(rising, falling))


def _kaldi_mel(hertz: Any) -> Any:
    return 1127.0 * np.log(1.0 + hertz / 700.0)


# Slaney's scale: linear up to 1 kHz (15 mel), from there on 27 mel for a factor of 6.4.
def _mel(hertz: float) -> float:
    return 3 * hertz / 200 if hertz < 1000 else 15 + math.log(hertz / 1000) * 27 / math.log(6.4)


def _hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, 200 * mel / 3, 1000 * np.exp(math.log(6.4) / 27 * (mel - 15)))
