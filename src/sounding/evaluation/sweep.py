"""Sweeps: every budget of one or more runs, measured on the same clips.

{"header": {...}, "rows": [{...}, ...], "masks": {"files": [...], "input/3": [...], ...}}
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..budget import Budget
from ..data.features import FeatureSet, batches
from ..data.folder import COLUMNS, AudioFolder
from ..errors import UsageError
from ..methods.looks import MEAN
from ..model.macs import Macs, count_macs
from ..policies.masks import random_masks
from ..progress import progress
from ..runs.predict import predict
from ..runs.run import Run, provenance, trained_with
from ..tasks.base import Targets
from ..training.distributed import ALONE, Processes
from ..training.fitting import check_words, tell_test, writes
from ..typed import read_json

DRAWS = 2  # random masks of each clip at each budget of random dropping


@dataclass(frozen=True)
class Row:
    """One method at one budget.

    Attributes:
        method: the run's method, or how that calls itself below full depth ("first"); with "-mean"
            behind it for mean budgets.
        kept_layers: k, as asked for; the mean asked for where the method ends in "-mean".
        metric, value, ci_low, ci_high: the score of the run's task with its 95 % interval:
            "accuracy" from 0 to 1 (Wilson, over the clips), "map" (bootstrap over clips), "wer"
            (bootstrap; over speakers where there are 10 or more), ...; for "random" the mean over
            the masks.
        macs: multiply-accumulates of a clip of median length, the selector's included.
        macs_share: of those at full depth without a selector.
        latency_ms: median of one clip of median length at a time; an illustration.
        latency_share: median of the paired ratios to full depth; None where it was not timed.
        executed_layers: mean number of layers that really ran, per clip.
        layer_use: for each layer the share of the clips that ran it.
        draws: random masks of each clip behind the value.
        cer: of texts, the character error rate.
    """

    method: str
    kept_layers: int
    metric: str
    value: float
    ci_low: float
    ci_high: float
    macs: float
    macs_share: float
    latency_ms: float | None
    latency_share: float | None
    executed_layers: float
    layer_use: list[float]
    draws: int = 1
    cer: float | None = None


@dataclass(frozen=True)
class Sweep:
    """All rows, where they come from, and which layers ran for which clip.

    Attributes:
        masks: "files" and "labels" of the clips, and for each "METHOD/k" that depends on the
            input one string of 0 and 1 per clip, layer 0 first.
    """

    header: dict[str, Any]
    rows: list[Row]
    masks: dict[str, list[str]]

    def to_json(self) -> dict[str, Any]:
        """Return the sweep as it is written to a file."""
        return {"header": self.header, "rows": [asdict(r) for r in self.rows], "masks": self.masks}

    @classmethod
    def from_json(cls, path: Path | str) -> Sweep:
        """Read what `to_json` returned.

        Raises:
            UsageError: not such a file.
        """
        return read_json(path, cls, what="is not the JSON of a sweep")


def sweep(
    runs: Sequence[Run],
    folder: AudioFolder,
    *,
    split: str = "test",
    batch_size: int = 32,
    rounds: int = 15,
    seed: int = 0,
    group: Processes = ALONE,
) -> Sweep:
    """Measure each run at every budget on the clips of a split.

    Args:
        group: the processes that share the clips; each returns the same, but for timings, which
            are those of the first one.
        rounds: timings of each row; in a round all rows are timed once, in random order. 0: none.
        seed: of the random masks and of the order of the timings.

    Raises:
        UsageError: no run, two of one method, a run trained on other classes, or rounds or a seed
            below 0.
        DataError, AudioError: clips that cannot be used.
    """
    _check(runs, folder)
    if min(rounds, seed) < 0:
        raise UsageError(f"rounds and seed are 0 or more; got {rounds} and {seed}")
    clips = folder.split(split)
    check_words(folder, split)
    rows: list[Row] = []
    means: list[Row] = []
    masks = {"files": [folder.name(clip) for clip in clips]}
    masks["labels"] = [clip.target if folder.labels else "" for clip in clips]
    timed: list[tuple[Run, int, dict[str, Tensor]]] = []
    for run in runs:
        targets = run.task.targets(folder, clips)
        features = run.read(clips, f"read {split} clips")
        tell_test(run, folder, clips, targets, features)
        middle = sorted(range(len(features)), key=lambda i: len(features[i]))[len(features) // 2]
        median = run.collate([features[middle]])
        told = [targets[middle]] if writes(run, targets[middle]) else None
        macs = count_macs(run.dynamic, run.task.inputs(median, told))
        layers = run.dynamic.num_layers
        known = run.dynamic.mean_budgets
        asked = range(max(2, math.ceil(known[0][0])), layers) if known else range(0)
        with progress(f"sweep {run.config.method}", layers + len(asked)) as show:
            for k in range(1, layers + 1):
                found = _measured(run, features, targets, k, batch_size, seed, group)
                row = _row(run, k, found, targets, macs)
                rows.append(row)
                timed.append((run, k, median))
                if run.method.shows_layers and k < layers:
                    masks[f"{row.method}/{k}"] = _texts(found.executed[0])
                show(k, f"{row.method} k={k} {row.value:.3f}")
            for done, mean in enumerate(asked, layers + 1):
                budget = Budget.mean(mean)
                found = _measured(run, features, targets, budget, batch_size, seed, group)
                means.append(_mean_row(run, mean, found, targets, macs))
                masks[f"{means[-1].method}/{mean}"] = _texts(found.executed[0])
                show(done, f"{run.config.method} {budget} {means[-1].value:.3f}")
    if group.first:
        rows = _with_latency(rows, timed, rounds, seed)
    group.wait()
    rows += means  # whose time depends on the clip
    header = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": {"name": folder.root.name, "digest": folder.digest, "split": split},
        "clips": len(clips),
        "labels": list(folder.labels),
        "seed": seed,
        "rounds": rounds,
        "runs": [trained_with(run.config, run.info) for run in runs],
        **provenance(),
    }
    return Sweep(header, rows, masks)


def _check(runs: Sequence[Run], folder: AudioFolder) -> None:
    if not runs:
        raise UsageError("nothing to sweep: give at least one run")
    methods = [run.config.method for run in runs]
    if len(set(methods)) < len(methods):
        raise UsageError(f"more than one run of a method ({', '.join(methods)}): sweep them apart")
    for run in runs:
        if run.task.data != folder.task:
            raise UsageError(
                f"{folder.root} has a column {COLUMNS[folder.task]!r}, which the "
                f"{run.config.method} run was not trained for: give the data that it was trained on"
            )
        if run.labels != run.task.labels_of(folder, run.tokenizer):
            raise UsageError(
                f"the {run.config.method} run knows the classes {', '.join(run.labels)}, but "
                f"{folder.root} has {', '.join(folder.labels)}: give the data that it "
                "was trained on"
            )


@dataclass(frozen=True)
class BudgetResult:
    """The answers to all clips at one budget, for each draw of random masks.

    Shape: errors [draws, clips], executed [draws, clips, layers] bool; details [clips, ...], of the
    first draw, as `Task.details` returns them.
    """

    errors: np.ndarray
    executed: Tensor
    details: np.ndarray | None


class _Answered(NamedTuple):
    """The answers to the clips of one process, as in `BudgetResult`; details by clip."""

    rows: list[int]
    errors: np.ndarray
    executed: Tensor
    details: dict[int, np.ndarray]


def _measured(
    run: Run,
    features: FeatureSet,
    targets: Targets,
    k: int | Budget,
    batch_size: int,
    seed: int,
    group: Processes,
) -> BudgetResult:
    layers = run.dynamic.num_layers
    masks: Tensor | None = None
    draws = 1
    if isinstance(k, int) and run.method.draws_masks and k < layers:
        draws = DRAWS
        masks = random_masks(np.random.default_rng([seed, k]), draws * len(features), layers, k)
        masks = masks.view(draws, len(features), layers)
    errors = np.zeros((draws, len(features)))
    executed = torch.zeros(draws, len(features), layers, dtype=torch.bool)
    details: dict[int, np.ndarray] = {}
    order = sorted(range(len(features)), key=lambda i: len(features[i]))
    size = batch_size if run.task.batches else 1
    made = batches(order, size, seed=0, epoch=0, shuffle=False)[group.rank :: group.count]
    for draw in range(draws):
        for rows in made:
            index = [order[i] for i in rows]
            batch = run.collate([features[i] for i in index])
            predicted = predict(run, batch, k, None if masks is None else masks[draw, index])
            some = [targets[i] for i in index]
            errors[draw, index] = run.task.count(predicted.texts, some)
            executed[draw, index] = predicted.executed
            found = run.task.details(predicted, some) if draw == 0 else None
            if found is not None:
                details |= dict(zip(index, found, strict=True))
    own = [order[i] for rows in made for i in rows]
    for part in group.every(_Answered(own, errors[:, own], executed[:, own], details)):
        errors[:, part.rows], executed[:, part.rows] = part.errors, part.executed
        details |= part.details
    in_order = np.array([details[i] for i in sorted(details)]) if details else None
    return BudgetResult(errors, executed, in_order)


def _row(run: Run, k: int, found: BudgetResult, targets: Targets, macs: Macs) -> Row:
    layers, method, executed = run.dynamic.num_layers, run.method, found.executed
    score = run.task.score(found.errors, found.details, targets)
    cost = macs.of(executed.flatten(0, 1), selector=k < layers)
    return Row(
        method=method.below[0] if method.below and k < layers else method.name,
        kept_layers=k,
        metric=score.metric,
        value=score.value,
        ci_low=score.low,
        ci_high=score.high,
        macs=cost,
        macs_share=cost / macs.full,
        latency_ms=None,
        latency_share=None,
        executed_layers=float(executed.sum(-1).double().mean()),
        layer_use=executed.double().mean((0, 1)).tolist(),
        draws=len(executed),
        cer=score.cer,
    )


def _mean_row(run: Run, mean: int, found: BudgetResult, targets: Targets, macs: Macs) -> Row:
    row = _row(run, mean, found, targets, macs)
    cost = row.macs
    if not run.dynamic.policy.serves(Budget.mean(mean)):  # an answer after each layer decides
        depth = found.executed[0].sum(1).double()
        cost += (macs.exit or macs.head) * float(depth.clamp(max=run.dynamic.num_layers - 1).mean())
        cost -= macs.selector
    return replace(row, method=run.config.method + MEAN, macs=cost, macs_share=cost / macs.full)


def _texts(masks: Tensor) -> list[str]:
    """Return one text of 0 and 1 a clip. Shape: masks [clips, layers]."""
    return ["".join(map(str, mask)) for mask in masks.int().tolist()]


def _with_latency(
    rows: list[Row], timed: list[tuple[Run, int, dict[str, Tensor]]], rounds: int, seed: int
) -> list[Row]:
    """Time all rows in turn, each against full depth in the same round."""
    if not rounds:
        return rows
    rng = np.random.default_rng(seed)
    times = np.zeros((rounds, len(rows)))
    with progress("latency", rounds) as show:
        for turn in range(-1, rounds):  # the first round only warms up
            for index in rng.permutation(len(rows)):
                run, k, batch = timed[index]
                mask = random_masks(rng, 1, run.dynamic.num_layers, k)
                start = perf_counter()
                predict(run, batch, k, mask)
                times[max(0, turn), index] = perf_counter() - start
            show(turn + 1, "")
    full = [i for i, (run, k, _) in enumerate(timed) if k == run.dynamic.num_layers]
    reference = [next(f for f in full if timed[f][0] is run) for run, _, _ in timed]
    done = []
    for index, row in enumerate(rows):
        ratio = float(np.median(times[:, index] / times[:, reference[index]]))
        latency = 1000 * float(np.median(times[:, index]))
        done.append(replace(row, latency_ms=latency, latency_share=ratio))
    return done
