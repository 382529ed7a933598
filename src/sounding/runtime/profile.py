"""What a model takes on this device, by length of the input and kept layers: `calibrate`.

With such a profile a budget may be a time: "40ms" for an input, or "rtf:0.1", a tenth of the time
that the input lasts.
"""

from __future__ import annotations

import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import onnxruntime
from pydantic import Field

from ..budget import Budget
from ..data.audio import MIN_SECONDS, Seconds
from ..errors import UsageError
from ..files import write_sealed_json
from ..machine import processor
from ..typed import check, read_json
from .metadata import Layers, Length, Metadata, ModelError

FORMAT = 1
LENGTHS: tuple[Seconds, ...] = (0.5, 1, 2, 4, 8, 16)
ROUNDS = 30
WARM_UP = 3
PAUSE = 0.02  # seconds before an input, as on a device: at once after another it is faster
SURE = 95  # percentile of the time that a budget is held against

Milliseconds = Annotated[float, Field(gt=0, le=1e9)]
Front = Annotated[float, Field(ge=0, le=1e9)]  # milliseconds of the features


class BudgetWarning(UserWarning):
    """No number of layers is cheap enough for a budget; the fewest run."""


@dataclass(frozen=True)
class Table:
    """Milliseconds from the samples to the answer, on some threads.

    Shape:
        seconds: [lengths], rising.
        median, high: [lengths, layers]: of 1, 2, ... kept layers; `high` is the 95th percentile.
        features: [lengths], the part of it that the features take.
    """

    seconds: Annotated[list[Length], Field(min_length=1)]
    median: list[list[Milliseconds]]
    high: list[list[Milliseconds]]
    features: list[Front]


@dataclass(frozen=True)
class Profile:
    """What one model takes on one device.

    Attributes:
        device: that it was measured on.
        model: sha256 of the model.
        layers: L.
        tables: by number of threads.
    """

    device: dict[str, Any]
    model: str
    layers: Layers
    tables: Annotated[dict[int, Table], Field(min_length=1)]

    def __post_init__(self) -> None:
        for table in self.tables.values():
            size = len(table.seconds)
            if table.seconds != sorted(set(table.seconds)) or len(table.features) != size:
                raise ValueError("lengths that do not rise")
            rows = [len(row) for times in (table.median, table.high) for row in times]
            if rows != 2 * size * [self.layers] or len(table.median) != size:
                raise ValueError("times that do not fit the lengths and layers")
            if (np.array(table.high) < np.array(table.median)).any():
                raise ValueError("times of which most are above their 95th percentile")

    def expected(self, seconds: Seconds, k: int, threads: int, *, sure: bool = False) -> float:
        """Return the milliseconds for an input of that length with k layers.

        Args:
            sure: the 95th percentile in place of the median.
        """
        table = self.tables[threads]
        values = np.array(table.high if sure else table.median)[:, k - 1]
        return float(between(seconds, np.array(table.seconds), values))

    def save(self, path: Path | str) -> None:
        """Write the profile as sealed JSON, all or nothing."""
        write_sealed_json(path, {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: Path | str) -> Profile:
        """Read what `save` wrote.

        Raises:
            ModelError: a missing, damaged or foreign file.
        """
        says: Any = {
            "error": ModelError,
            "what": "is no profile of `sounding calibrate`",
            "advice": "calibrate again",
        }
        values = read_json(path, dict[str, Any], **says)
        made_in = values.pop("format", None)
        if made_in != FORMAT:
            raise ModelError(f"{path} {says['what']} of this version: {says['advice']}")
        return check(values, cls, path, **says)

    def check(self, model: str, threads: int) -> None:
        """Refuse a profile of another model or device, or without these threads.

        Raises:
            ModelError: the text says what differs.
        """
        if self.model != model:
            raise ModelError("the profile is of another model: `sounding calibrate` this one")
        here = device()
        other = [f"{n} {self.device.get(n)}" for n in here if self.device.get(n) != here[n]]
        if other:
            raise ModelError(
                f"the profile is of another device ({', '.join(other)}): `sounding calibrate` here"
            )
        if threads not in self.tables:
            known = ", ".join(map(str, sorted(self.tables)))
            raise ModelError(
                f"the profile has times for {known} threads, not for {threads}: load the model "
                "with that many threads, or `sounding calibrate` with --threads"
            )


def between(at: float, places: np.ndarray, values: np.ndarray) -> float:
    """Interpolate by a line between two places; beyond all of them, by that of the nearest two."""
    if len(places) == 1:
        return float(values[0] * at / places[0])
    index = int(np.clip(np.searchsorted(places, at), 1, len(places) - 1))
    low, high = places[index - 1], places[index]
    share = (at - low) / (high - low)
    return float(max(values.min() * 0.1, (1 - share) * values[index - 1] + share * values[index]))


def device() -> dict[str, Any]:
    """Return what times depend on: processor, cores, system, ONNX Runtime."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": platform.machine(),
        "onnxruntime": onnxruntime.__version__,
    }


def measure(
    predict: Callable[[np.ndarray, int], Any],
    features: Callable[[np.ndarray], np.ndarray],
    meta: Metadata,
    lengths: Sequence[Seconds] = LENGTHS,
    rounds: int = ROUNDS,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> Table:
    """Time a model at several lengths and every number of layers, in random order each round.

    Args:
        predict: called with (features, k).
        features: of samples.
        show: called with (rounds done, all rounds).

    Raises:
        UsageError: no length, one that is too short for any model, or no round.
    """
    longest = min(meta.limit_seconds, meta.max_seconds or math.inf)
    if not lengths or not all(length >= MIN_SECONDS for length in lengths) or rounds < 1:
        raise UsageError(f"give lengths of at least {MIN_SECONDS} s, and at least one round")
    known = sorted({min(length, longest) for length in lengths})
    rng = np.random.default_rng(0)
    clips = [rng.normal(0, 0.1, round(s * meta.rate)).astype(np.float32) for s in known]
    times = np.zeros((rounds, len(known), meta.layers))
    front = np.zeros((rounds, len(known), meta.layers))
    cells = [(i, k) for i in range(len(known)) for k in range(1, meta.layers + 1)]
    for turn in range(-WARM_UP, rounds):
        for index in rng.permutation(len(cells)):
            i, k = cells[index]
            time.sleep(PAUSE)
            start = perf_counter()
            made = features(clips[i])
            middle = perf_counter()
            predict(made, k)
            end = perf_counter()
            if turn >= 0:
                times[turn, i, k - 1] = 1000 * (end - start)
                front[turn, i, k - 1] = 1000 * (middle - start)
        show(turn + 1 + WARM_UP, rounds + WARM_UP)
    return Table(
        seconds=[float(s) for s in known],
        median=np.median(times, 0).tolist(),
        high=np.percentile(times, SURE, axis=0).tolist(),
        features=np.median(front, (0, 2)).tolist(),
    )


def fitting_layers(
    limit: Budget, cost: Callable[[int], float], seconds: Seconds, layers: int
) -> int:
    """Return how many layers a limit allows, one at least; warn where that does not fit.

    Args:
        limit: a time or a number of operations.
        cost: of so many layers, in milliseconds or in billions of multiply-accumulates.
        seconds: length of the input.
        layers: L.
    """
    fitting, allowed = limit.fitting_layers(cost, seconds, layers=layers)
    if fitting:
        return fitting
    unit = "GMAC" if limit.kind == "gmac" else "ms"
    warnings.warn(
        f"one layer takes {cost(1):.3g} {unit} for {seconds:.1f} s, above the budget of "
        f"{allowed:.3g} {unit}: it runs all the same, since nothing is cheaper",
        BudgetWarning,
        stacklevel=2,
    )
    return 1
