"""Audio of containers that libsndfile does not know (m4a, mp4, webm, ...), by PyAV or ffmpeg.

Both are the libraries of FFmpeg, and optional: PyAV is a package, ffmpeg a program on the PATH.
The first audio stream is decoded, block by block and at its place in time: where the time stamps
leave a gap there is silence.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from .errors import FORMATS, AudioError, missing_reason, undecodable
from .mpeg import behind_tags

CONTAINERS = (  # suffixes; not .ts, which mostly is TypeScript
    "3g2 3gp aac ac3 amr ape asf avi awb eac3 flv m2ts m4a m4b m4r m4v mka mkv mov mp4 mpc mpeg "
    "mpg mts ogv oma qt rm spx tak tta vob weba webm wma wmv wv"
)
# formats that hold audio; not those that name other files, or addresses, to be fetched (hls, ...)
READERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dts,eac3,flac,flv,gsm,loas,matroska,mov,mp3,"
    "mpc,mpc8,mpeg,mpegts,ogg,oma,rm,tak,tta,voc,w64,wav,wv"
)
ANNOUNCED = ("mov", "matroska", "asf", "flv", "avi")  # formats in which the length is written
BARE = ("aac", "ac3", "eac3")  # packets one behind the other, of which broken ones are passed over
GAP_SECONDS = 0.1  # a shorter one is the rounding of the time stamps
CLOCK_SECONDS = 600  # a longer one is a clock that was set
TOLERANCE_SECONDS = 0.5  # of the length that is written
FILL = "aresample=async=1:min_hard_comp=0.1:first_pts=0"  # silence in the gaps of ffmpeg
INSTALL = 'pip install "sounding[media]"'


def open_media(path: Path | str, reason: str, notes: Sequence[str] = ()) -> _Av | _Ffmpeg:
    """Open an audio file that libsndfile could not.

    Args:
        reason: what libsndfile said.
        notes: what the listener should be told of, so far.

    Raises:
        AudioError: it cannot be decoded here; the text says what to do.
    """
    try:
        import av  # noqa: F401
    except ImportError:
        program = shutil.which("ffmpeg")
        if program is not None:
            return _Ffmpeg(path, program, notes)
        name = Path(path).name
        raise AudioError(
            f"{path}: cannot be decoded ({reason.rstrip('.')}), expected intact audio ({FORMATS}): "
            f"copy it again; m4a, mp4, webm and others need PyAV ({INSTALL}) or ffmpeg on the "
            f"PATH, or convert it: ffmpeg -i {shlex.quote(name)} {shlex.quote(name + '.wav')}"
        ) from None
    return _Av(path, notes)


def _portions(
    pieces: Iterator[np.ndarray], first: int, stop: int | None, size: int
) -> Iterator[np.ndarray]:
    """Yield the samples from one to another in blocks of a size, out of pieces of any size."""
    at, held, count = 0, list[np.ndarray](), 0
    for piece in pieces:
        begin, at = at, at + len(piece)
        end = len(piece) if stop is None else stop - begin
        held.append(piece[max(0, first - begin) : max(0, end)])
        count += len(held[-1])
        if count >= size:
            joined = np.concatenate(held)
            for start in range(0, count - count % size, size):
                yield joined[start : start + size]
            held = [joined[count - count % size :]]
            count %= size
        if stop is not None and at >= stop:
            break
    if count:
        yield np.concatenate(held)


class _Av:
    """The first audio stream of a container, decoded by PyAV."""

    frames = None

    def __init__(self, path: Path | str, notes: Sequence[str]) -> None:
        self.path, self.notes = path, list(notes)
        self.rate = self.channels = 0  # as the first frame has them: HE-AAC announces half
        self._packed: Any = None  # makes floats of any form; arrays of planes can crash PyAV
        self.container, self.stream = self._open()
        self._pieces = self._in_time()
        try:
            self._first = next(self._pieces)
        except StopIteration:
            self.close()
            raise undecodable(path, "its audio stream has no samples") from None
        except BaseException:
            self.close()
            raise

    def _open(self) -> tuple[Any, Any]:
        import av

        options = {"protocol_whitelist": "file", "format_whitelist": READERS}
        try:
            container: Any = av.open(f"file:{os.fspath(self.path)}", options=options)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise undecodable(self.path, _reason(error)) from None
        streams = container.streams
        if not streams.audio:
            container.close()
            raise no_audio(self.path)
        audio = streams.audio[0]
        if audio.codec_context is None:
            container.close()
            raise undecodable(self.path, "its audio has a codec that FFmpeg does not know")
        audio.codec_context.options = {"err_detect": "crccheck"}
        return container, audio

    def close(self) -> None:
        self.container.close()

    def blocks(self, first: int, stop: int | None, size: int) -> Iterator[np.ndarray]:
        return _portions(chain([self._first], self._pieces), first, stop, size)

    def seconds(self) -> float:
        end = self._end()
        return self._end_of_packets() if end is None else end

    def _end(self) -> float | None:
        """Return where the container says that the audio ends, in seconds; None if it does not."""
        if not set(self.container.format.name.split(",")) & set(ANNOUNCED):
            return None
        stamp = re.match(r"(\d+):(\d\d):(\d\d\.\d+)$", self.stream.metadata.get("DURATION", ""))
        if stamp is not None:
            hours, minutes, seconds = map(float, stamp.groups())
            return 3600 * hours + 60 * minutes + seconds - self._begin()
        if self.stream.duration is not None:
            end = (self.stream.start_time or 0) + self.stream.duration
            return float(end * self.stream.time_base) - self._begin()
        alone = len(self.container.streams) == 1
        return self.container.duration / 1e6 if alone and self.container.duration else None

    def _begin(self) -> float:
        """Return where time begins, in that of the container: video may begin before the audio."""
        return (self.container.start_time or 0) / 1e6

    def _end_of_packets(self) -> float:
        container, stream = self._open()
        with container, self._named():
            times = [(p.pts, p.duration or 0) for p in container.demux(stream) if p.size]
        if not times or any(pts is None or not length for pts, length in times):
            return sum(len(block) for block in self.blocks(0, None, self.rate)) / self.rate
        begin = min(times)[0] if self.container.start_time is None else 0
        return float((sum(max(times)) - begin) * stream.time_base) - self._begin()

    def _in_time(self) -> Iterator[np.ndarray]:
        """Yield all samples, with silence in the gaps.

        Shape: of each piece [samples, channels].
        """
        due: float | None = None  # when the next samples are
        for frame in self._decoded():
            piece = self._samples(frame)
            begin = due
            if due is None and self.container.start_time is not None:
                begin = self._begin()
            gap = 0.0 if frame.time is None or begin is None else frame.time - begin
            if GAP_SECONDS < gap < CLOCK_SECONDS:
                if due is not None:
                    span = f"{begin:.2f} to {frame.time:.2f} s"
                    self.notes.append(f"no audio from {span}: silence is put there")
                yield np.zeros((round(gap * self.rate), self.channels), np.float32)
            known = begin or 0.0 if frame.time is None else frame.time
            due = known + len(piece) / self.rate
            yield piece
        end = self._end()
        if due is not None and end is not None and end - (due - self._begin()) > TOLERANCE_SECONDS:
            raise undecodable(self.path, missing_reason(end - (due - self._begin())))

    def _decoded(self) -> Iterator[Any]:
        """Yield the frames, without those of broken packets: 0.1 s of them is too much."""
        import av

        lost, read, seconds = 0.0, 0, 0.0
        with self._named():
            for packet in self.container.demux(self.stream):
                length = float((packet.duration or 0) * packet.time_base)
                read, seconds = read + packet.size, seconds + length
                try:
                    yield from packet.decode()
                except av.FFmpegError as error:
                    lost += length or GAP_SECONDS
                    if lost > GAP_SECONDS:
                        at = float((packet.pts or 0) * packet.time_base)
                        raise undecodable(self.path, f"{_reason(error)}, at {at:.2f} s") from None
        if self.container.format.name in BARE and read:
            lost += self._stray(read) * seconds / read
        if lost:
            self.notes.append(f"about {lost:.2f} s of it cannot be decoded")

    def _stray(self, read: int) -> int:
        """Count the bytes that are neither packets nor tags, of a file of packets alone."""
        with open(self.path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            return max(0, size - behind_tags(file, 0, size) - read - 128)  # a tag at the end

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Turn an error of FFmpeg into one that names the file."""
        import av

        try:
            yield
        except av.FFmpegError as error:
            raise undecodable(self.path, _reason(error)) from None

    def _samples(self, frame: Any) -> np.ndarray:
        import av

        if self._packed is None:
            self.rate, self.channels = frame.sample_rate, len(frame.layout.channels)
            self._packed = av.AudioResampler("flt", frame.layout, frame.sample_rate)
        try:
            made = [one.to_ndarray() for one in self._packed.resample(frame)]
        except (av.FFmpegError, ValueError):
            raise undecodable(
                self.path,
                f"it changes from {self.rate} Hz and {self.channels} channels to "
                f"{frame.sample_rate} Hz and {len(frame.layout.channels)}",
            ) from None
        empty = np.zeros((1, 0), np.float32)
        return np.concatenate([empty, *made], axis=1).reshape(-1, self.channels)


class _Ffmpeg:
    """The first audio stream of a container, decoded by the program ffmpeg."""

    frames = None

    def __init__(self, path: Path | str, program: str, notes: Sequence[str]) -> None:
        self.path, self.program, self.notes = path, program, list(notes)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        # AU has a header that tells rate and channels, and needs no length
        output = ["-map", "0:a:0", "-vn", "-af", FILL, "-c:a", "pcm_f32be", "-f", "au", "-"]
        self._process = subprocess.Popen(
            [*self._command(), *output],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._said,
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout
        head = self._output.read(24)
        if len(head) < 24:
            self._process.wait()
            error = self._error() or "ffmpeg gives nothing"
            self.close()
            raise no_audio(path) if "matches no streams" in error else undecodable(path, error)
        start, _, _, self.rate, self.channels = struct.unpack(">5I", head[4:])
        self._output.read(start - 24)

    def _command(self) -> list[str]:
        options = (
            "-nostdin -hide_banner -nostats -loglevel level+info -max_error_rate 0 "
            "-protocol_whitelist file"
        )
        inside = ["-format_whitelist", READERS, "-i", f"file:{os.fspath(self.path)}"]
        return [self.program, *options.split(), *inside]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._output.close()
        self._said.close()

    def blocks(self, first: int, stop: int | None, size: int) -> Iterator[np.ndarray]:
        return _portions(self._pieces(), first, stop, size)

    def seconds(self) -> float:
        end = self._end()
        if end is not None:
            return end
        return sum(len(block) for block in self.blocks(0, None, self.rate)) / self.rate

    def _end(self) -> float | None:
        """Return where the container says that it ends; None where that may not be the audio."""
        said = self._log().partition("Stream mapping")[0]
        form = re.search(r"Input #0, ([\w,]+), from", said)
        stamp = re.search(r"Duration: (\d+):(\d\d):(\d\d\.\d+)", said)
        alone = len(re.findall(r"Stream #0:\d+", said)) == 1
        if not (form and stamp and alone and set(form[1].split(",")) & set(ANNOUNCED)):
            return None
        hours, minutes, seconds = map(float, stamp.groups())
        return 3600 * hours + 60 * minutes + seconds

    def _pieces(self) -> Iterator[np.ndarray]:
        width, count = 4 * self.channels, 0
        while piece := self._output.read(width << 14):
            whole = len(piece) - len(piece) % width
            values = np.frombuffer(piece[:whole], ">f4").reshape(-1, self.channels)
            count += len(values)
            yield values.astype(np.float32)
        code, error, end = self._process.wait(), self._error(), self._end()
        if end is not None and end - count / self.rate > TOLERANCE_SECONDS:
            raise undecodable(self.path, missing_reason(end - count / self.rate))
        if code != 0:
            raise undecodable(self.path, error or f"ffmpeg ends with exit code {code}")
        if error:
            self.notes.append(f"ffmpeg says: {error}")

    def _log(self) -> str:
        self._said.seek(0)
        return self._said.read().decode(errors="replace")

    def _error(self) -> str:
        """Return the first error that ffmpeg told of; empty where there was none."""
        found = re.search(r"\[(?:error|fatal)\] (.*)", self._log())
        return found[1].strip() if found else ""


def no_audio(path: Path | str) -> AudioError:
    """Make the error for a container with video alone, say."""
    return AudioError(f"{path}: no audio stream in it, expected audio: leave it out")


def _reason(error: Exception) -> str:
    """Return what FFmpeg says, without the name of the file."""
    return str(getattr(error, "strerror", None) or error)
