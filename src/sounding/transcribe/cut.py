"""Cutting long audio into pieces: in the longest silences, or else where it is quietest."""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise

import numpy as np

from ..data.audio import Seconds
from .vad import FRAME, RATE, Activity

MAX_SECONDS: Seconds = 28.0  # Whisper's window is 30
LEAST_SECONDS: Seconds = 2.0
PAUSE: Seconds = 1.0  # a silence that is always cut out
MARGIN: Seconds = 0.2  # kept of the silence before and after a piece
QUIET = 5  # frames over which the power is averaged to find a quiet place

Span = tuple[int, int]  # (first frame, frame behind the last)


def cut(activity: Activity, max_seconds: Seconds = MAX_SECONDS) -> list[tuple[Seconds, Seconds]]:
    """Return the pieces of audio in which someone speaks, as (start, end), in order.

    Speech is joined over the shortest silences first, as long as the whole fits, so that the cuts
    remain in the longest silences. Where someone speaks for too long without a pause, the cut is
    at the quietest place of the second half of what fits. Audio without speech has no pieces.

    Args:
        max_seconds: of a piece, its margins included; at least `LEAST_SECONDS`.
    """
    longest = int((max_seconds - 2 * MARGIN) * RATE) // FRAME
    regions = [
        one for region in activity.regions() for one in part(region, activity.power, longest)
    ]
    if not regions:
        return []
    spans = widen(join(regions, longest), len(activity.power))
    end = activity.samples / RATE
    return [(start * FRAME / RATE, min(stop * FRAME / RATE, end)) for start, stop in spans]


def part(region: Span, power: np.ndarray, longest: int) -> list[Span]:
    """Cut a region of speech at quiet places, into parts of a quarter to all of `longest` frames.

    A region that fits is left as it is.
    """
    start, end = region
    parts = []
    while end - start > longest:
        first, last = start + longest // 2, min(start + longest, end - longest // 4)
        around = power[first - QUIET // 2 : last + QUIET // 2]
        smooth = np.convolve(around, np.ones(QUIET) / QUIET, mode="valid")
        at = first + int(np.argmin(smooth))
        parts.append((start, at))
        start = at
    return [*parts, (start, end)]


def join(regions: list[Span], longest: int) -> list[Span]:
    """Join neighbours over the shortest silences first, where the whole is at most `longest`."""
    silences = [after[0] - before[1] for before, after in pairwise(regions)]
    cuts = [-1, *range(len(silences)), len(silences)]  # behind which regions; the ends stay
    for index in sorted(range(len(silences)), key=silences.__getitem__):
        if silences[index] * FRAME >= PAUSE * RATE:
            break
        at = bisect_left(cuts, index)
        if regions[cuts[at + 1]][1] - regions[cuts[at - 1] + 1][0] <= longest:
            del cuts[at]
    return [(regions[before + 1][0], regions[last][1]) for before, last in pairwise(cuts)]


def widen(spans: list[Span], frames: int) -> list[Span]:
    """Give each span a margin of the silence around it, at most half of what parts two spans."""
    margin = int(MARGIN * RATE) // FRAME
    middles = [(before[1] + after[0]) // 2 for before, after in pairwise(spans)]
    limits = pairwise([0, *middles, frames])
    return [
        (max(start - margin, first), min(end + margin, last))
        for (start, end), (first, last) in zip(spans, limits, strict=True)
    ]
