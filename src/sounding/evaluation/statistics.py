"""Intervals for the numbers that are reported."""

from __future__ import annotations

import math

Z95 = 1.959964  # of the normal distribution, two-sided 95 %


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share seen in `count` independent trials (Wilson, 1927).

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
