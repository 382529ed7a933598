"""A study: the `measured.json` of many runs, read, checked, and put side by side.

A row is named by its arm, that is variant and rule ("input", "shuffled"), and its budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import FailFast, Field

from ..evaluation.statistics import Interval, paired_bootstrap, speaker_groups, wilson
from ..typed import check, read_json

FORMAT = 2  # and 1, which has "correct" as texts of digits in place of "errors"
FILE = "measured.json"
METHODS = ("full", "random", "early-exit", "static", "i3d", "dld", "input")
HEADER = ("config", "seconds", "versions", "machine", "steps", "commit", "labels")
MEGABYTES = 1000  # of a file at most: every clip under every rule

Arm = tuple[str, str]  # variant, rule
Point = tuple[Arm, float]  # and a budget
Floats = NDArray[np.float64]


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
        """From 0 to 1, over clips and draws."""
        return float(np.nanmean(self.correct))

    @property
    def executed_layers(self) -> float:
        """Mean number per clip."""
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


@dataclass(frozen=True, eq=False)
class Measured:
    """One trained run and all that was measured of it.

    Attributes:
        variant: the name in the comparison: the method's, or "input-NAME" for an ablation.
        macs: of a median clip at full depth.
        metric: "accuracy", or "wer" for texts.
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
    info: dict[str, Any]

    @classmethod
    def from_json(cls, path: Path | str) -> Measured:
        """Read one file.

        Raises:
            ValueError: not such a file, or one that contradicts itself; the text says where.
        """
        path = Path(path)
        what = f"is no {FILE}"
        values: dict[str, Any] = read_json(path, dict[str, Any], what=what, megabytes=MEGABYTES)
        made_in = values.get("format")
        if isinstance(made_in, int) and made_in not in (1, FORMAT):
            raise ValueError(f"{path} {what}: format {made_in}, this version reads 1 and {FORMAT}")
        read = check(values, _File, path, what=what)
        try:
            sets = {name: _clip_set(s, read.layers, name) for name, s in read.sets.items()}
        except (ValueError, MemoryError) as error:
            raise ValueError(f"{path} {what}: {error}") from None
        return cls(
            path=path,
            method=read.method,
            variant=read.variant,
            seed=read.seed,
            layers=read.layers,
            data=read.data.name,
            digest=read.data.digest,
            macs=read.macs.full,
            metric=read.metric,
            sets=sets,
            info={key: getattr(read, key) for key in HEADER},
        )


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
    method: Literal["full", "random", "early-exit", "static", "i3d", "dld", "input"]
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


def _clip_set(read: _Set, layers: int, name: str) -> ClipSet:
    columns = read.clips
    clips = len(columns.file)
    if any(len(c) != clips for c in (columns.label, columns.speaker, columns.seconds)):
        raise ValueError(f"set {name!r}: columns of different lengths")
    weight = np.array([1] * clips if columns.weight is None else columns.weight, dtype=float)
    if len(weight) != clips or weight.min() < 0 or not weight.any():
        raise ValueError(f"set {name!r}: weights that do not fit the clips")
    rows: dict[tuple[str, float], Row] = {}
    for entry in read.rows:
        row = _row(entry, weight, layers, name)
        if (row.rule, row.budget) in rows:
            raise ValueError(f"set {name!r}: two rows {row.rule} {row.budget:g}")
        rows[row.rule, row.budget] = row
    named = {"label": columns.label, "speaker": columns.speaker}
    groups = {c: ["" if x is None else x for x in column] for c, column in named.items()}
    return ClipSet(columns.file, groups, np.array(columns.seconds, dtype=float), weight, rows)


def _row(read: _Rule, weight: Floats, layers: int, name: str) -> Row:
    clips = len(weight)
    where = f"set {name!r}, row {read.rule} {read.budget:g}"
    measured = np.array(range(clips) if read.clips is None else read.clips, dtype=int)
    if not len(measured) or measured.min() < 0 or measured.max() >= clips:
        raise ValueError(f"{where}: clips that are not in the set")
    draws = _right(read, weight[measured], where)
    correct = np.full(clips, np.nan)
    correct[measured] = draws.mean(0)
    one = isinstance(read.masks, str)
    masks = _digits([read.masks] if isinstance(read.masks, str) else read.masks, layers, where)
    if not one and len(masks) != len(measured):
        raise ValueError(f"{where}: {len(masks)} masks for {len(measured)} clips")
    masks = np.broadcast_to(masks, (len(measured), layers))
    spread = float(draws.mean(1).std(ddof=1)) if len(draws) > 1 else None
    return Row(read.rule, read.budget, correct, masks, read.macs, spread)


def _right(read: _Rule, weight: Floats, where: str) -> Floats:
    """As `Row.correct`, for each draw. Shape: weight [measured] -> [draws, measured]."""
    if read.correct is not None:  # format 1
        return _digits(read.correct, len(weight), where).astype(float)
    errors = read.errors or []
    if not errors or any(len(draw) != len(weight) or min(draw) < 0 for draw in errors):
        raise ValueError(f"{where}: expected the errors of {len(weight)} clips in each draw")
    if not weight.any():
        raise ValueError(f"{where}: clips without a word to get right")
    return (weight - np.array(errors)) / weight.mean()


def _digits(texts: list[str], length: int, where: str) -> NDArray[np.bool_]:
    """Texts of 0 and 1 as an array. Shape: -> [texts, length] bool."""
    if not texts or any(len(text) != length or set(text) - {"0", "1"} for text in texts):
        raise ValueError(f"{where}: expected texts of {length} digits 0 and 1")
    return np.array([list(text) for text in texts]) == "1"


@dataclass(frozen=True, eq=False)
class Scores:
    """How much is right of each clip, or how much more than by another method.

    Attributes:
        speakers: whose clips stay together when clips are drawn again; None: each by itself.

    Shape:
        values: [seeds, clips], in clips (0 to 1) or in words; [0, 0] where nothing is known.
        weight: [clips]: what they are of, 1 or the words of a clip.
    """

    values: Floats
    weight: Floats
    speakers: Sequence[str] | None = None

    @property
    def size(self) -> int:
        """Seeds times clips."""
        return self.values.size

    @property
    def by_seed(self) -> Floats:
        """The rate of each seed. Shape: -> [seeds]."""
        return self.values.sum(1) / self.weight.sum()

    def interval(self, level: float = 0.95) -> Interval:
        """The rate, the mean of the seeds, and the interval of a bootstrap over clips or speakers.

        Raises:
            ValueError: nothing is known.
        """
        return paired_bootstrap(self.values, self.weight, groups=self.speakers, level=level)


@dataclass(frozen=True, eq=False)
class Study:
    """All runs of one data set, by method, then variant, then seed."""

    data: str
    runs: list[Measured]

    @property
    def layers(self) -> int:
        """Of the encoder."""
        return self.runs[0].layers

    @property
    def variants(self) -> dict[str, str]:
        """The method of each variant, methods first, then their ablations."""
        found = {run.variant: run.method for run in self.runs}
        return dict(sorted(found.items(), key=lambda item: item[0] != item[1]))

    @property
    def sets(self) -> list[str]:
        """Names of the sets of clips, without "validation"."""
        names = dict.fromkeys(name for run in self.runs for name in run.sets)
        return [name for name in names if name != "validation"]

    @property
    def metric(self) -> str:
        """As `Measured.metric`."""
        return self.runs[0].metric

    def clips(self, where: str) -> ClipSet:
        """A set's clips; the rows are those of the first run that has it."""
        return next(run.sets[where] for run in self.runs if where in run.sets)

    def rows(self, where: str, arm: Arm, budget: float) -> dict[int, Row]:
        """By seed."""
        of = [run for run in self.runs if run.variant == arm[0] and where in run.sets]
        key = (arm[1], budget)
        return {r.seed: r.sets[where].rows[key] for r in of if key in r.sets[where].rows}

    def budgets(self, where: str, arm: Arm) -> list[float]:
        """Those that any seed was measured at, from small to large."""
        of = [run for run in self.runs if run.variant == arm[0] and where in run.sets]
        return sorted({b for run in of for rule, b in run.sets[where].rows if rule == arm[1]})

    def correct(self, where: str, arm: Arm, budget: float) -> Scores:
        """Of the clips that all seeds were measured on."""
        rows = self.rows(where, arm, budget).values()
        return self.scores(where, [self.right(where, row) for row in rows])

    def right(self, where: str, row: Row) -> Floats:
        """How much of each clip is right: 0 to 1, or words; NaN: not measured. Shape: [clips]."""
        return row.correct * self.clips(where).weight[~np.isnan(row.correct)].mean()

    def scores(self, where: str, values: Sequence[Floats]) -> Scores:
        """Of the clips that all have. Shape: values [clips] each."""
        if not values:
            return Scores(np.zeros((0, 0)), np.zeros(0))
        clips, stacked = self.clips(where), np.stack(values)
        both = np.flatnonzero(~np.isnan(stacked).any(0))
        speakers = self.speakers(where)
        kept = None if speakers is None else [speakers[clip] for clip in both.tolist()]
        return Scores(stacked[:, both], clips.weight[both], kept)

    def speakers(self, where: str) -> Sequence[str] | None:
        """Over whom intervals are, those of texts as in a sweep; None: over clips."""
        known = self.clips(where).groups["speaker"]
        return speaker_groups(known) if self.metric == "wer" else None

    def accuracy(self, where: str, arm: Arm, budget: float) -> float | None:
        """Mean over the seeds; None where there is no such row."""
        rows = self.rows(where, arm, budget)
        return float(np.mean([row.accuracy for row in rows.values()])) if rows else None

    def interval(self, where: str, arm: Arm, budget: float) -> Interval:
        """Accuracy (for texts 1 - WER), mean over the seeds, with its 95 % interval.

        Over clips; of texts over speakers, where `speaker_groups` has them.
        """
        correct = self.correct(where, arm, budget)
        if self.metric != "accuracy":
            return correct.interval()
        mean = float(correct.values.mean())
        return Interval(mean, *wilson(mean, correct.values.shape[1]))

    def share(self, where: str, arm: Arm, budget: float) -> float:
        """MACs as a share of full depth, mean over the seeds."""
        rows, full = self.rows(where, arm, budget), {(r.variant, r.seed): r.macs for r in self.runs}
        return float(np.mean([row.macs / full[arm[0], seed] for seed, row in rows.items()]))

    def difference(
        self, where: str, arm: Arm, budget: float, other: Arm, other_budget: float | None = None
    ) -> Scores:
        """`arm` minus `other`, clip by clip, for the seeds and clips that both have.

        Args:
            other_budget: by default the same.
        """
        ours = self.rows(where, arm, budget)
        theirs = self.rows(where, other, budget if other_budget is None else other_budget)
        both = sorted(ours.keys() & theirs.keys())
        return self.scores(
            where, [self.right(where, ours[s]) - self.right(where, theirs[s]) for s in both]
        )

    def over(self, where: str, arm: Arm, budget: float, points: Sequence[Point]) -> Scores:
        """`arm` minus others at as many executed layers, clip by clip, seed by seed.

        Args:
            points: rows of the others; between two of them their answers are interpolated by the
                mean number of layers that really ran, so that a mean budget which runs more than
                it was asked for gains nothing by that.
        """
        others = [self.rows(where, *point) for point in points]
        differences = []
        for seed, row in self.rows(where, arm, budget).items():
            known = sorted((r[seed] for r in others if seed in r), key=lambda r: r.executed_layers)
            layers = [other.executed_layers for other in known]
            if not known or not layers[0] <= row.executed_layers <= layers[-1]:
                continue
            high = int(np.searchsorted(layers, row.executed_layers))
            low = max(0, high - 1)
            width = layers[high] - layers[low]
            share = (row.executed_layers - layers[low]) / width if width else 0.0
            below, above = (self.right(where, known[place]) for place in (low, high))
            between = (1 - share) * below + share * above
            differences.append(self.right(where, row) - between)
        return self.scores(where, differences)


def load_study(paths: Sequence[Path | str] | Path | str) -> list[Study]:
    """Read files, or all `measured.json` below directories; one study for each data set.

    Raises:
        ValueError: no file, one that cannot be read, or runs that cannot be compared.
    """
    files = _files([paths] if isinstance(paths, str | Path) else paths)
    runs = sorted((Measured.from_json(file) for file in files), key=_order)
    if not runs:
        raise ValueError(f"no {FILE} in {paths}")
    names = dict.fromkeys(sorted(run.data for run in runs))
    studies = [Study(name, [run for run in runs if run.data == name]) for name in names]
    for study in studies:
        _check(study)
    return studies


def _files(paths: Iterable[Path | str]) -> list[Path]:
    found = [
        p for path in map(Path, paths) for p in (path.rglob(FILE) if path.is_dir() else [path])
    ]
    return sorted({path.resolve() for path in found})


def _order(run: Measured) -> tuple[int, str, int]:
    return METHODS.index(run.method), run.variant, run.seed


def _check(study: Study) -> None:
    """Refuse runs of one data set that were not measured on the same clips."""
    first, seen = study.runs[0], set()
    for run in study.runs:
        if (run.variant, run.seed) in seen:
            raise ValueError(f"{run.path}: a second run of {run.variant}, seed {run.seed}")
        seen.add((run.variant, run.seed))
        for what, ours, theirs in (
            ("layers", run.layers, first.layers),
            ("metric", run.metric, first.metric),
            ("labels", run.info["labels"], first.info["labels"]),
            ("data digest", run.digest, first.digest),
        ):
            if ours != theirs:
                raise ValueError(f"{run.path}: other {what} than {first.path}")
        for name, clips in run.sets.items():
            known = study.clips(name)
            same = clips.files == known.files and clips.groups == known.groups
            if not same or not np.array_equal(clips.weight, known.weight):
                raise ValueError(f"{run.path}: other clips of {name!r} than {first.path}")
