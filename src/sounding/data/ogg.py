"""The pages of an Ogg file (RFC 3533): where its links begin, and whether its end is there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import BinaryIO

PAGE = b"OggS"
WINDOW = 1 << 16
CONTINUED, FIRST, LAST = 1, 2, 4  # flags of a page


@dataclass
class Pages:
    """What the pages of an Ogg file say.

    Attributes:
        links: first byte of each stream of a chain, which are played one after the other.
        cut: the file ends within a page.
        ended: the last stream has its last page.
    """

    links: list[int]
    cut: bool = False
    ended: bool = True


def find_pages(file: BinaryIO) -> Pages | None:
    """Look at the header of every page; None where the file is not Ogg."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(4) != PAGE:
        return None
    pages, at, heads, open_streams = Pages([]), 0, False, set[bytes]()
    while at + 27 <= size:
        file.seek(at)
        head = file.read(27)
        if head[:4] != PAGE:
            following = _next_page(file, at)
            if following is None:
                break
            at = following
            continue
        length = 27 + head[26] + sum(file.read(head[26]))
        if at + length > size:
            pages.cut = True
            break
        if head[5] & FIRST and not heads:  # several streams begin together, as of a video
            pages.links.append(at)
            open_streams.clear()
        heads = bool(head[5] & FIRST)
        (open_streams.discard if head[5] & LAST else open_streams.add)(head[14:18])
        at += length
    else:
        file.seek(at)
        pages.cut = size > at and file.read(4) == PAGE[: size - at]
    pages.ended = not open_streams
    return pages


def _next_page(file: BinaryIO, at: int) -> int | None:
    while True:
        file.seek(at)
        window = file.read(WINDOW)
        place = window.find(PAGE)
        if place >= 0:
            return at + place
        if len(window) < WINDOW:
            return None
        at += WINDOW - 3
