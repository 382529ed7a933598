"""Reading audio files: mono float32 at the rate of the model, or an error that says what to do."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import soundfile as sf
import soxr

Seconds: TypeAlias = float

MIN_SECONDS: Seconds = 0.06  # every supported front end still gives a frame
SILENT_PEAK = 1e-5
BLOCK_SECONDS = 30  # of `audio_blocks`
MISSING_SECONDS: Seconds = 0.1  # an mp3 header may be off by a frame or two
OVERSHOOT_SECONDS: Seconds = 0.5  # that a segment may end behind its recording
UNKNOWN_FRAMES = 2**62  # libsndfile's count for a stream that does not say its length
FORMATS = "wav, flac, ogg, opus or mp3"
SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf"}


class AudioError(ValueError):
    """An audio file or signal that cannot be used; the text says why and what to do."""


class SilentAudioWarning(UserWarning):
    """The audio is valid, but holds nothing above a peak of 1e-5."""


def read_audio(
    path: Path | str,
    *,
    rate: int = 16000,
    max_seconds: Seconds | None = None,
    start: Seconds | None = None,
    end: Seconds | None = None,
) -> np.ndarray:
    """Read an audio file or a segment of it, channels averaged, at `rate` samples per second.

    Args:
        rate: of the result, in Hz; the file is resampled when it has another.
        max_seconds: decode only the start of the file or segment.
        start, end: of the segment; by default those of the file.

    Shape: [samples] float32, about -1 to 1.

    Raises:
        AudioError: a missing, empty, corrupt or too short file, one with NaN or infinity, or one
            that ends more than 0.5 s before the segment does.
        ValueError: `max_seconds` below `MIN_SECONDS`.

    Warns:
        SilentAudioWarning: the peak is below 1e-5.
    """
    if max_seconds is not None and not max_seconds >= MIN_SECONDS:
        raise ValueError(f"max_seconds is {max_seconds}: give at least {MIN_SECONDS}, or None")
    with _open(path) as file:
        own_rate = int(file.samplerate)
        samples = _decode(path, file, max_seconds, start, end)
    name = segment_name(path, start, end)
    check_samples(samples, own_rate, name)
    if np.abs(samples).max() < SILENT_PEAK:
        warnings.warn(f"{name}: the audio is silent", SilentAudioWarning, stacklevel=2)
    if own_rate != rate:
        samples = soxr.resample(samples, own_rate, rate)
    return np.ascontiguousarray(samples, dtype=np.float32)


def audio_blocks(path: Path | str, *, rate: int = 16000) -> Iterator[np.ndarray]:
    """Decode an audio file of any length as `read_audio` does, a block at a time.

    Args:
        rate: of the result, in Hz.

    Shape: of each block [samples] float32.

    Raises:
        AudioError: as `read_audio`; what is wrong within the file, when its turn comes.
    """
    with _open(path) as file:
        own_rate, frames = int(file.samplerate), int(file.frames)
        stream = soxr.ResampleStream(own_rate, rate, 1, dtype="float32")
        for start in range(0, frames, BLOCK_SECONDS * own_rate):
            samples = _decode(path, file, BLOCK_SECONDS, start / own_rate)
            if start == 0:
                check_samples(samples, own_rate, path)
            else:
                _check_finite(samples, own_rate, path, start)
            last = start + BLOCK_SECONDS * own_rate >= frames
            yield samples if own_rate == rate else stream.resample_chunk(samples, last=last)


def duration(path: Path | str) -> Seconds:
    """Length of an audio file by its header, without decoding it.

    Raises:
        AudioError: a missing, empty or unreadable file.
    """
    with _open(path) as file:
        return float(file.frames / file.samplerate)


def segment_name(path: Path | str, start: Seconds | None, end: Seconds | None) -> str:
    """A file, or a segment of it as FILE[START-END]."""
    if start is None and end is None:
        return str(path)
    return f"{path}[{start or 0:.2f}-{'end' if end is None else format(end, '.2f')}]"


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


def check_samples(samples: np.ndarray, rate: int, path: Path | str) -> None:
    """Check that `samples` can go through a model.

    Shape: samples [samples].

    Args:
        path: what to call the audio in the error.

    Raises:
        AudioError: not one channel, shorter than `MIN_SECONDS`, or with NaN or infinity.
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
    _check_finite(samples, rate, path)


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


def _open(path: Path | str) -> Any:
    _check_file(path)
    try:
        file = sf.SoundFile(path)
    except (sf.SoundFileError, TypeError) as error:  # TypeError: headerless formats such as .raw
        raise _undecodable(path, error) from None
    problem = ""
    if file.frames == 0:
        problem = "no samples"
    elif file.frames >= UNKNOWN_FRAMES:
        problem = "a stream that does not say its length"
    if problem:
        file.close()
        raise AudioError(
            f"{path}: {problem}, expected a finished audio file ({FORMATS}): "
            "record or convert it again, or leave it out"
        )
    return file


def _check_file(path: Path | str) -> None:
    if not os.path.exists(path):
        raise AudioError(f"{path}: no such file, expected an audio file: check the path")
    if os.path.isdir(path):
        raise AudioError(
            f"{path}: a directory, expected an audio file: give one of the files in it"
        )
    if os.path.getsize(path) == 0:
        raise AudioError(
            f"{path}: an empty file (0 bytes), expected audio ({FORMATS}): "
            "copy or record it again, or leave it out"
        )


def _decode(
    path: Path | str,
    file: Any,
    max_seconds: Seconds | None,
    start: Seconds | None,
    end: Seconds | None = None,
) -> np.ndarray:
    """Samples of an open file, at its own rate.

    Args:
        start, end: in seconds; None: those of the file.

    Shape: -> [samples] float32.
    """
    first = round((start or 0.0) * file.samplerate)
    last = int(file.frames) if end is None else round(end * file.samplerate)
    if max(first, last - OVERSHOOT_SECONDS * file.samplerate) > file.frames:
        length = file.frames / file.samplerate
        raise AudioError(
            f"{segment_name(path, start, end)}: the recording has {length:.2f} s, expected one "
            "that holds the segment: copy it again, or leave the segment out"
        )
    wanted = max(0, min(last, int(file.frames)) - first)
    if max_seconds is not None:
        wanted = min(wanted, math.ceil(max_seconds * file.samplerate))
    try:
        if file.tell() != first:
            file.seek(first)
        decoded = file.read(frames=wanted, dtype="float32", always_2d=True)
    except sf.SoundFileError as error:
        raise _undecodable(path, error) from None
    missing = (wanted - len(decoded)) / file.samplerate
    if missing > MISSING_SECONDS:  # libsndfile passes over a broken part of ogg and mp3 in silence
        raise _undecodable(path, f"{missing:.2f} s of what the header announces are missing")
    return np.asarray(decoded.mean(axis=1), dtype=np.float32)


def _check_finite(samples: np.ndarray, rate: int, path: Path | str, start: int = 0) -> None:
    """As `check_samples`; `start` is where the samples stand in the file."""
    finite = np.isfinite(samples)
    if not finite.all():
        first = int(np.argmin(finite))
        raise AudioError(
            f"{path}: {int((~finite).sum())} samples are NaN or infinite (the first at "
            f"{(start + first) / rate:.3f} s), expected finite numbers: export the file again or "
            "leave it out"
        )


def _undecodable(path: Path | str, reason: object) -> AudioError:
    return AudioError(
        f"{path}: cannot be decoded ({str(reason).rstrip('.')}), expected intact audio "
        f"({FORMATS}): copy or convert it again, or leave it out"
    )
