"""Samples in memory: their type, their channels, and whether a model can take them."""

from __future__ import annotations

import math
from functools import reduce
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from .errors import AudioError

Seconds: TypeAlias = float

MIN_SECONDS: Seconds = 0.06  # every supported front end still gives a frame
# Floats over full scale are no fault: a clipped export goes to some units, the loudest a recorder
# of 32-bit floats gives in practice to ten or so (20 dB). Integers taken for floats begin
# above: of int16, 32 is -60 dB, below the noise of any microphone, and uint8 is at 128 in silence.
MOST = 32.0
SILENT_PEAK = 1e-5
CANCELLED = 0.1  # of the energy that the mean of unrelated channels would have
INVERSE = 1e-4  # of it: one channel is the other upside down, but for noise 40 dB below


def as_float(samples: Any) -> np.ndarray:
    """Convert samples of any PCM or floating-point type to float32, integers to about -1 to 1.

    The scale follows from the type alone, never from the values: int8, int16 and int32 are
    divided by 128, 32768 and 2^31, uint8 is centred on 128 as in WAV files. Floating-point
    samples keep their values.

    Args:
        samples: an array, or what NumPy makes one of.

    Shape: samples of any shape -> the same, float32; not copied where it is that already.

    Raises:
        AudioError: another type, such as bool, complex or int64, which no recorder gives.

    >>> as_float(np.array([-32768, 0, 16384], np.int16)).tolist()
    [-1.0, 0.0, 0.5]
    """
    try:
        array = np.asarray(samples)
    except ValueError as error:  # rows of other lengths
        raise AudioError(f"the audio: {error}: give an array of samples [samples]") from None
    kind = (array.dtype.kind, array.dtype.itemsize)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # infinite in float32: `check_samples` names it
            return array.astype(np.float32, copy=False)
    if kind == ("u", 1):
        return (array.astype(np.float32) - 128) / 128
    if kind in (("i", 1), ("i", 2), ("i", 4)):
        return array.astype(np.float32) / np.float32(2 ** (8 * kind[1] - 1))
    raise AudioError(
        f"the audio: samples of type {array.dtype}, expected floats of about -1 to 1 or PCM "
        "(int16, int32, int8, uint8): convert them to one of these"
    )


def mix(block: np.ndarray) -> tuple[np.ndarray, float]:
    """Average channels, or take the loudest where they cancel one another.

    They cancel where their mean has less than a tenth of the energy that the mean of as loud but
    unrelated channels would have: one upside down, say. A channel without a signal does not.

    Shape: block [samples, channels] -> [samples] float32.

    Returns:
        The samples, and the share of that energy that their mean has; NaN where nothing is heard.
    """
    channels = np.ascontiguousarray(block.T)
    if len(channels) == 1:
        return channels[0], math.nan
    mean = reduce(np.add, channels) / np.float32(len(channels))  # `mean` takes 30 times as long
    energies = np.array([np.dot(channel, channel) for channel in channels])
    if energies.max() <= len(block) * SILENT_PEAK**2:
        return mean, math.nan
    share = float(np.dot(mean, mean) / (energies.sum() / len(channels) ** 2))
    if share < CANCELLED:
        # the first that is about as loud as any: the same one from second to second
        return channels[int(np.argmax(energies >= energies.max() / 2))], share
    return mean, share


def check_samples(samples: np.ndarray, rate: int, path: Path | str) -> None:
    """Check that `samples` can go through a model.

    Shape: samples [samples].

    Args:
        path: what to call the audio in the error.

    Raises:
        AudioError: not one channel, shorter than `MIN_SECONDS`, with NaN or infinity, or with
            values that no audio has.
    """
    if samples.ndim != 1:
        raise AudioError(
            f"{path}: samples of shape {samples.shape}, expected one channel [samples]: "
            "average the channels"
        )
    if len(samples) < MIN_SECONDS * rate:
        raise AudioError(
            f"{path}: {len(samples) / rate:.3f} s ({len(samples)} samples at {rate} Hz), expected "
            f"at least {MIN_SECONDS} s: leave the clip out, or join it to its neighbour"
        )
    check_values(samples, rate, path)


def check_values(samples: np.ndarray, rate: int, path: Path | str, start: int = 0) -> None:
    """Check the values of audio of any length, as `check_samples` does.

    Args:
        start: where the samples stand in the file.

    Raises:
        AudioError: NaN or infinity, or values that no audio has.
    """
    finite = np.isfinite(samples)
    if not finite.all():
        first = int(np.argmin(finite))
        raise AudioError(
            f"{path}: {int((~finite).sum())} samples are NaN or infinite (the first at "
            f"{(start + first) / rate:.3f} s), expected finite numbers: export the file again or "
            "leave it out"
        )
    if len(samples) and max(samples.max(), -samples.min()) > MOST:
        beyond = np.abs(samples) > MOST
        first = int(np.argmax(beyond))
        raise AudioError(
            f"{path}: {int(beyond.sum())} samples are beyond what audio has (the first, sample "
            f"{start + first} at {(start + first) / rate:.3f} s, is {samples[first]:g}), expected "
            "about -1 to 1: integers that were converted without scaling have to be divided by "
            "their range (int16 by 32768); otherwise export the file again or leave it out"
        )


def check_length(
    samples: np.ndarray | int, rate: int, limit_seconds: Seconds, path: Path | str
) -> None:
    """Check that audio is not longer than a limit.

    Args:
        samples: the audio [samples], or its number of samples.
        rate: in Hz.
        path: what to call the audio in the error.

    Raises:
        AudioError: it is longer.
    """
    count = samples if isinstance(samples, int) else len(samples)
    if count > limit_seconds * rate:
        raise AudioError(
            f"{path}: {count / rate:.1f} s, expected at most {limit_seconds:g} s: cut it into "
            f"pieces, or pass --max-seconds {limit_seconds:g} to use only its start"
        )
