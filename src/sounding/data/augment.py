"""What changes a training clip anew in each epoch: another speed, and masked spans."""

from __future__ import annotations

import numpy as np
import soxr

from .audio import MIN_SECONDS, Seconds
from .features import LIMIT_SECONDS

SPAN_SECONDS: Seconds = 0.2  # of masked time
SPAN_BANDS = 0.1  # of all frequency bands


def change_speed(audio: np.ndarray, factor: float, rate: int) -> np.ndarray:
    """Play a clip `factor` times as fast, with the pitch of a record (Ko et al., 2015).

    A clip that would be longer than the 30 s that a model takes, or too short for one, stays as it
    is.

    Shape: audio [samples] -> [samples / factor], float32.
    """
    if len(audio) / factor > LIMIT_SECONDS * rate:
        return audio
    changed = np.asarray(soxr.resample(audio, factor * rate, rate), dtype=np.float32)
    return audio if len(changed) < MIN_SECONDS * rate else changed


def mask_spans(
    features: np.ndarray, share: float, span: int, rng: np.random.Generator
) -> np.ndarray:
    """Mask about `share` of the time of features, and of their bands where they have some.

    Spans of 0.2 s and of a tenth of the bands get the mean of the clip (SpecAugment, arXiv
    1904.08779; here their number grows with the length of the clip). They may overlap.

    Args:
        span: frames or samples of 0.2 s.

    Shape: features [frames, bins], or [samples] of a waveform -> the same.
    """
    masked = features.copy()
    fill = features.mean()
    _mask(masked, share, span, fill, rng)
    if masked.ndim == 2:
        _mask(masked.T, share, max(1, round(SPAN_BANDS * masked.shape[1])), fill, rng)
    return masked


def _mask(
    values: np.ndarray, share: float, span: int, fill: float, rng: np.random.Generator
) -> None:
    """Fill spans along the first axis."""
    span = min(span, len(values))
    count = rng.poisson(share * len(values) / span)
    for start in rng.integers(0, len(values) - span + 1, size=count):
        values[start : start + span] = fill
