"""A study: what was measured of many runs, put side by side.

A row is named by its arm, that is variant and rule ("input", "shuffled"), and its budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UsageError
from ..statistics import Interval, paired_bootstrap, speaker_groups, wilson
from .measured import FILE, ClipSet, Floats, Json, Measured, Row, read_values
from .names import place_of
from .pack import PACK, is_pack, read_pack

Arm = tuple[str, str]  # variant, rule
Point = tuple[Arm, float]  # and a budget


@dataclass(frozen=True, eq=False)
class Scores:
    """How much of each clip is right, or how much more than by another method.

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
        """Number of values: seeds times clips."""
        return self.values.size

    @property
    def by_seed(self) -> Floats:
        """The rate of each seed. Shape: -> [seeds]."""
        return self.values.sum(1) / self.weight.sum()

    def interval(self, level: float = 0.95) -> Interval:
        """Return the rate, the mean of the seeds, with its interval.

        The interval is that of a bootstrap over clips or speakers.

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
        """Number of layers of the encoder."""
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
        """The metric of the runs, as `Measured.metric`."""
        return self.runs[0].metric

    def clips(self, where: str) -> ClipSet:
        """Return a set's clips; the rows are those of the first run that has it."""
        return next(run.sets[where] for run in self.runs if where in run.sets)

    def rows(self, where: str, arm: Arm, budget: float) -> dict[int, Row]:
        """Return the row of each seed."""
        of = [run for run in self.runs if run.variant == arm[0] and where in run.sets]
        key = (arm[1], budget)
        return {r.seed: r.sets[where].rows[key] for r in of if key in r.sets[where].rows}

    def budgets(self, where: str, arm: Arm) -> list[float]:
        """Return the budgets that any seed was measured at, from small to large."""
        of = [run for run in self.runs if run.variant == arm[0] and where in run.sets]
        return sorted({b for run in of for rule, b in run.sets[where].rows if rule == arm[1]})

    def correct(self, where: str, arm: Arm, budget: float) -> Scores:
        """Return how much is right of the clips that all seeds were measured on."""
        rows = self.rows(where, arm, budget).values()
        return self.scores(where, [self.right(where, row) for row in rows])

    def right(self, where: str, row: Row) -> Floats:
        """Return how much of each clip is right.

        Shape: [clips], from 0 to 1, or in words; NaN where it was not measured.
        """
        return row.correct * self.clips(where).weight[~np.isnan(row.correct)].mean()

    def scores(self, where: str, values: Sequence[Floats]) -> Scores:
        """Return the scores of the clips that all have. Shape: values [clips] each."""
        if not values:
            return Scores(np.zeros((0, 0)), np.zeros(0))
        clips, stacked = self.clips(where), np.stack(values)
        both = np.flatnonzero(~np.isnan(stacked).any(0))
        speakers = self.speakers(where)
        kept = None if speakers is None else [speakers[clip] for clip in both.tolist()]
        return Scores(stacked[:, both], clips.weight[both], kept)

    def speakers(self, where: str) -> Sequence[str] | None:
        """Return the speakers that intervals are over, as in a sweep; None for those over clips."""
        known = self.clips(where).groups["speaker"]
        return speaker_groups(known) if self.metric == "wer" else None

    def accuracy(self, where: str, arm: Arm, budget: float) -> float | None:
        """Return the mean over the seeds; None where there is no such row."""
        rows = self.rows(where, arm, budget)
        return float(np.mean([row.accuracy for row in rows.values()])) if rows else None

    def interval(self, where: str, arm: Arm, budget: float) -> Interval:
        """Return the accuracy (for texts 1 - WER), mean over the seeds, with its 95 % interval.

        The interval is over clips; of texts over speakers, where `speaker_groups` has them.
        """
        correct = self.correct(where, arm, budget)
        if self.metric != "accuracy":
            return correct.interval()
        mean = float(correct.values.mean())
        return Interval(mean, *wilson(mean, correct.values.shape[1]))

    def share(self, where: str, arm: Arm, budget: float) -> float:
        """Return the MACs as a share of full depth, mean over the seeds."""
        rows, full = self.rows(where, arm, budget), {(r.variant, r.seed): r.macs for r in self.runs}
        return float(np.mean([row.macs / full[arm[0], seed] for seed, row in rows.items()]))

    def difference(
        self, where: str, arm: Arm, budget: float, other: Arm, other_budget: float | None = None
    ) -> Scores:
        """Return `arm` minus `other`, clip by clip, for the seeds and clips that both have.

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
        """Return `arm` minus others at as many executed layers, clip by clip, seed by seed.

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
    """Read what was measured, and return one study for each data set.

    Args:
        paths: files `measured.json`, packs of them (`pack.write_pack`), and directories; below a
            directory all `measured.json` are read, and where there are none, all packs
            `measured.parquet`.

    Raises:
        ValueError: no file, one that cannot be read, or runs that cannot be compared.
        ModuleNotFoundError: a pack, and pyarrow is not installed.
    """
    runs = sorted(
        (Measured.from_values(values, name) for name, values in each_run(paths)), key=_order
    )
    if not runs:
        raise UsageError(f"no {FILE} and no {PACK} in {paths}")
    names = dict.fromkeys(sorted(run.data for run in runs))
    studies = [Study(name, [run for run in runs if run.data == name]) for name in names]
    for study in studies:
        _check(study)
    return studies


def each_run(paths: Sequence[Path | str] | Path | str) -> Iterator[tuple[Path, Json]]:
    """Yield the values of each `measured.json` in `paths`, and where they come from."""
    for path in _files([paths] if isinstance(paths, str | Path) else paths):
        if is_pack(path):
            yield from read_pack(path)
        else:
            yield path, read_values(path)


def _files(paths: Iterable[Path | str]) -> list[Path]:
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += list(path.rglob(FILE)) or list(path.rglob(PACK))
        else:
            found.append(path)
    return sorted({path.resolve() for path in found})


def _order(run: Measured) -> tuple[int, str, str, int]:
    return place_of(run.method), run.method, run.variant, run.seed


def _check(study: Study) -> None:
    """Refuse runs of one data set that were not measured on the same clips."""
    first, seen = study.runs[0], set()
    for run in study.runs:
        if (run.variant, run.seed) in seen:
            raise UsageError(f"{run.path}: a second run of {run.variant}, seed {run.seed}")
        seen.add((run.variant, run.seed))
        for what, ours, theirs in (
            ("layers", run.layers, first.layers),
            ("metric", run.metric, first.metric),
            ("labels", run.info["labels"], first.info["labels"]),
            ("data digest", run.digest, first.digest),
        ):
            if ours != theirs:
                raise UsageError(f"{run.path}: other {what} than {first.path}")
        for name, clips in run.sets.items():
            known = study.clips(name)
            same = clips.files == known.files and clips.groups == known.groups
            if not same or not np.array_equal(clips.weight, known.weight):
                raise UsageError(f"{run.path}: other clips of {name!r} than {first.path}")
