"""What the headers of uncompressed formats announce: where the samples are, and how many bytes.

WAV (RIFF, RIFX), RF64 and BW64, Sony Wave64, AIFF, AIFF-C and 8SVX, CAF, AU, and NIST SPHERE.
libsndfile reads what is there of a file that was cut, and says nothing; this compares the two. A
size that a writer put there before it knew better (0, -1, or as much as fits: a pipe from ffmpeg,
sox or arecord) announces nothing.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # behind the name in most GUIDs of Wave64
WAVE64_FILE = b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000")
FILES = (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM", b"riff", b"caff", b".snd", b"dns.", b"NIST")
TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN")
NEAR = 1 << 16  # below a power of two: the most that fits, less what stands in front
NIST_FIELDS = (b"sample_count", b"channel_count", b"sample_n_bytes")


@dataclass(frozen=True)
class Chunking:
    """How a format lays out its chunks.

    Attributes:
        name: bytes of the name of a chunk.
        size: of the size behind it, in the terms of `struct`.
        counted: bytes in front of the content that the size counts.
        align: bytes that every chunk begins at a multiple of.
        samples: name of the chunk with the samples.
    """

    name: int
    size: str
    counted: int
    align: int
    samples: bytes


RIFF = Chunking(4, "<I", 0, 2, b"data")
RIFX = Chunking(4, ">I", 0, 2, b"data")
AIFF = Chunking(4, ">I", 0, 2, b"SSND")
SVX = Chunking(4, ">I", 0, 2, b"BODY")
WAVE64 = Chunking(16, "<Q", 24, 8, b"data" + TAIL)
CAF = Chunking(4, ">q", 0, 1, b"data")


@dataclass(frozen=True)
class Samples:
    """Where the samples of a file are.

    Attributes:
        start: of the first byte.
        size: announced, in bytes; None where the writer did not know.
        field: where in the file the size is written, and how, in the terms of `struct`; None where
            it cannot be set.
        counted: bytes in front of `start` that the size counts.
        chunking: None where the format has no chunks.
    """

    start: int
    size: int | None
    field: tuple[int, str] | None = None
    counted: int = 0
    chunking: Chunking | None = None


def find_samples(file: BinaryIO) -> Samples | None:
    """Find the samples in a file; None where the format is another, or does not say.

    Where the file ends before its samples begin, all of it that is announced counts as samples.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(40)
    form, kind = head[:4], head[8:12]
    found = None
    if form in (b"RIFF", b"RF64", b"BW64") and kind == b"WAVE":
        found = _in_chunks(file, 12, RIFF, size) or _whole(head, 4, "<I", 8)
    elif form == b"RIFX" and kind == b"WAVE":
        found = _in_chunks(file, 12, RIFX, size) or _whole(head, 4, ">I", 8)
    elif form == b"FORM" and kind in (b"AIFF", b"AIFC"):
        found = _in_chunks(file, 12, AIFF, size) or _whole(head, 4, ">I", 8)
    elif form == b"FORM" and kind in (b"8SVX", b"16SV"):
        found = _in_chunks(file, 12, SVX, size) or _whole(head, 4, ">I", 8)
    elif head[:16] == WAVE64_FILE and len(head) == 40:
        found = _in_chunks(file, 40, WAVE64, size) or _whole(head, 16, "<Q", 0)
    elif form == b"caff":
        found = _in_chunks(file, 8, CAF, size)
    elif form in (b".snd", b"dns.") and len(head) >= 12:
        order = ">" if form == b".snd" else "<"
        start, length = struct.unpack_from(f"{order}II", head, 4)
        found = Samples(start, length, (8, f"{order}I"))
    elif head.startswith(b"NIST_1A\n"):
        found = _in_nist(file)
    return None if found is None else _without_placeholder(file, found, size)


def unexplained(file: BinaryIO, samples: Samples) -> int:
    """Count the bytes behind the announced samples that are no chunk, no tag and not zero.

    They are audio that the header does not announce, or another file that was joined to it.
    """
    size = file.seek(0, os.SEEK_END)
    if samples.size is None or samples.start + samples.size >= size:
        return 0
    at = samples.start + samples.size
    if samples.chunking is not None:
        at += -at % samples.chunking.align
        for name, start, length in _chunks(file, at, samples.chunking, size):
            if name[:4] in FILES or not re.fullmatch(rb"[ -~]{4}", name[:4]):
                break
            if not 0 <= length <= size - start:
                break
            at = start + length + -(start + length) % samples.chunking.align
    file.seek(at)
    rest = file.read(1 << 20)
    if rest.startswith(TAGS):
        return 0
    while rest and not any(rest):  # padding
        rest = file.read(1 << 20)
    return size - at if rest else 0


def _chunks(
    file: BinaryIO, at: int, chunking: Chunking, size: int
) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, first byte and length of each chunk from `at` on."""
    width = chunking.name + struct.calcsize(chunking.size)
    while at + width <= size:
        file.seek(at)
        head = file.read(width)
        (length,) = struct.unpack_from(chunking.size, head, chunking.name)
        length -= chunking.counted
        yield head[: chunking.name], at + width, length
        if length < 0:
            return
        at += width + length
        at += -at % chunking.align


def _in_chunks(file: BinaryIO, at: int, chunking: Chunking, size: int) -> Samples | None:
    width = struct.calcsize(chunking.size)
    large: Samples | None = None  # by the ds64 chunk of RF64
    for name, start, length in _chunks(file, at, chunking, size):
        if name == b"ds64" and chunking is RIFF and size >= start + 16:
            file.seek(start + 8)
            large = Samples(start, int.from_bytes(file.read(8), "little"), (start + 8, "<Q"))
        if name == chunking.samples:
            if large is not None and length == 0xFFFFFFFF:
                return replace(large, start=start, chunking=chunking)
            field, counted = (start - width, chunking.size), chunking.counted
            if chunking is AIFF:  # an offset and a block size, which nobody uses
                start, length, counted = start + 8, length - 8, 8
            return Samples(start, length, field, counted, chunking)
    return None


def _whole(head: bytes, at: int, form: str, counted: int) -> Samples:
    """Return what a file announces whose samples do not begin."""
    (length,) = struct.unpack_from(form, head, at)
    return Samples(counted, length, (at, form))


def _in_nist(file: BinaryIO) -> Samples | None:
    file.seek(8)
    lines = file.read(1 << 14).split(b"\n")
    values = {}
    for line in lines[1:]:
        name, _, value = line.strip().partition(b" ")
        if name == b"end_head":
            break
        values[name] = value.split()[-1] if value.split() else b""
    numbers = [values.get(name, b"") for name in NIST_FIELDS]
    packed = b"," in values.get(b"sample_coding", b"")  # "pcm,embedded-shorten-v2.00"
    if packed or not lines[0].strip().isdigit() or not all(n.isdigit() for n in numbers):
        return None
    count, channels, width = map(int, numbers)
    return Samples(int(lines[0]), count * channels * width)


def _without_placeholder(file: BinaryIO, found: Samples, size: int) -> Samples:
    """Return the samples with their size only where a writer knew it."""
    length = found.size or 0
    if length <= 0:
        empty = found.start >= size or not unexplained(file, replace(found, size=0))
        return replace(found, size=0 if empty and length == 0 else None)
    if found.field is None or found.start + length <= size:
        return found
    most = 8 * struct.calcsize(found.field[1])
    unknown = any(abs(length - (1 << bits)) <= NEAR for bits in (most - 1, most))
    return replace(found, size=None) if unknown else found
