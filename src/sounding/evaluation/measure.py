"""Measures one run for a study: every rule of its method at every budget, clip by clip.

The answers of a clip under all masks come from one tree of masks, so a rule only looks up the mask
that it chooses; `check` runs some clips for real, at every budget, and compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.budget import threshold_for
from ..core.macs import Macs, count_macs
from ..core.selector import InputSelector, StaticSelector, top_k_mask
from ..data.features import Change, FeatureSet, clip_seconds
from ..data.folder import AudioFolder, Clip
from ..data.noise import noise_for
from ..training.answers import (
    MaskAnswers,
    answers,
    calibrate,
    depth_table,
    depths,
    every_mask,
    pooled,
    stops,
    study_batches,
)
from ..training.methods import first_masks, random_masks
from ..training.precision import uses_bf16
from ..training.runs import Run, provenance
from ..training.search import best_static, ranked_masks
from ..training.tasks import Goals
from .predict import RANDOM, predict
from .study import FORMAT

CEILING_CLIPS = 240  # at most, for the ceiling
CEILING_SNR_DB = 20.0  # of its two copies
CHECKED = 8  # clips that are run for real

Json = dict[str, Any]


@dataclass
class Answered:
    """Clips of a set under some masks.

    Shape:
        masks: [masks, layers] bool.
        found: of each of them, in this order.
    """

    masks: Tensor
    found: MaskAnswers

    def __post_init__(self) -> None:
        self._index = {tuple(mask): i for i, mask in enumerate(self.masks.tolist())}

    def index(self, masks: Tensor) -> Tensor:
        """Where masks stand. Shape: [..., layers] -> [...] int."""
        flat = [self._index[tuple(mask)] for mask in masks.reshape(-1, masks.shape[-1]).tolist()]
        return torch.tensor(flat).view(masks.shape[:-1])

    def under(self, masks: Tensor) -> Tensor:
        """The errors of each clip under its mask.

        Shape: [layers] or [clips, layers] -> [clips].
        """
        clips = self.found.errors.shape[1]
        return self.found.errors[self.index(masks), torch.arange(clips)]


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of a clip of median length, by part."""

    macs: Macs
    selector: bool  # whether the method asks one

    def of(self, masks: Tensor, exits: Tensor | None = None) -> float:
        """Mean per clip. Shape: masks [clips, layers]; exits [clips]: answers on the way."""
        macs = self.macs
        total = macs.of(masks, selector=False)
        if self.selector and exits is None:
            total += macs.selector * float((~masks.all(1)).double().mean())
        if exits is not None:
            total += (macs.exit or macs.head) * float(exits.double().mean())
        return total


@dataclass
class Known:
    """What validation decides, for use on every set."""

    static: dict[int, Tensor] = field(default_factory=dict)  # best mask of each size
    under: Answered | None = None  # the validation clips under every mask
    thresholds: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    center: Tensor | None = None  # mean features, for the constant control


def measure(
    run: Run,
    folder: AudioFolder,
    variant: str,
    *,
    snr_db: Sequence[float] = (),
    seed: int = 0,
    trained_seconds: float | None = None,
    ceilings: bool = True,
    draws: int = 6,
) -> Json:
    """All rows of a run on validation and test clips, as a `measured.json`; see `study`.

    Args:
        variant: its name in the comparison.
        snr_db: the test clips are measured again with noise at each of these ratios.
        seed: of the noise, the random masks and the shuffling; the same for all runs of a study.
        ceilings: whether to look for the best mask of each test clip (method "input").
        draws: random masks of each size (methods that drop at random).

    Raises:
        RuntimeError: what ran for real is not what was looked up.
    """
    start = monotonic()
    validation = folder.split("validation")
    features = run.read(validation, "read validation")
    cost = _cost(run, features)
    # thresholds for the precision that this study computes in
    run.dynamic.mean_budgets = calibrate(run, features, run.config.precision)
    known = _known(run, features, run.task.goals(folder, validation))
    rows_of = partial(_set, run, folder, cost=cost, known=known, seed=seed, draws=draws)
    sets = {"validation": rows_of(validation, features, under=known.under)}
    clips = folder.split("test")
    features = run.read(clips, "read test")
    masks = every_mask(run.dynamic.num_layers)
    under = None
    if run.config.method == "input" and ceilings and masks is not None:
        goals = run.task.goals(folder, clips)
        under = Answered(masks, answers(run, features, masks, goals))
    sets["test"] = rows_of(clips, features, under=under)
    checked = check(run, features, sets["test"]["rows"])
    if under is not None:
        sets["test"]["rows"] += _ceiling(run, folder, clips, cost, seed)
    for ratio in snr_db:
        noisy = run.read(clips, f"read test at {ratio:g} dB", _noise(run, ratio, seed))
        name = f"test at {ratio:g} dB"
        sets[name] = rows_of(clips, noisy)
    return {
        "format": FORMAT,
        "method": run.config.method,
        "variant": variant,
        "seed": run.config.seed,
        "layers": run.dynamic.num_layers,
        "data": {"name": folder.root.name, "digest": folder.digest},
        "labels": run.labels,
        "metric": run.task.metric,
        "config": asdict(run.config),
        "steps": run.info.get("steps"),
        "seconds": {"train": trained_seconds, "measure": monotonic() - start},
        "precision": "bf16" if uses_bf16(run.config.precision) else "fp32",
        "checked": checked,
        "macs": {"full": cost.macs.full},
        **provenance(),
        "sets": sets,
    }


def _noise(run: Run, snr_db: float, seed: int, copy: int = 0) -> Change:
    return noise_for(snr_db, run.extractor.sampling_rate, seed, copy)


def _cost(run: Run, features: FeatureSet) -> Cost:
    median = run.collate([sorted(features, key=len)[len(features) // 2]])
    macs = count_macs(run.dynamic, median)
    chooses = run.config.method in ("input", "i3d")
    return Cost(macs, chooses)


def _known(run: Run, features: FeatureSet, goals: Goals) -> Known:
    """What is decided on validation."""
    method, layers = run.config.method, run.dynamic.num_layers
    known = Known()
    if method in (*RANDOM, "static", "input"):
        masks = every_mask(layers)
        if masks is None:
            known.static = best_static(run, features, goals)
        else:
            known.under = Answered(masks, answers(run, features, masks, goals))
            ranked = ranked_masks(masks, known.under.found)
            known.static = {k: ranked[k][0] for k in range(1, layers)}
    if method == "input":
        known.center = pooled(run, features).mean(0)
        known.thresholds["mean"] = run.dynamic.mean_budgets
    if method == "early-exit":
        known.thresholds["mean"] = run.dynamic.mean_budgets
        certain = depths(run, features).certainty[:-1]
        known.thresholds["mean-entropy"] = depth_table(certain, layers)
    return known


SURENESS = {"mean": "confidence", "mean-entropy": "certainty"}  # of `MaskAnswers`


def _set(
    run: Run,
    folder: AudioFolder,
    clips: Sequence[Clip],
    features: FeatureSet,
    cost: Cost,
    known: Known,
    seed: int,
    draws: int,
    *,
    under: Answered | None = None,
) -> Json:
    goals = run.task.goals(folder, clips)
    seconds = run.config.max_seconds or np.inf
    described = {
        "file": [folder.name(clip) for clip in clips],
        "label": [clip.target if folder.labels else "" for clip in clips],
        "speaker": [clip.speaker for clip in clips],
        "seconds": [round(min(clip_seconds(clip), seconds), 3) for clip in clips],
    }
    if run.task.metric == "wer":
        described["weight"] = [run.task.weight(goal) for goal in goals]
    method = run.config.method
    if method == "early-exit":
        rows = _depth_rows(run, features, goals, cost, known, seed)
    elif method == "i3d":
        rows = _gate_rows(run, features, goals, cost)
    elif method == "input":
        rows = _input_rows(run, features, goals, cost, known, seed, under)
    else:
        rows = _blind_rows(run, features, goals, cost, known, seed, draws)
    return {"clips": described, "rows": rows}


def _row(
    rule: str, budget: float, errors: Tensor, masks: Tensor, cost: Cost, exits: Tensor | None = None
) -> Json:
    """A row.

    Shape: errors [clips] or [draws, clips]; masks [layers] or [clips, layers] bool.
    """
    clips = errors.shape[-1]
    return {
        "rule": rule,
        "budget": budget,
        "errors": [[_short(x) for x in draw] for draw in errors.view(-1, clips).tolist()],
        "masks": _digits(masks) if masks.ndim == 1 else [_digits(mask) for mask in masks],
        "macs": cost.of(masks.expand(clips, -1), exits),
    }


def _short(errors: float) -> float:
    return int(errors) if errors == int(errors) else round(errors, 4)


def _digits(values: Tensor) -> str:
    return "".join("1" if value else "0" for value in values.tolist())


def _depth_rows(
    run: Run, features: FeatureSet, goals: Goals, cost: Cost, known: Known, seed: int
) -> list[Json]:
    """Early exit: at fixed depths, and once the answer is sure enough."""
    layers = run.dynamic.num_layers
    first = Answered(first_masks(layers), depths(run, features, goals))
    rows = [_row("exact", k, first.under(m), m, cost) for k, m in enumerate(first.masks, start=1)]
    return rows + _mean_rows(first, cost, known, seed)


def _mean_rows(under: Answered, cost: Cost, known: Known, seed: int) -> list[Json]:
    """Each clip stops by itself; as a control ("mean-shuffled") where another clip stopped."""
    layers = under.masks.shape[1]
    first = under.index(first_masks(layers)[:-1])
    rows = []
    for rule, table in known.thresholds.items():
        sureness = getattr(under.found, SURENESS[rule])[first]
        for mean in range(2, layers):
            stop = stops(sureness, threshold_for(mean, table))
            masks = first_masks(layers)[stop - 1]
            exits = stop.clamp(max=layers - 1)  # it asks after each layer whether it is sure
            rows.append(_row(rule, mean, under.under(masks), masks, cost, exits))
            if rule == "mean":
                masks = masks[_others(len(masks), seed)]
                rows.append(_row("mean-shuffled", mean, under.under(masks), masks, cost, exits))
    return rows


def _gate_rows(run: Run, features: FeatureSet, goals: Goals, cost: Cost) -> list[Json]:
    """I3D, run for real: its masks differ by input, and a local gate reads what ran before it."""
    layers = run.dynamic.num_layers
    budgets: list[tuple[str, int, int | str]] = [("exact", k, k) for k in range(1, layers + 1)]
    if run.dynamic.mean_budgets:
        budgets += [("mean", mean, f"mean:{mean}") for mean in range(2, layers)]
    rows = []
    for rule, budget, asked in budgets:
        rows.append(_row(rule, budget, *predict_all(run, features, asked, goals), cost))
    return rows


def predict_all(
    run: Run, features: FeatureSet, budget: int | str, goals: Goals | None = None
) -> tuple[Tensor, Tensor]:
    """Errors of `predict` for many clips (0 without goals), in the study's precision.

    Shape: -> [clips], [clips, layers] bool.
    """
    errors = torch.zeros(len(features))
    masks = torch.zeros(len(features), run.dynamic.num_layers, dtype=torch.bool)
    for rows, batch in study_batches(run, features):
        logits, masks[rows] = predict(run, batch, budget)
        if goals is not None:
            valid, some = run.frame_mask(batch, logits), [goals[row] for row in rows]
            errors[rows] = run.task.errors(logits[None], valid, some)[0]
    return errors, masks


def _blind_rows(
    run: Run,
    features: FeatureSet,
    goals: Goals,
    cost: Cost,
    known: Known,
    seed: int,
    draws: int,
) -> list[Json]:
    """Methods whose masks ignore the input: a fixed mask, or random ones, and the best static."""
    layers = run.dynamic.num_layers
    exact = {k: _blind_masks(run, k, seed, draws) for k in range(1, layers + 1)}
    wanted = torch.cat([*exact.values(), *(mask[None] for mask in known.static.values())])
    masks = torch.unique(wanted, dim=0)
    under = Answered(masks, answers(run, features, masks, goals))
    rows = []
    for k, drawn in exact.items():
        errors = torch.stack([under.under(mask) for mask in drawn])
        rows.append(_row("exact", k, errors, drawn[0], cost))
    return rows + _static_rows(under, cost, known)


def _blind_masks(run: Run, k: int, seed: int, draws: int) -> Tensor:
    """Shape: [draws, layers] bool."""
    layers, method = run.dynamic.num_layers, run.config.method
    if method in RANDOM and k < layers:
        rng = np.random.default_rng([seed, k])
        return torch.unique(random_masks(rng, draws, layers, k), dim=0)
    if method == "static":
        selector = run.dynamic.selector
        assert isinstance(selector, StaticSelector)
        return top_k_mask(selector.layer_scores.detach()[None], torch.tensor([k]))
    return first_masks(layers)[k - 1][None]


def _static_rows(under: Answered, cost: Cost, known: Known) -> list[Json]:
    return [
        _row("static", k, under.under(mask), mask, cost) for k, mask in sorted(known.static.items())
    ]


def _input_rows(
    run: Run,
    features: FeatureSet,
    goals: Goals,
    cost: Cost,
    known: Known,
    seed: int,
    under: Answered | None,
) -> list[Json]:
    """The selector, its controls, the best static mask, and mean budgets.

    Args:
        under: the answers under every mask, where they are known: then the oracle too.
    """
    layers = run.dynamic.num_layers
    chosen = _choices(run, features, known, seed)
    oracle = under is not None
    if under is None:
        wanted = [first_masks(layers), *(mask[None] for mask in known.static.values())]
        wanted += [m for by_budget in chosen.values() for m in by_budget.values()]
        masks = torch.unique(torch.cat(wanted), dim=0)
        under = Answered(masks, answers(run, features, masks, goals))
    rows = [
        _row(rule, k, under.under(m), m, cost)
        for rule, by_budget in chosen.items()
        for k, m in by_budget.items()
    ]
    rows += _static_rows(under, cost, known)
    if oracle:
        rows += [_row("oracle", k, *_oracle(under, k), cost) for k in range(1, layers)]
    return rows + _mean_rows(under, cost, known, seed)


def _choices(
    run: Run, features: FeatureSet, known: Known, seed: int
) -> dict[str, dict[int, Tensor]]:
    """Masks [clips, layers] by rule and k: the selector's, and those of its two controls."""
    selector, layers = run.dynamic.selector, run.dynamic.num_layers
    assert isinstance(selector, InputSelector)
    assert known.center is not None
    read = pooled(run, features)
    fed = {
        "exact": read,
        "shuffled": read[_others(len(read), seed)],
        "constant": known.center.expand_as(read),
    }
    chosen: dict[str, dict[int, Tensor]] = {rule: {} for rule in fed}
    for rule, seen in fed.items():
        for k in range(1, layers):
            chosen[rule][k] = _chosen(selector, seen, k)
    chosen["exact"][layers] = torch.ones(len(read), layers, dtype=torch.bool)
    return chosen


def _others(count: int, seed: int) -> Tensor:
    """For each clip another one: a cycle through all of them. Shape: -> [count] int."""
    turned = np.random.default_rng([seed, count]).permutation(count)
    other = np.empty_like(turned)
    other[turned] = np.roll(turned, 1)
    return torch.from_numpy(other)


@torch.inference_mode()
def _chosen(selector: InputSelector, read: Tensor, k: int) -> Tensor:
    """Shape: read [clips, 2 * width] -> [clips, layers] bool."""
    budget = torch.full((len(read),), k)
    return top_k_mask(selector.scores_of(read, budget), budget)


def _oracle(under: Answered, k: int) -> tuple[Tensor, Tensor]:
    """The mask of k layers with the fewest errors, or of those the one of the lowest loss."""
    masks = _lowest_loss(under, k, errors_first=True)
    return under.under(masks), masks


def _lowest_loss(under: Answered, k: int, *, errors_first: bool = False) -> Tensor:
    """The mask of k layers that suits each clip best, by its label. Shape: -> [clips, layers]."""
    rows = (under.masks.sum(1) == k).nonzero().squeeze(1)
    loss = under.found.losses[rows].double()
    if errors_first:
        loss = loss + 1e6 * under.found.errors[rows]
    return under.masks[rows[loss.argmin(0)]]


def _ceiling(
    run: Run, folder: AudioFolder, clips: Sequence[Clip], cost: Cost, seed: int
) -> list[Json]:
    """Masks chosen with the label on one noisy copy of a clip, scored on another.

    Unlike the oracle it gains nothing from a lucky mask, only from what belongs to the clip.
    """
    layers = run.dynamic.num_layers
    masks = every_mask(layers)
    if masks is None:
        return []
    count = min(CEILING_CLIPS, len(clips))
    index = np.linspace(0, len(clips) - 1, count).round().astype(int).tolist()
    some = [clips[i] for i in index]
    goals = run.task.goals(folder, some)

    def under(copy: int) -> Answered:
        noisy = run.read(some, f"copy {copy}", _noise(run, CEILING_SNR_DB, seed, copy))
        return Answered(masks, answers(run, noisy, masks, goals))

    chosen_on, scored_on = under(1), under(2)
    selector = run.dynamic.selector
    assert isinstance(selector, InputSelector)
    rows = []
    for k in range(1, layers):
        best = _lowest_loss(chosen_on, k)
        own = _chosen(selector, scored_on.found.pooled, k)
        for rule, mask in (("ceiling", best), ("ceiling-reference", own)):
            rows.append({**_row(rule, k, scored_on.under(mask), mask, cost), "clips": index})
    return rows


def check(run: Run, features: FeatureSet, rows: Sequence[Json]) -> Json:
    """Run some clips for real at every budget and compare with the rows.

    Raises:
        RuntimeError: other layers ran than a row says, at an exact budget. A mean budget may
            differ where an answer is on the edge of being sure enough.
    """
    some = np.linspace(0, len(features) - 1, min(CHECKED, len(features))).round().astype(int)
    part = [features[i] for i in some]
    same = total = 0
    for row in rows:
        if row["rule"] not in ("exact", "mean") or run.config.method in RANDOM:
            continue
        mean = row["rule"] == "mean"
        budget = f"mean:{row['budget']}" if mean else row["budget"]
        _, executed = predict_all(run, part, budget)
        masks = row["masks"]
        for clip, mask in zip(some.tolist(), executed, strict=True):
            ran, expected = _digits(mask), masks if isinstance(masks, str) else masks[clip]
            total += 1
            same += ran == expected
            if ran != expected and not mean:
                raise RuntimeError(f"clip {clip}, k = {budget}: {ran} ran, the row has {expected}")
    return {"clips": len(part), "runs": total, "same_layers": same}
