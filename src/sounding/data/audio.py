"""Audio files as mono float32 at the rate of the model, or an error that says what to do."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import soxr

from ..errors import UsageError
from . import media
from .decode import Decoder, check_file, open_audio
from .errors import (
    FORMATS,
    AudioError,
    AudioWarning,
    CancellingChannelsWarning,
    IncompleteAudioWarning,
    SilentAudioWarning,
)
from .headers import find_samples
from .samples import (
    CANCELLED,
    INVERSE,
    MIN_SECONDS,
    SILENT_PEAK,
    Seconds,
    as_float,
    check_length,
    check_samples,
    check_values,
    mix,
)

__all__ = [
    "FORMATS",
    "MIN_SECONDS",
    "SUFFIXES",
    "AudioError",
    "AudioWarning",
    "CancellingChannelsWarning",
    "IncompleteAudioWarning",
    "Seconds",
    "SilentAudioWarning",
    "announced_bytes",
    "as_float",
    "audio_blocks",
    "check_length",
    "check_samples",
    "check_segment",
    "duration",
    "read_audio",
    "segment_name",
]

BLOCK_SECONDS = 30  # of `audio_blocks`
MIX_SECONDS = 1  # of the file, in which channels are mixed in one way
OVERSHOOT_SECONDS: Seconds = 0.5  # that a segment may end behind its recording
READ_ALONE = (  # by libsndfile; not .mat, .raw, .iff and .sd2, which mostly are something else
    "8svx aif aifc aiff au avr bwf caf fap flac htk ircam mp1 mp2 mp3 nist nsp oga ogg opus paf "
    "pvf rf64 sds sf snd sph svx voc w64 wav wave wve xi"
)
# what is looked for in a directory
SUFFIXES = {f".{name}" for name in f"{READ_ALONE} {media.CONTAINERS}".split()}


def read_audio(
    path: Path | str,
    *,
    rate: int = 16000,
    max_seconds: Seconds | None = None,
    start: Seconds | None = None,
    end: Seconds | None = None,
) -> np.ndarray:
    """Read an audio file or a segment of it, channels averaged, at `rate` samples per second.

    Where channels cancel one another the loudest is taken, second by second of the file. A file
    that has one channel upside down from beginning to end is refused: it was recorded wrongly.

    Args:
        rate: of the result, in Hz; the file is resampled when it has another.
        max_seconds: decode only the start of the file or segment.
        start, end: of the segment; by default those of the file.

    Shape: [samples] float32, about -1 to 1.

    Raises:
        AudioError: a missing, empty, corrupt, cut or too short file, one with NaN, infinity or
            values that no audio has, or one that ends more than 0.5 s before the segment does.
        UsageError: `max_seconds` below `MIN_SECONDS`.

    Warns:
        SilentAudioWarning: the peak is below 1e-5.
        CancellingChannelsWarning: the channels cancel one another.
        IncompleteAudioWarning: audio may be missing.
    """
    if max_seconds is not None and not max_seconds >= MIN_SECONDS:
        raise UsageError(f"max_seconds is {max_seconds}: give at least {MIN_SECONDS}, or None")
    check_segment(path, start, end)
    name = segment_name(path, start, end)
    with closing(open_audio(path)) as decoder:
        samples = _segment(path, decoder, max_seconds, start, end)
    check_samples(samples, decoder.rate, name)
    if np.abs(samples).max() < SILENT_PEAK:
        warnings.warn(f"{name}: the audio is silent", SilentAudioWarning, stacklevel=2)
    if decoder.rate != rate:
        samples = soxr.resample(samples, decoder.rate, rate)
    return np.ascontiguousarray(samples, dtype=np.float32)


def audio_blocks(path: Path | str, *, rate: int = 16000) -> Iterator[np.ndarray]:
    """Decode an audio file of any length as `read_audio` does, a block at a time.

    Args:
        rate: of the result, in Hz.

    Shape: of each block [samples] float32.

    Raises:
        AudioError: as `read_audio`; what is wrong within the file, when its turn comes.

    Warns:
        AudioWarning: as `read_audio`; of silence once all of it is decoded.
    """
    with closing(open_audio(path)) as decoder:
        own_rate, first, peak = decoder.rate, 0, 0.0
        stream = soxr.ResampleStream(own_rate, rate, 1, dtype="float32")
        for samples, last in _with_last(_joined(path, decoder)):
            if first == 0:
                check_samples(samples, own_rate, path)
            else:
                check_values(samples, own_rate, path, first)
            first, peak = first + len(samples), max(peak, float(np.abs(samples).max()))
            yield samples if own_rate == rate else stream.resample_chunk(samples, last=last)
    if first == 0:
        check_samples(np.zeros(0, np.float32), own_rate, path)
    if peak < SILENT_PEAK:
        warnings.warn(f"{path}: the audio is silent", SilentAudioWarning, stacklevel=1)


def duration(path: Path | str) -> Seconds:
    """Return the length of an audio file by its header, without decoding it if there is one.

    Raises:
        AudioError: a missing, empty, cut or unreadable file.
    """
    with closing(open_audio(path)) as decoder:
        return decoder.seconds()


def announced_bytes(path: Path | str) -> int | None:
    """Return how many bytes a file has up to the end of its audio once it is whole.

    The header says so.

    This is for files that are still being written: WAV, RF64, Wave64, AIFF, CAF, AU and NIST.

    Returns:
        None where the header does not say: another format, or a writer that did not know.

    Raises:
        AudioError: no regular file, or one that cannot be read.
    """
    check_file(path)
    try:
        with Path(path).open("rb") as file:
            samples = find_samples(file)
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror}): check its rights") from None
    return None if samples is None or samples.size is None else samples.start + samples.size


def segment_name(path: Path | str, start: Seconds | None, end: Seconds | None) -> str:
    """Name a file, or a segment of it as FILE[START-END]."""
    if start is None and end is None:
        return str(path)
    return f"{path}[{start or 0:.2f}-{'end' if end is None else format(end, '.2f')}]"


def check_segment(path: Path | str, start: Seconds | None, end: Seconds | None) -> None:
    """Check that a segment can be one, whatever is in the file.

    Raises:
        AudioError: a start or an end that is negative or no number, or an end before the start.
    """
    begins, ends = start or 0.0, math.inf if end is None else end
    if not (0 <= begins < math.inf and begins <= ends) or (end is not None and end == math.inf):
        raise AudioError(
            f"{path}: a segment from {start} to {end} s, expected 0 or more, and an end behind its "
            "start: correct the segment"
        )


def _segment(
    path: Path | str,
    decoder: Decoder,
    max_seconds: Seconds | None,
    start: Seconds | None,
    end: Seconds | None,
) -> np.ndarray:
    """Return the samples of an open file, at its own rate. Shape: [samples] float32."""
    rate, frames = decoder.rate, decoder.frames
    first = round((start or 0.0) * rate)
    last = frames if end is None else round(end * rate)
    if frames is not None:
        _check_inside(path, start, end, first, last or 0, frames, rate)
    stop = last if max_seconds is None else first + math.ceil(max_seconds * rate)
    if last is not None and stop is not None:
        stop = min(stop, last)
    begin = first - first % (MIX_SECONDS * rate)
    parts = list(_mono(path, decoder, begin, stop))
    samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    there = begin + len(samples)
    if frames is None and (stop is None or there < stop):  # this is its end
        _check_inside(path, start, end, first, there if last is None else last, there, rate)
    return samples[first - begin : None if stop is None else stop - begin]


def _check_inside(
    path: Path | str,
    start: Seconds | None,
    end: Seconds | None,
    first: int,
    last: int,
    frames: int,
    rate: int,
) -> None:
    if max(first, last - OVERSHOOT_SECONDS * rate) > frames:
        raise AudioError(
            f"{segment_name(path, start, end)}: the recording has {frames / rate:.2f} s, expected "
            "one that holds the segment: copy it again, or leave the segment out"
        )


def _mono(
    path: Path | str, decoder: Decoder, begin: int = 0, stop: int | None = None
) -> Iterator[np.ndarray]:
    """Yield one channel of an open file, a second at a time, to a bit behind `stop`.

    Channels are mixed in whole seconds of the file, so that its segments and blocks are as the
    whole is.
    """
    size = MIX_SECONDS * decoder.rate
    if stop is not None and decoder.channels > 1:
        stop += -stop % size
    cancelled = False  # warned of from one place, so that a file that is read twice is told once
    most = 0.0  # of the seconds in which something is heard
    for block in decoder.blocks(begin, stop, size):
        samples, share = mix(block)
        most = share if share > most else most  # of NaN, where nothing is heard, not
        if share < CANCELLED and not cancelled:
            cancelled = True
            warnings.warn(
                f"{path}: the channels cancel one another, so that the loudest is used alone: look "
                "whether one is upside down",
                CancellingChannelsWarning,
                stacklevel=1,
            )
        yield samples
    whole = begin == 0 and (stop is None or (decoder.frames or math.inf) <= stop)
    if whole and cancelled and most < INVERSE:
        raise AudioError(
            f"{path}: one channel is the other upside down from beginning to end, so that nothing "
            "is left of their mean, expected channels that agree: take one of them, as by ffmpeg "
            "-i FILE -af 'pan=mono|c0=c0' OUT.wav"
        )
    for note in decoder.notes:
        warnings.warn(f"{path}: {note}", IncompleteAudioWarning, stacklevel=1)


def _joined(path: Path | str, decoder: Decoder) -> Iterator[np.ndarray]:
    """Yield one channel in blocks of `BLOCK_SECONDS`."""
    held: list[np.ndarray] = []
    for samples in _mono(path, decoder):
        held.append(samples)
        if len(held) * MIX_SECONDS >= BLOCK_SECONDS:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)


def _with_last(blocks: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, bool]]:
    """Yield each block, and whether it is the last.

    An error comes behind all that is before it.
    """
    held = next(blocks, None)
    while held is not None:
        try:
            following = next(blocks, None)
        except AudioError as error:
            yield held, False
            raise error
        yield held, following is None
        held = following
