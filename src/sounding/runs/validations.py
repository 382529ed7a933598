"""What validation clips said in the course of a training, and the file of it in a run."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..files import write_text

VALIDATIONS = "validation.csv"  # of a run


class Validation(NamedTuple):
    """One measurement: the mean over the depths that a method is measured at.

    Attributes:
        step: steps that were taken before.
        error: errors as a share of what could be wrong, as `Task.errors` and `Task.weight` say. A
            decoder is given the right tokens before each.
        loss: of the task, the mean over the clips.
    """

    step: int
    error: float
    loss: float

    @property
    def rank(self) -> tuple[float, float]:
        """What is lower for a better one: the errors, and of as many the loss."""
        return self.error, self.loss


def best_of(measured: Sequence[Validation]) -> Validation:
    """Return the best of some measurements, the first of equals."""
    return min(measured, key=lambda one: one.rank)


def waited(measured: Sequence[Validation]) -> int:
    """Return how many measurements there were since the best one."""
    return len(measured) - 1 - measured.index(best_of(measured)) if measured else 0


def write_validations(directory: Path, measured: Sequence[Validation]) -> None:
    """Write all measurements of a training to its run."""
    lines = [",".join(map(repr, one)) for one in measured]
    write_text(directory / VALIDATIONS, "\n".join([",".join(Validation._fields), *lines]) + "\n")


def read_validations(directory: Path) -> list[Validation]:
    """Read all measurements of a finished training; none where it measured nothing."""
    file = directory / VALIDATIONS
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as lines:
        return [
            Validation(int(one["step"]), float(one["error"]), float(one["loss"]))
            for one in csv.DictReader(lines)
        ]
