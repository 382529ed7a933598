"""Decoding of audio files from their beginning on, to the last sample that is there.

libsndfile decodes; how much there is, is counted here where it only estimates or believes the
header. What it does not know goes to PyAV or ffmpeg (`media`).
"""

from __future__ import annotations

import os
import re
import stat
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias

import numpy as np
import soundfile as sf

from . import media
from .errors import FORMATS, AudioError, missing_reason, undecodable
from .headers import WAVE64, Samples, find_samples, unexplained
from .mpeg import Stream, find_frames, parse_header
from .ogg import Pages, find_pages

MISSING_SECONDS = 0.1  # an mp3 header may be off by a frame or two
UNKNOWN_FRAMES = 2**62  # libsndfile's count for a stream that does not say its length
LOWEST_RATE, HIGHEST_RATE = 4000, 1_000_000  # Hz; speech needs 4000, nothing records above
EXACT = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")  # subtypes in which any sample can be sought
TOLD = ("MAT4", "SDS", "WVE")  # formats of which libsndfile's log says that they are cut
FLAC_STARTS = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")
JOINED = "several files were joined in it, or its header was not finished"


class Decoder(Protocol):
    """An audio file that is open.

    Attributes:
        rate: in Hz.
        channels: how many.
        frames: samples of each channel; None where only decoding tells.
        notes: what the listener should be told of; complete when all is decoded.
    """

    rate: int
    channels: int
    notes: list[str]

    @property
    def frames(self) -> int | None:
        """Samples of each channel; None where only decoding tells."""

    def blocks(self, first: int, stop: int | None, size: int) -> Iterator[np.ndarray]:
        """Decode from one sample to another in blocks of `size`, of which the last may be smaller.

        Can be called once.

        Shape: [samples, channels] float32.

        Raises:
            AudioError: it cannot be decoded, or samples that were announced are missing.
        """
        ...

    def seconds(self) -> float:
        """Return the length of the file, by its header where it has one.

        Call it in place of `blocks`.
        """
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def open_audio(path: Path | str) -> Decoder:
    """Open an audio file.

    Raises:
        AudioError: no audio file, one that was cut, or one that nothing here can decode.
    """
    check_file(path)
    decoder = _open(path)
    expected = f"a finished audio file ({FORMATS})"
    if decoder.frames == 0:
        problem = "no samples"
    elif decoder.frames is not None and decoder.frames >= UNKNOWN_FRAMES:
        problem = "a stream that does not say its length"
    elif not LOWEST_RATE <= decoder.rate <= HIGHEST_RATE:
        problem = f"a rate of {decoder.rate} Hz"
        expected = f"{LOWEST_RATE} Hz, which speech needs, to {HIGHEST_RATE} Hz"
    else:
        return decoder
    decoder.close()
    raise AudioError(
        f"{path}: {problem}, expected {expected}: record or convert it again, or leave it out"
    )


def check_file(path: Path | str) -> None:
    """Check that a path is that of a file with something in it.

    Raises:
        AudioError: it is not; the text says what it is.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise AudioError(f"{path}: no such file, expected an audio file: check the path") from None
    except (OSError, ValueError) as error:  # a name that is too long, or with a NUL
        reason = getattr(error, "strerror", None) or error
        raise AudioError(f"{path}: cannot be read ({reason}): check its name and rights") from None
    if stat.S_ISDIR(status.st_mode):
        raise AudioError(
            f"{path}: a directory, expected an audio file: give one of the files in it"
        )
    if not stat.S_ISREG(status.st_mode):  # to open a pipe may wait for ever
        raise AudioError(
            f"{path}: not a regular file, but a pipe, socket or device: save the audio to a file "
            "first, or pipe it to `sounding transcribe -`"
        )
    if status.st_size == 0:
        raise AudioError(
            f"{path}: an empty file (0 bytes), expected audio ({FORMATS}): "
            "copy or record it again, or leave it out"
        )


class _Sequential(sf.SoundFile):
    """A sound file that is read on without the seeks of `soundfile` around every read.

    GSM and others cannot seek; mp3 and others do it, and need some frames to be right again.
    """

    def seekable(self) -> bool:
        return False


class _Excerpt:
    """Parts of a file as one, in the form that `soundfile` takes.

    Args:
        runs: (first byte, length) of each part.
        claimed: length to claim; zeros lie behind the parts.
        patch: (first byte in the excerpt, bytes) to be read in place of those of the file.
    """

    def __init__(
        self,
        file: BinaryIO | _Excerpt,
        runs: Sequence[tuple[int, int]],
        claimed: int | None = None,
        patch: tuple[int, bytes] | None = None,
    ) -> None:
        self.file, self.runs, self.patch = file, runs, patch
        self.starts = [0, *accumulate(length for _, length in runs)]
        self.length = self.starts[-1] if claimed is None else claimed
        self.at = 0

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.length}[whence]
        return self.at

    def read(self, count: int) -> bytes:
        count = max(0, min(count, self.length - self.at))
        made = bytearray()
        while len(made) < count:
            at = self.at + len(made)
            number = bisect_right(self.starts, at) - 1
            if number >= len(self.runs):
                break
            start, length = self.runs[number]
            inside = at - self.starts[number]
            self.file.seek(start + inside)
            part = self.file.read(min(count - len(made), length - inside))
            if not part:
                break
            made += part
        made = made.ljust(count, b"\0")
        if self.patch is not None:
            at, new = self.patch
            first, last = max(at, self.at), min(at + len(new), self.at + count)
            if first < last:
                made[first - self.at : last - self.at] = new[first - at : last - at]
        self.at += count
        return bytes(made)


Source: TypeAlias = "bytes | str | _Excerpt"  # what `soundfile` opens


@dataclass(frozen=True)
class _Part:
    """What libsndfile is to open as one.

    Attributes:
        frames: that are in it, in place of what libsndfile expects.
    """

    source: Source
    frames: int | None = None


class _Sound:
    """A file that libsndfile decodes.

    Args:
        sounds: one after the other, with the frames of each.
        file: beneath those that are excerpts of it.
        notes: as `Decoder`.
    """

    def __init__(
        self,
        path: Path | str,
        sounds: Sequence[tuple[_Sequential, int]],
        file: BinaryIO,
        notes: Sequence[str] = (),
    ) -> None:
        self.path, self.sounds, self.file, self.notes = path, sounds, file, list(notes)
        sound, _ = sounds[0]
        self.rate, self.channels = int(sound.samplerate), int(sound.channels)
        self.frames = sum(frames for _, frames in sounds)
        self._left = list(sounds)  # with the frames that are still to be read
        kinds = {(sound.samplerate, sound.channels) for sound, _ in sounds}
        if len(kinds) > 1:
            raise undecodable(path, "the files that were joined in it differ in rate or channels")

    def close(self) -> None:
        for sound, _ in self.sounds:
            sound.close()
        self.file.close()

    def seconds(self) -> float:
        return self.frames / self.rate

    def blocks(self, first: int, stop: int | None, size: int) -> Iterator[np.ndarray]:
        stop = self.frames if stop is None else min(stop, self.frames)
        at = self._skip(first, size)
        while at < stop and len(block := self._read(min(size, stop - at))):
            at += len(block)
            yield block
        missing = (stop - at) / self.rate
        if missing > MISSING_SECONDS:  # libsndfile passes over a broken part of ogg in silence
            raise undecodable(self.path, missing_reason(missing))
        if at == self.frames:
            self._check_end()

    def _skip(self, first: int, size: int) -> int:
        """Go to a sample, or to the end before it, and return where that is."""
        sound, frames = self.sounds[0]
        exact = sf.SoundFile.seekable(sound) and sound.subtype.startswith(EXACT)
        if exact and len(self.sounds) == 1:
            try:
                at = int(sound.seek(min(first, frames)))
            except sf.SoundFileError as error:
                raise undecodable(self.path, _reason(error)) from None
            self._left = [(sound, frames - at)]
            return at
        at = 0
        while at < first and len(block := self._read(min(size, first - at))):
            at += len(block)
        return at

    def _read(self, count: int) -> np.ndarray:
        """Read the next samples; fewer only at the end. Shape: [samples, channels] float32."""
        parts = [np.zeros((0, self.channels), np.float32)]
        while count > 0 and self._left:
            sound, left = self._left[0]
            try:
                parts.append(sound.read(min(count, left), dtype="float32", always_2d=True))
            except sf.SoundFileError as error:
                raise undecodable(self.path, _reason(error)) from None
            got = len(parts[-1])
            count -= got
            self._left[:1] = [(sound, left - got)] if got and left > got else []
        return parts[1] if len(parts) == 2 else np.concatenate(parts)

    def _check_end(self) -> None:
        """Refuse what was cut by libsndfile's own word, and FLAC files with another one behind.

        libsndfile fills up the one and leaves out the other in silence.
        """
        sound, _ = self.sounds[-1]
        if sound.format in TOLD and re.search("should be|truncated|short read", sound.extra_info):
            raise undecodable(self.path, "a part of what the header announces is missing")
        if sound.format == "FLAC" and isinstance(sound.name, _Excerpt):
            self.file.seek(max(4, sound.name.at - (1 << 16)))
            rest = self.file.read()
            if any(start in rest for start in FLAC_STARTS):
                raise undecodable(self.path, JOINED)


def _open(path: Path | str) -> Decoder:
    """Decode by libsndfile what it knows, and everything else by `media`."""
    try:
        file = Path(path).open("rb")  # noqa: SIM115
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror}): check its rights") from None
    try:
        samples = find_samples(file)
        parts, notes = _parts(path, file, samples)
        try:
            sounds = _sounds(path, file, parts, samples)
        except (sf.SoundFileError, TypeError) as error:  # TypeError: headerless, such as .raw
            _check_size(path, file, samples, None)
            file.close()
            return media.open_media(path, _reason(error), notes)
        decoder = _Sound(path, sounds, file, notes)
        _check_size(path, file, samples, decoder.seconds())
        return decoder
    except BaseException:
        file.close()
        raise


def _parts(
    path: Path | str, file: BinaryIO, samples: Samples | None
) -> tuple[list[_Part], list[str]]:
    """Return what libsndfile is to open one after the other, and what to tell the listener."""
    pages = find_pages(file)
    if pages is not None:
        return _links(path, file, pages)
    file.seek(0)
    head, size = file.read(4), _size(file)
    suffixed = samples is None and Path(path).suffix.lower() in (".mp3", ".mp2", ".mp1")
    if head[:3] == b"ID3" or parse_header(head) is not None or (suffixed and head != b"fLaC"):
        streams = find_frames(file)
        if streams:
            return _mpeg(path, file, streams), []
    if samples is not None and samples.size is None and samples.field is not None:
        return [_with_size(file, samples, size)], []
    if samples is not None and samples.size is not None and samples.chunking in (None, WAVE64):
        end = samples.start + samples.size  # libsndfile would decode what is behind, too
        return [_Part(_Excerpt(file, [(0, min(size, end))]))], []
    if head == b"fLaC":  # of which `_check_end` wants to know how far it was read
        return [_Part(_Excerpt(file, [(0, size)]))], []
    return [_Part(_system_name(path))], []


def _sounds(
    path: Path | str, file: BinaryIO, parts: Sequence[_Part], samples: Samples | None
) -> list[tuple[_Sequential, int]]:
    """Open the parts.

    Raises what `soundfile` does.
    """
    opened: list[tuple[_Sequential, int]] = []
    try:
        for part in parts:
            sound = _Sequential(part.source)
            opened.append((sound, int(sound.frames) if part.frames is None else part.frames))
    except BaseException:
        for sound, _ in opened:
            sound.close()
        raise
    sound, _ = opened[0]
    if sound.subtype.startswith("MPEG_LAYER") and not isinstance(parts[0].source, _Excerpt):
        start = 0 if samples is None else samples.start  # in a WAV file
        inside = _Excerpt(file, [(start, _size(file) - start)])
        streams = find_frames(inside)
        if streams:
            sound.close()
            return _sounds(path, file, _mpeg(path, inside, streams), None)
    return opened


def _links(path: Path | str, file: BinaryIO, pages: Pages) -> tuple[list[_Part], list[str]]:
    """Return the links of an Ogg file: libsndfile decodes only the first of what it is given."""
    if pages.cut:
        raise undecodable(path, "it ends within a page, so that audio is missing")
    note = "the last page of the stream is missing, and maybe audio with it"
    notes = [] if pages.ended else [note]
    if len(pages.links) < 2:
        return [_Part(_system_name(path))], notes
    ends = [*pages.links[1:], _size(file)]
    pairs = zip(pages.links, ends, strict=True)
    return [_Part(_Excerpt(file, [(start, end - start)])) for start, end in pairs], notes


def _mpeg(path: Path | str, file: BinaryIO | _Excerpt, streams: Sequence[Stream]) -> list[_Part]:
    """Return all frames of mp3 files that may be joined, each with its header if that is right."""
    parts = []
    for stream in streams:
        if stream.missing > MISSING_SECONDS:
            reason = missing_reason(stream.missing)
            if stream.lost:
                reason += f", from {stream.lost_at * stream.samples / stream.rate:.2f} s on"
            raise undecodable(path, reason)
        # a header that counts itself too, or a last frame that was cut, is no reason to doubt it
        if stream.info is not None and (stream.announced or 0) - stream.frames in (0, 1):
            parts.append(_Part(_Excerpt(file, [stream.info, *stream.runs])))
            continue
        # libsndfile divides the size by that of the first frame: claim enough for all of them
        claimed = stream.frames * stream.longest
        parts.append(_Part(_Excerpt(file, stream.runs, claimed), stream.length))
    return parts


def _with_size(file: BinaryIO, samples: Samples, size: int) -> _Part:
    """Give a file of unknown length the length that it has: some libsndfile takes for empty."""
    assert samples.field is not None
    place, form = samples.field
    most = (1 << 8 * struct.calcsize(form)) - 1
    length = min(max(0, size - samples.start) + samples.counted, most)
    return _Part(_Excerpt(file, [(0, size)], patch=(place, struct.pack(form, length))))


def _check_size(
    path: Path | str, file: BinaryIO, samples: Samples | None, seconds: float | None
) -> None:
    """Refuse a file that was cut, or that has more audio than its header announces.

    Args:
        seconds: of the audio that is there; None where that is not known.
    """
    if samples is None or samples.size is None:
        return
    there = min(samples.size, max(0, _size(file) - samples.start))
    missing, more = samples.size - there, unexplained(file, samples)
    least = 0.0  # bytes that matter
    if seconds:
        least = MISSING_SECONDS * there / seconds
    if missing > least:
        share = 100 * missing / samples.size
        raise undecodable(
            path,
            f"{share:.0f} % of what the header announces are missing: of {samples.size} bytes of "
            f"audio {there} are there",
        )
    if more > least:
        raise undecodable(path, f"{more} bytes behind the audio are not in its header: {JOINED}")


def _size(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _system_name(path: Path | str) -> bytes | str:
    """Return a name as bytes where names are bytes.

    `soundfile` cannot encode those that are not UTF-8.
    """
    return os.fspath(path) if os.name == "nt" else os.fsencode(path)


def _reason(error: Exception) -> str:
    """Return what libsndfile says, without the name of the file."""
    return str(getattr(error, "error_string", error))
