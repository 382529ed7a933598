"""Audio as it comes: a choice of layers and an answer for each window of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.audio import AudioError, Seconds
from ..errors import UsageError
from .answer import Answer
from .inputs import Samples, one_channel
from .model import Model

PATIENCE = 2  # windows in a row that it takes to change the answer


class LostAudioWarning(UserWarning):
    """A part of a stream has no answer, since it came faster than it was taken."""


@dataclass(frozen=True)
class Heard:
    """What a window says.

    Attributes:
        start, end: of the window, in seconds since the stream began.
        answer: to the window by itself.
        label: what the stream says now, which a single window does not change.
        changed: whether that is new.
    """

    start: Seconds
    end: Seconds
    answer: Answer
    label: str
    changed: bool


class Stream:
    """Takes samples in pieces of any size, and answers to a window every hop.

    A window is a clip by itself: its answer does not depend on how the samples were cut. The label
    of the stream changes once `patience` windows in a row have the same other one.

    Args:
        answer: to samples [samples]: `Model.run` with a budget, or `Governed.run`, whose number of
            layers does not swing from window to window.
        rate: of the samples, in Hz.
        window, hop: in seconds.

    Raises:
        UsageError: a window or a hop that is not above 0, a hop above the window, or no patience.
    """

    def __init__(
        self,
        answer: Callable[[np.ndarray], Answer],
        rate: int,
        *,
        window: Seconds = 1.0,
        hop: Seconds = 0.5,
        patience: int = PATIENCE,
    ) -> None:
        if not 0 < hop <= window < math.inf or patience < 1:
            raise UsageError(
                f"a window of {window} s, a hop of {hop} s, patience {patience}: the hop is above "
                "0 and at most the window, and the patience at least 1"
            )
        self.answer, self.rate, self.patience = answer, rate, patience
        self.window, self.hop = round(window * rate), max(1, round(hop * rate))
        self.label = ""
        self._held, self._first = np.zeros(0, np.float32), 0  # samples, and where they begin
        self._other, self._times = "", 0

    def feed(self, samples: Samples) -> Iterator[Heard]:
        """Yield what the windows say that these samples complete.

        Args:
            samples: as `inputs.one_channel` takes them. Shape: [samples].

        Raises:
            AudioError: several channels, another type, NaN or infinity; the samples are left out.
        """
        new = one_channel(samples)
        if new.ndim != 1:
            raise AudioError(f"samples of shape {new.shape}, expected one channel: average them")
        if not np.isfinite(new).all():
            raise AudioError("samples that are NaN or infinite: check what they come from")
        self._held = np.concatenate([self._held, new])
        while len(self._held) >= self.window:
            window, start = self._held[: self.window], self._first / self.rate
            # before the answer: a window to which there is none does not come again
            self._held, self._first = self._held[self.hop :], self._first + self.hop
            answer = self.answer(window)
            changed = self._decide(answer.label)
            yield Heard(start, start + self.window / self.rate, answer, self.label, changed)

    def _decide(self, label: str) -> bool:
        """Return whether the label of the stream changes with this one."""
        if label == self.label:
            self._times = 0
            return False
        self._times = self._times + 1 if label == self._other else 1
        self._other = label
        if self.label and self._times < self.patience:
            return False
        self.label, self._times = label, 0
        return True


def microphone(model: Model, block: Seconds = 0.1) -> Iterator[np.ndarray]:
    """Yield samples of the default microphone at the model's rate, [samples], without end.

    Raises:
        ModuleNotFoundError: sounddevice is not installed.
        OSError: there is no microphone that can be used, or no longer.

    Warns:
        LostAudioWarning: more was said than was taken, so that a part of it is missing.
    """
    try:
        import sounddevice
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "a microphone needs sounddevice: pip install 'sounding[microphone]'"
        ) from None
    size, rate = round(block * model.meta.rate), model.meta.rate
    try:
        recorder: Any = sounddevice.InputStream(samplerate=rate, channels=1, dtype="float32")
    except sounddevice.PortAudioError as error:
        raise OSError(f"no microphone can be used ({error}): connect one") from None
    with recorder:
        while True:
            try:
                samples, lost = recorder.read(size)
            except sounddevice.PortAudioError as error:
                raise OSError(f"the microphone is gone ({error}): connect it again") from None
            if lost:
                warnings.warn(
                    "audio of the microphone is lost, since the answers take longer than it: give "
                    "a smaller budget, or longer windows",
                    LostAudioWarning,
                    stacklevel=2,
                )
            yield samples[:, 0]
