"""Keeps the latency of each input below a target while the load of the machine changes.

A profile of the idle device says how long an input of some length takes with k layers. How much
longer it really takes is the load, measured on the inputs themselves; the most layers that the
target allows under that load are the budget of the next one.
"""

from __future__ import annotations

import csv
import io
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.audio import AudioError, Seconds
from ..errors import UsageError
from ..files import atomic_path, write_text
from .answer import Answer
from .inputs import file_name
from .profile import BudgetWarning
from .signals import Signals, read_signals
from .watch import watch as watch  # for the inputs of a governed model

if TYPE_CHECKING:
    from .model import Audio, Model

FAST, SLOW = 0.5, 0.1  # how far the load and its spread follow a measurement
DECAY = 0.05  # how far a held bound goes back at each input, once the load is lower
SPREADS = 3.0  # mean deviations above the load that are to stay below the target
LIGHTEST, HEAVIEST = 0.25, 20.0  # loads beyond these are not believed
KEPT = 100_000  # steps in memory
RAISE = 0.95  # share of the target that one more layer has to fit in
OVER = 0.03  # share of the inputs that may be over the target in the long run
STEP, MOST = 0.1, 0.7  # of the margin that holds it there, and its limit
SIGNALS_SECONDS = 1.0  # between two looks at the device: a look takes time too


@dataclass(frozen=True)
class Step:
    """What the governor saw and chose for one input.

    Attributes:
        at: when, in seconds since the governor began.
        seconds: length of the input.
        k: layers that it ran.
        milliseconds: that it took.
        load: those over what the profile says of an idle device.
        bound: the load that the next budget allows for.
        busy: share of the machine's processors in use, by all programs; None where unknown.
    """

    at: float
    seconds: Seconds
    k: int
    milliseconds: float
    target: float
    load: float
    bound: float
    busy: float | None


class Governor:
    """Chooses a budget for each input, and learns from the time that it took.

    The bound goes up at once when two of the last three inputs were slower (one alone may be an
    accident), and comes down slowly, so that it does not swing with the load of single inputs.
    It stays between limits, so that a target which not even the floor can keep does not wind it
    up: once the load is gone it is back as fast as ever. A layer more is only added where it fits
    with something to spare. What the load does not foretell is learned from the inputs that came
    too late: each widens a margin, each other one narrows it a little, so that in the long run
    `OVER` of them are late (a quantile found by stochastic approximation).

    Args:
        target: milliseconds for an input.
        expected: milliseconds on the idle device, called with (seconds, k).
        layers: L.
        floor: layers that an input gets at least, even over the target.
        ceiling: called before each input, the layers it gets at most, as for a low battery.

    Raises:
        UsageError: a target that is not above 0, or a floor that is not from 1 to L.
    """

    def __init__(
        self,
        target: float,
        expected: Callable[[float, int], float],
        layers: int,
        *,
        floor: int = 1,
        ceiling: Callable[[], int] | None = None,
    ) -> None:
        if not target > 0 or not math.isfinite(target):
            raise UsageError(f"a target of {target} ms: give one above 0")
        if not 1 <= floor <= layers:
            raise UsageError(f"a floor of {floor} layers: give one from 1 to {layers}")
        self.target, self.expected, self.layers, self.floor = target, expected, layers, floor
        self.ceiling = ceiling or (lambda: layers)
        self.load, self.spread, self.held = 0.0, 0.05, 0.0  # logarithms
        self.margin = 0.0  # a logarithm too
        self.last = layers
        self.began = time.monotonic()
        self._recent: deque[float] = deque(maxlen=3)

    def budget(self, seconds: float) -> int:
        """Return the layers for an input of that length: as many as fit, the floor at least."""
        most = max(self.floor, min(self.layers, self.ceiling()))
        bound = math.exp(self.held + self.margin)
        k = self.floor
        for more in range(self.floor + 1, most + 1):
            room = self.target if more <= self.last else RAISE * self.target
            if bound * self.expected(seconds, more) > room:
                break
            k = more
        self.last = k
        return k

    def fits(self, seconds: float) -> bool:
        """Return whether the floor keeps the target under the load of now."""
        return math.exp(self.held) * self.expected(seconds, self.floor) <= self.target

    def observe(
        self, seconds: float, k: int, milliseconds: float, busy: float | None = None
    ) -> Step:
        """Learn from an input of `seconds` that ran `k` layers in `milliseconds`."""
        ratio = milliseconds / self.expected(seconds, k)
        seen = math.log(min(HEAVIEST, max(LIGHTEST, ratio)))
        self._recent.append(seen)
        middle = sorted(self._recent)[len(self._recent) // 2]
        self.spread += SLOW * (min(abs(middle - self.load), 0.5) - self.spread)
        self.load += FAST * (middle - self.load)
        bound = min(math.log(HEAVIEST), self.load + SPREADS * self.spread)
        self.held = bound if bound > self.held else self.held + DECAY * (bound - self.held)
        late = milliseconds > self.target
        if not late or k > self.floor:  # at the floor a margin gains nothing
            self.margin += STEP * (late - OVER)
            self.margin = min(MOST, max(0.0, self.margin))
        at, bound = time.monotonic() - self.began, math.exp(self.held + self.margin)
        return Step(at, seconds, k, milliseconds, self.target, ratio, bound, busy)


class Governed:
    """An exported model whose every answer is to come within a target.

    Args:
        model: with a profile of this device (`sounding calibrate`).
        target: milliseconds from the samples to the answer.
        floor: layers that an input gets at least, even over the target.
        signals: of the device: half of the layers at most at a low battery or when it is hot.

    Attributes:
        steps: what was chosen and seen so far, the last `KEPT` of it.

    Raises:
        ModelError: no profile, or one of another model or device.
        UsageError: a target or a floor that is not allowed.
    """

    def __init__(
        self,
        model: Model,
        target: float,
        *,
        floor: int = 1,
        signals: Callable[[], Signals] = read_signals,
    ) -> None:
        profile, layers = model.checked_profile(), model.meta.layers
        self.model, self.signals, self.now = model, signals, Signals()
        self._looked = -math.inf  # when, in seconds
        self.governor = Governor(
            target,
            lambda seconds, k: profile.expected(seconds, k, model.threads),
            layers,
            floor=floor,
            ceiling=lambda: self.now.ceiling(layers),
        )
        self.steps: deque[Step] = deque(maxlen=KEPT)
        self._fitted = True

    def run(self, audio: Audio, *, max_seconds: Seconds | None = None) -> Answer:
        """Answer to a clip, as `Model.run` does, with the layers that the target allows now."""
        name, samples = file_name(audio), self.model.samples(audio, max_seconds)
        seconds = len(samples) / self.model.meta.rate
        start = time.perf_counter()
        if start - self._looked >= SIGNALS_SECONDS:
            self.now, self._looked = self.signals(), start
        k = self.governor.budget(seconds)
        self._say(seconds)
        try:
            (answer,) = self.model.run_many([samples], k)
        except AudioError as error:  # in which the samples have no name
            raise AudioError(str(error).replace("the audio", name or "the audio", 1)) from None
        taken = 1000 * (time.perf_counter() - start)
        self.steps.append(self.governor.observe(seconds, k, taken, self.now.busy))
        return replace(answer, file=name)

    def _say(self, seconds: Seconds) -> None:
        """Warn where the target begins to be out of reach."""
        fits = self.governor.fits(seconds)
        if self._fitted and not fits:
            warnings.warn(
                f"{self.governor.target:g} ms cannot be kept now for {seconds:.1f} s of audio: "
                f"{self.governor.floor} layers run all the same",
                BudgetWarning,
                stacklevel=3,
            )
        self._fitted = fits


def write_log(steps: Sequence[Step], path: Path | str) -> None:
    """Write the steps as CSV, a line an input."""
    file = io.StringIO()
    names = [field.name for field in fields(Step)]
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(step) for step in steps)
    write_text(path, file.getvalue())


def plot_log(steps: Sequence[Step], path: Path | str) -> None:
    """Plot target, latency, layers and load over time.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        UsageError: no step, or a name with the ending of no kind of picture.
    """
    if not steps:
        raise UsageError("there is nothing to plot: no input came")
    from matplotlib.figure import Figure

    figure = Figure((8, 6), layout="constrained")
    kind = Path(path).suffix.lstrip(".").lower() or "png"
    if kind not in (known := figure.canvas.get_supported_filetypes()):
        raise UsageError(f"{path} would be a picture of unknown kind: use {', '.join(known)}")
    axes: Any = figure.subplots(3, 1, sharex=True)
    at = [step.at for step in steps]
    axes[0].plot(at, [step.milliseconds for step in steps], ".", ms=3, label="latency")
    axes[0].plot(at, [step.target for step in steps], color="#c2255c", label="target")
    axes[0].set_ylabel("ms")
    axes[0].legend(frameon=False)
    axes[1].step(at, [step.k for step in steps], where="post")
    axes[1].set_ylabel("kept layers")
    axes[2].plot(at, [step.load for step in steps], ".", ms=3, label="time over that of idle")
    axes[2].plot(at, [step.bound for step in steps], label="allowed for")
    axes[2].set_ylabel("load")
    axes[2].set_xlabel("seconds")
    axes[2].legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=120)
