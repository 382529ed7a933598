"""The frames of MPEG audio (mp3, mp2, mp1), counted: libsndfile only estimates how many there are.

An mp3 has no length. libsndfile takes the one that a Xing or Info header in the first frame
announces, or divides the size of the file by that of the first frame, and decodes no further: of
a variable bit rate, or of two files joined, it loses the rest, or expects what never was. Here
the headers of all frames are read (ISO 11172-3, 2.4.1; 0.3 s for an hour).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

KBITS = {  # (MPEG-1, layer) -> by index; 0 is the free format, whose frames do not say their length
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES = (44100, 48000, 32000)  # halved in MPEG-2, and again in MPEG-2.5
SYNC = re.compile(rb"(?=\xff[\xe2-\xff][\x00-\xef])")  # how any frame begins
WINDOW = 1 << 16  # bytes in which the next frame is looked for at a time
LONGEST = 4096  # bytes of a frame of a free format


class File(Protocol):
    """A file, or a part of one, to read from."""

    def seek(self, offset: int, whence: int = ...) -> int:
        """Go to a byte, and return where that is."""

    def read(self, count: int) -> bytes:
        """Read so many bytes, or fewer at the end."""


@dataclass(frozen=True)
class Header:
    """What the first four bytes of a frame say.

    Attributes:
        kind: version, layer, rate, and whether it is mono: the same in a whole stream.
        samples: of each channel.
        length: in bytes; 0 in a free format.
        padding: bytes of them that not every frame has.
    """

    kind: tuple[int, int, int, bool]
    samples: int
    length: int
    padding: int


@lru_cache(maxsize=4096)
def parse_header(four: bytes) -> Header | None:
    """Parse the header of a frame; None where these four bytes are none."""
    if len(four) < 4 or four[0] != 0xFF or four[1] < 0xE0:
        return None
    version, layer = four[1] >> 3 & 3, 4 - (four[1] >> 1 & 3)  # 3: MPEG-1, 2: MPEG-2, 0: MPEG-2.5
    index, row, padded = four[2] >> 4, four[2] >> 2 & 3, four[2] >> 1 & 1
    if version == 1 or layer == 4 or index == 15 or row == 3:
        return None
    rate = RATES[row] // {3: 1, 2: 2, 0: 4}[version]
    samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152
    slot = 4 if layer == 1 else 1  # bytes
    bits = 1000 * KBITS[version == 3, layer][index]
    length = (samples * bits // (8 * slot * rate) + padded) * slot if bits else 0
    return Header((version, layer, rate, four[3] >> 6 == 3), samples, length, padded * slot)


@dataclass
class Stream:
    """The frames of a file, or of one of several that were joined.

    Attributes:
        kind: as `Header.kind`.
        samples: of a frame.
        info: (first byte, length) of the Xing or Info header of its encoder, if any.
        announced: frames by that header, or a VBRI header; None where it does not say.
        frames: that are there, without that header.
        longest: bytes of a frame.
        runs: (first byte, length) of frames without anything between them.
        lost: bytes between frames that are none.
        lost_at: the number of frames before the first of them.
    """

    kind: tuple[int, int, int, bool]
    samples: int
    info: tuple[int, int] | None = None
    announced: int | None = None
    frames: int = 0
    longest: int = 0
    runs: list[tuple[int, int]] = field(default_factory=list)
    lost: int = 0
    lost_at: int = 0

    @property
    def rate(self) -> int:
        """Samples of each channel per second, in Hz."""
        return self.kind[2]

    @property
    def length(self) -> int:
        """Length in samples, with what the encoder added."""
        return self.frames * self.samples

    @property
    def missing(self) -> float:
        """Seconds that were there once: announced and gone, or damaged."""
        gone = max(0.0, (self.announced or 0) - self.frames)
        if self.lost:
            mean = sum(length for _, length in self.runs) / self.frames
            gone = max(gone, self.lost / mean)
        return gone * self.samples / self.rate

    def add(self, at: int, length: int) -> None:
        """Count a frame."""
        self.frames += 1
        self.longest = max(self.longest, length)
        if self.runs and sum(self.runs[-1]) == at:
            self.runs[-1] = (self.runs[-1][0], self.runs[-1][1] + length)
        else:
            self.runs.append((at, length))


def find_frames(file: File) -> list[Stream]:
    """Find all frames of a file: a stream for each file that was joined in it; none if no MPEG.

    Where a header of an encoder stands another file begins. Tags are passed over wherever they
    are. What is cut at the end is not a frame.
    """
    size = file.seek(0, os.SEEK_END)
    begin = behind_tags(file, 0, size)
    first = _next_frame(file, begin, min(size, begin + (1 << 20)), size)
    if first is None:
        return []
    at, header = first
    streams = [Stream(header.kind, header.samples)]
    free = 0 if header.length else _free_length(file, at, header)
    while at + 4 <= size:
        stream = streams[-1]
        file.seek(at)
        head = file.read(40)
        found = parse_header(head[:4])
        if found is None or found.kind != stream.kind or not (found.length or free):
            behind = behind_tags(file, at, size)
            following = _next_frame(file, behind, size, size)
            if following is None:
                break
            at, found = following
            if at > behind:
                stream.lost_at = stream.lost_at or stream.frames
                stream.lost += at - behind
            if found.kind != stream.kind:
                streams.append(Stream(found.kind, found.samples))
            free = free if found.length else _free_length(file, at, found)
            continue
        length = found.length or free + found.padding
        if at + length > size:
            break
        if _is_info(head, found):
            if stream.frames:
                stream = Stream(found.kind, found.samples)
                streams.append(stream)
            _read_info(file, at, length, stream)
        else:
            stream.add(at, length)
        at += length
    return [stream for stream in streams if stream.frames]


def behind_tags(file: File, at: int, size: int) -> int:
    """Find the end of the tags (ID3, APE) that begin at a byte."""
    while at < size:
        file.seek(at)
        head = file.read(32)
        if head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 128:
            length = 10 + sum(b << 7 * (3 - i) for i, b in enumerate(head[6:10]))
            at += length + (10 if head[5] & 16 else 0)  # a footer
        elif head[:3] == b"TAG":
            at += 128
        elif head[:8] == b"APETAGEX" and len(head) == 32:
            header = head[23] & 32  # this is the header: the items follow, and the footer
            at += 32 + (int.from_bytes(head[12:16], "little") if header else 0)
        else:
            break
    return min(at, size)


def _next_frame(file: File, at: int, end: int, size: int) -> tuple[int, Header] | None:
    """Find the first frame between `at` and `end` that has others or the end behind it."""
    while at < end:
        file.seek(at)
        window = file.read(WINDOW + 3)
        for match in SYNC.finditer(window, 0, min(WINDOW, end - at) + 2):
            place = match.start()
            found = parse_header(window[place : place + 4])
            if found is not None and _followed(file, at + place, found, size, 2):
                return at + place, found
        at += WINDOW
    return None


def _followed(file: File, at: int, header: Header, size: int, times: int) -> bool:
    """Return whether so many frames of the kind, or the end, follow one: four bytes say little."""
    length = header.length or _free_length(file, at, header) + header.padding
    behind = at + length
    if length <= header.padding or behind > size:
        return False
    if behind == size or behind_tags(file, behind, size) > behind:
        return True
    file.seek(behind)
    following = parse_header(file.read(4))
    if following is None or following.kind != header.kind:
        return False
    return times == 1 or _followed(file, behind, following, size, times - 1)


def _free_length(file: File, at: int, header: Header) -> int:
    """Return the bytes of a frame of a free format without its padding, or 0.

    They follow from where the next two frames begin.
    """
    file.seek(at)
    window = file.read(2 * LONGEST + 8)
    for place in range(24, min(LONGEST, len(window) - 4)):
        found = parse_header(window[place : place + 4])
        if found is None or found.kind != header.kind or found.length:
            continue
        after = place + place - header.padding + found.padding
        third = parse_header(window[after : after + 4])
        if after >= len(window) - 4 or (third and third.kind == header.kind and not third.length):
            return place - header.padding
    return 0


def _tag(kind: tuple[int, int, int, bool]) -> int:
    """Return where the header of an encoder begins in a frame: behind the side information."""
    version, _, _, mono = kind
    return 4 + ((17 if mono else 32) if version == 3 else (9 if mono else 17))


def _is_info(head: bytes, header: Header) -> bool:
    if header.kind[1] != 3:
        return False
    tag = _tag(header.kind)
    return head[tag : tag + 4] in (b"Xing", b"Info") or head[36:40] == b"VBRI"


def _read_info(file: File, at: int, length: int, stream: Stream) -> None:
    """Take over what the header of an encoder says."""
    file.seek(at)
    frame = file.read(min(length, 64))
    if frame[36:40] == b"VBRI":
        stream.announced = int.from_bytes(frame[50:54], "big") or None
        return
    stream.info = (at, length)
    place = _tag(stream.kind) + 8
    flags = int.from_bytes(frame[place - 4 : place], "big")
    if flags & 1:
        stream.announced = int.from_bytes(frame[place : place + 4], "big") or None
