"""Intervals for the numbers that are reported."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .data.folder import MIN_SPEAKERS
from .errors import UsageError

Z95 = 1.959964  # of the normal distribution, two-sided 95 %


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of `count` independent trials (Wilson, 1927).

    Unlike a bootstrap it keeps its width where every trial succeeded.

    >>> [round(x, 3) for x in wilson(1.0, 100)]
    [0.963, 1.0]
    """
    if count < 1:
        raise ValueError("an interval needs at least one trial")
    z = Z95**2 / count
    center = (share + z / 2) / (1 + z)
    spread = Z95 / (1 + z) * math.sqrt(share * (1 - share) / count + z / (4 * count))
    return max(0.0, center - spread), min(1.0, center + spread)


def average_precision(scores: NDArray[np.float64], wanted: NDArray[np.bool_]) -> float:
    """Return the mean average precision (mAP), as AudioSet has it.

    It is the mean over the classes of the area under precision and recall.

    Classes that no clip has do not count. Clips of one score stand at one place, the last of them,
    so that their order does not count.

    Shape: scores, wanted [clips, labels].
    """
    there = wanted.any(0)
    found = []
    for score, right in zip(-scores[:, there].T, wanted[:, there].T, strict=True):
        order = score.argsort(kind="stable")
        rank = np.searchsorted(score[order], score[order], side="right")
        hits = right[order]
        found.append((hits.cumsum()[rank - 1] / rank)[hits].mean())
    return float(np.mean(found))


class Interval(NamedTuple):
    """A mean and the ends of its interval."""

    mean: float
    low: float
    high: float


def speaker_groups(speakers: Sequence[str]) -> Sequence[str] | None:
    """Return the groups whose clips stay together when clips are drawn again.

    The groups are the speakers, where all are known and there are 10 or more: the errors of one are
    alike. None means each clip by itself.

    Args:
        speakers: of each clip; "" where nobody knows.
    """
    many = "" not in speakers and len(set(speakers)) >= MIN_SPEAKERS
    return speakers if many else None


def paired_bootstrap(
    differences: NDArray[np.float64],
    wholes: NDArray[np.float64] | None = None,
    *,
    groups: Sequence[object] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return the mean difference of two methods on the same clips, with its interval.

    It is the interval of a percentile bootstrap.

    The seeds are averaged, then the clips are drawn again with replacement, or their groups. So
    the interval says how far another sample of clips (of speakers, where these are the groups),
    for these very runs, might move the mean. It does not cover

    - what another training would give: report the spread over seeds beside it, and with 3 seeds
      say that it is 3;
    - new speakers where clips have no groups: they count as independent then, though those of one
      speaker are alike;
    - differences that were seen in no clip: two methods that answer alike give 0, 0, 0, however
      few the clips.

    Args:
        wholes: what the differences are of, such as words: the result is the sum of the ones over
            that of the others, in each resample too. None: 1 for each clip.
        groups: as `ratio_bootstrap`.
        level: that the interval is to have, such as 1 - 0.05 / n for each of n (Bonferroni).

    Shape: differences [seeds, clips] float, wholes [clips].

    Raises:
        ValueError: no seed, no clip, nothing to divide by, or a level not between 0 and 1.
    """
    if differences.ndim != 2 or not differences.size:
        raise ValueError(f"differences must be [seeds, clips], not {list(differences.shape)}")
    found = ratio_bootstrap(
        differences.mean(0),
        np.ones(differences.shape[1]) if wholes is None else wholes,
        groups=groups,
        resamples=resamples,
        seed=seed,
        level=level,
    )
    # rounded, so that thirds of three seeds that add up to zero are zero, and not minus zero
    return Interval(*(round(x, 12) + 0.0 for x in found))


def precision_interval(
    scores: NDArray[np.float64], wanted: NDArray[np.bool_], *, resamples: int = 200, seed: int = 0
) -> Interval:
    """Return `average_precision` with the 95 % interval of a bootstrap over the clips.

    Raises:
        ValueError: no clip has a label.
    """
    if not wanted.any():
        raise UsageError("an average precision needs a clip with a label")
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(len(scores), size=len(scores)) for _ in range(resamples)]
    values = [average_precision(scores[i], wanted[i]) for i in drawn if wanted[i].any()]
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(average_precision(scores, wanted), float(low), float(high))


def ratio_bootstrap(
    parts: NDArray[np.float64],
    wholes: NDArray[np.float64],
    *,
    groups: Sequence[object] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return the sum of `parts` over that of `wholes`, with its interval; a word error rate, say.

    Percentile bootstrap over the items, or over their groups (speakers), whose items stay
    together. With the differences of two methods' errors as `parts` it is the paired interval of
    the difference of their rates.

    Args:
        groups: which group each item belongs to; None for each by itself.

    Shape: parts [items], wholes [items].

    Raises:
        ValueError: nothing to divide by, lengths that differ, or a level not between 0 and 1.
    """
    parts, wholes = np.asarray(parts, dtype=float), np.asarray(wholes, dtype=float)
    if parts.shape != wholes.shape or parts.ndim != 1:
        raise ValueError(f"parts and wholes differ: {list(parts.shape)}, {list(wholes.shape)}")
    if groups is not None and len(groups) != len(parts):
        raise ValueError(f"{len(groups)} groups for {len(parts)} items: give one for each")
    if not wholes.sum() > 0 or wholes.min() < 0:
        raise ValueError("a rate needs something to divide by: the wholes add up to nothing")
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not between 0 and 1")
    if groups is not None:
        _, index = np.unique(np.array([str(group) for group in groups]), return_inverse=True)
        parts = np.bincount(index, parts).astype(np.float64)
        wholes = np.bincount(index, wholes).astype(np.float64)
    drawn = _counts(len(parts), resamples, seed)
    whole = drawn @ wholes
    rates = (drawn @ parts)[whole > 0] / whole[whole > 0]
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(parts.sum() / wholes.sum()), float(low), float(high))


@lru_cache(maxsize=2)
def _counts(clips: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """Count how often each clip is drawn in each resample. Shape: -> [resamples, clips] float."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(clips, np.full(clips, 1 / clips), resamples).astype(float)
