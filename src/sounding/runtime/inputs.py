"""Samples as programs have them: arrays, tensors and lists, floats and integer PCM."""

from __future__ import annotations

import os
from array import array
from typing import Any, TypeAlias

import numpy as np

from ..data.audio import as_float

Samples: TypeAlias = Any  # an array of NumPy, a tensor of torch, a list of floats, ...


def one_channel(samples: Samples) -> np.ndarray:
    """Return samples as an array of floats, integer PCM scaled by its type (`as_float`).

    Args:
        samples: an array, a tensor of torch, or a list of floats; one channel.
            Shape: [samples], [samples, 1] or [1, samples].

    Shape: -> [samples] float32; other shapes are left as they are.

    Raises:
        AudioError: numbers of another type, as in a list of whole numbers: their scale is unknown.
        TypeError: no samples.
    """
    if hasattr(samples, "detach"):  # a tensor, without importing torch
        samples = samples.detach().cpu()
        samples = samples.float() if samples.is_floating_point() else samples
    if not (hasattr(samples, "__array__") or isinstance(samples, list | tuple | array)):
        raise TypeError(
            f"the audio is a {type(samples).__name__}: give the path of a file, or samples "
            "[samples] as an array, a tensor or a list of floats"
        )
    made = as_float(np.asarray(samples))
    return made.reshape(-1) if made.ndim == 2 and 1 in made.shape else made


def file_name(audio: Any) -> str:
    """Return the path of audio that is a file, "" for samples."""
    return os.fspath(audio) if isinstance(audio, str | os.PathLike) else ""
