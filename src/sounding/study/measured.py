"""What was measured of one run, read and checked: a `measured.json`.

A row is named by its rule ("exact", "shuffled") and its budget; rows of many runs are compared by
their arm, that is variant and rule (see `study`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import FailFast, Field

from ..errors import UsageError
from ..runs.validations import Validation, waited
from ..typed import check, read_json

FORMAT = 2  # and 1, which has "correct" as texts of digits in place of "errors"
FILE = "measured.json"
HEADER = ("config", "seconds", "versions", "machine", "steps", "commit", "labels", "search")
MEGABYTES = 1000  # of a file at most: every clip under every rule

Json = dict[str, Any]
Floats = NDArray[np.float64]
WHAT = f"is no {FILE}"


@dataclass(frozen=True, eq=False)
class Row:
    """One rule of a run at one budget, on one set of clips.

    Attributes:
        budget: kept layers, or their mean that was asked for.
        correct: [clips] share of the draws in which a clip was right; for texts the words that
            were right, over the mean number of words a clip, so that the mean over the clips is
            1 - WER; NaN: not measured.
        masks: [measured clips, layers] bool, of the first draw.
        macs: mean per clip, everything included.
        spread: standard deviation of the accuracy over the draws of masks; None for one draw.
    """

    rule: str
    budget: float
    correct: Floats
    masks: NDArray[np.bool_]
    macs: float
    spread: float | None = None

    @property
    def accuracy(self) -> float:
        """Accuracy from 0 to 1, over clips and draws."""
        return float(np.nanmean(self.correct))

    @property
    def executed_layers(self) -> float:
        """Mean number of layers that ran, per clip."""
        return float(self.masks.sum(1).mean())


@dataclass(frozen=True, eq=False)
class ClipSet:
    """Clips and the rows measured on them.

    Attributes:
        groups: "label" and "speaker" of each clip; empty texts where nobody knows.
        seconds: [clips].
        weight: [clips] words to get right; 1 where the answer is a class.
        rows: by rule and budget.
    """

    files: list[str]
    groups: dict[str, list[str]]
    seconds: Floats
    weight: Floats
    rows: dict[tuple[str, float], Row]


@dataclass(frozen=True)
class Trial:
    """Settings that were tried, and the best measurement of validation clips with them.

    Attributes:
        seconds: of the training, since it last began to go on.
    """

    settings: dict[str, Any]
    step: int
    error: float
    loss: float
    seconds: float


@dataclass(frozen=True)
class Search:
    """All that was tried for a variant, and the place of what was chosen."""

    trials: list[Trial]
    chosen: int


@dataclass(frozen=True, eq=False)
class Measured:
    """One trained run and all that was measured of it.

    Attributes:
        variant: the name in the comparison: the method's, or "input-NAME" for an ablation.
        macs: of a median clip at full depth.
        metric: "accuracy", or "wer" for texts.
        validations: how good it was on validation clips in the middle of its training.
        info: where the numbers come from: config, steps, seconds, versions, commit, ...
    """

    path: Path
    method: str
    variant: str
    seed: int
    layers: int
    data: str
    digest: str
    macs: float
    metric: str
    sets: dict[str, ClipSet]
    validations: list[Validation]
    info: dict[str, Any]

    @property
    def stopped_rising(self) -> bool | None:
        """Whether its patience was used up; None for a training that had none."""
        patience = self.info["config"].get("patience", 0)
        return waited(self.validations) >= patience if patience else None

    @classmethod
    def from_json(cls, path: Path | str) -> Measured:
        """Read one file.

        Raises:
            ValueError: not such a file, or one that contradicts itself; the text says where.
        """
        return cls.from_values(read_values(path), path)

    @classmethod
    def from_values(cls, values: Json, path: Path | str) -> Measured:
        """Check the values of one file, which came from `path`.

        Raises:
            ValueError: as `from_json`.
        """
        made_in = values.get("format")
        if isinstance(made_in, int) and made_in not in (1, FORMAT):
            raise UsageError(f"{path} {WHAT}: format {made_in}, this version reads 1 and {FORMAT}")
        read: _File = check(values, _File, path, what=WHAT)
        try:
            sets = {name: _clip_set(s, read.layers, name) for name, s in read.sets.items()}
        except (ValueError, MemoryError) as error:
            raise UsageError(f"{path} {WHAT}: {error}") from None
        return cls(
            path=Path(path),
            method=read.method,
            variant=read.variant,
            seed=read.seed,
            layers=read.layers,
            data=read.data.name,
            digest=read.data.digest,
            macs=read.macs.full,
            metric=read.metric,
            sets=sets,
            validations=[Validation(*one) for one in read.validations],
            info={key: getattr(read, key) for key in HEADER},
        )


def read_values(path: Path | str) -> Json:
    """Read the names and values of one file; `Measured.from_values` checks them.

    Raises:
        ValueError: no such file, or no JSON.
    """
    values: Json = read_json(path, dict[str, Any], what=WHAT, megabytes=MEGABYTES)
    return values


# What a file holds; an unknown name would be a misspelled one, and another answer.
ABSENT: Any = None


@dataclass(frozen=True)
class _Clips:
    file: Annotated[list[str], Field(min_length=1), FailFast()]
    label: Annotated[list[str | None], FailFast()]
    speaker: Annotated[list[str | None], FailFast()]
    seconds: Annotated[list[float], FailFast()]
    weight: Annotated[list[float], FailFast()] = ABSENT


@dataclass(frozen=True)
class _Rule:
    rule: str
    budget: Annotated[float, Field(gt=0)]
    macs: Annotated[float, Field(ge=0)]
    masks: str | list[str]
    errors: Annotated[list[Annotated[list[float], FailFast()]], FailFast()] = ABSENT
    correct: list[str] = ABSENT
    clips: Annotated[list[int], FailFast()] = ABSENT


@dataclass(frozen=True)
class _Set:
    clips: _Clips
    rows: list[_Rule]


@dataclass(frozen=True)
class _Data:
    name: str
    digest: str


@dataclass(frozen=True)
class _Macs:
    full: Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class _File:
    format: int
    method: str
    variant: str
    seed: int
    layers: Annotated[int, Field(ge=1, le=1000)]
    data: _Data
    macs: _Macs
    sets: dict[str, _Set]
    config: dict[str, Any]
    seconds: dict[str, float | None]
    versions: dict[str, Any]
    machine: dict[str, Any]
    steps: int | None
    commit: str | None
    labels: list[str]
    metric: str = "accuracy"
    precision: str | None = None
    checked: dict[str, Any] | None = None
    validations: list[tuple[int, float, float]] = field(default_factory=list)
    search: Search | None = None


def _clip_set(read: _Set, layers: int, name: str) -> ClipSet:
    columns = read.clips
    clips = len(columns.file)
    if any(len(c) != clips for c in (columns.label, columns.speaker, columns.seconds)):
        raise UsageError(f"set {name!r}: columns of different lengths")
    weight = np.array([1] * clips if columns.weight is None else columns.weight, dtype=float)
    if len(weight) != clips or weight.min() < 0 or not weight.any():
        raise UsageError(f"set {name!r}: weights that do not fit the clips")
    rows: dict[tuple[str, float], Row] = {}
    for entry in read.rows:
        row = _row(entry, weight, layers, name)
        if (row.rule, row.budget) in rows:
            raise UsageError(f"set {name!r}: two rows {row.rule} {row.budget:g}")
        rows[row.rule, row.budget] = row
    named = {"label": columns.label, "speaker": columns.speaker}
    groups = {c: ["" if x is None else x for x in column] for c, column in named.items()}
    return ClipSet(columns.file, groups, np.array(columns.seconds, dtype=float), weight, rows)


def _row(read: _Rule, weight: Floats, layers: int, name: str) -> Row:
    clips = len(weight)
    where = f"set {name!r}, row {read.rule} {read.budget:g}"
    measured = np.array(range(clips) if read.clips is None else read.clips, dtype=int)
    if not len(measured) or measured.min() < 0 or measured.max() >= clips:
        raise UsageError(f"{where}: clips that are not in the set")
    draws = _right(read, weight[measured], where)
    correct = np.full(clips, np.nan)
    correct[measured] = draws.mean(0)
    one = isinstance(read.masks, str)
    masks = _digits([read.masks] if isinstance(read.masks, str) else read.masks, layers, where)
    if not one and len(masks) != len(measured):
        raise UsageError(f"{where}: {len(masks)} masks for {len(measured)} clips")
    masks = np.broadcast_to(masks, (len(measured), layers))
    spread = float(draws.mean(1).std(ddof=1)) if len(draws) > 1 else None
    return Row(read.rule, read.budget, correct, masks, read.macs, spread)


def _right(read: _Rule, weight: Floats, where: str) -> Floats:
    """Return what `Row.correct` says, for each draw.

    Shape: weight [measured] -> [draws, measured].
    """
    if read.correct is not None:  # format 1
        return _digits(read.correct, len(weight), where).astype(float)
    errors = read.errors or []
    if not errors or any(len(draw) != len(weight) or min(draw) < 0 for draw in errors):
        raise UsageError(f"{where}: expected the errors of {len(weight)} clips in each draw")
    if not weight.any():
        raise UsageError(f"{where}: clips without a word to get right")
    return (weight - np.array(errors)) / weight.mean()


def _digits(texts: list[str], length: int, where: str) -> NDArray[np.bool_]:
    """Return texts of 0 and 1 as an array. Shape: -> [texts, length] bool."""
    if not texts or any(len(text) != length or set(text) - {"0", "1"} for text in texts):
        raise UsageError(f"{where}: expected texts of {length} digits 0 and 1")
    return np.array([list(text) for text in texts]) == "1"
