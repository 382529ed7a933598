"""The rules by which a run answers: which layers it runs for each clip, and what becomes of it.

The answers of a clip under all masks come from one tree of masks, so a rule only looks up the mask
that it chooses; `check` runs some clips for real, at every budget, and compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..budget import Budget, threshold_for
from ..data.features import FeatureSet
from ..model.macs import Macs, count_macs
from ..policies.confidence import stops
from ..policies.masks import every_mask, first_masks, random_masks
from ..runs.calibrate import depth_table
from ..runs.mask_outputs import MaskOutputs, depths, mask_outputs, pooled, study_batches
from ..runs.predict import predict_logits
from ..runs.run import Run
from ..runs.search import best_static, ranked_masks
from ..tasks.base import Targets

CHECKED = 8  # clips that are run for real
SURENESS = {"mean": "confidence", "mean-entropy": "certainty"}  # of `MaskOutputs`

Json = dict[str, Any]


@dataclass
class MaskTable:
    """The answers to the clips of a set under some masks.

    Shape:
        masks: [masks, layers] bool.
        found: of each of them, in this order.
    """

    masks: Tensor
    found: MaskOutputs

    def __post_init__(self) -> None:
        self._index = {tuple(mask): i for i, mask in enumerate(self.masks.tolist())}

    def index(self, masks: Tensor) -> Tensor:
        """Return where masks stand in the table. Shape: [..., layers] -> [...] int."""
        flat = [self._index[tuple(mask)] for mask in masks.reshape(-1, masks.shape[-1]).tolist()]
        return torch.tensor(flat, dtype=torch.long).view(masks.shape[:-1])

    def under(self, masks: Tensor) -> Tensor:
        """Return the errors of each clip under its mask.

        Shape: [layers] or [clips, layers] -> [clips].
        """
        clips = self.found.errors.shape[1]
        return self.found.errors[self.index(masks), torch.arange(clips)]


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of a clip of median length, by part."""

    macs: Macs

    def of(self, masks: Tensor, exits: Tensor | None = None) -> float:
        """Return the mean per clip.

        Shape: masks [clips, layers]; exits [clips]: how many answers were made on the way.
        """
        macs = self.macs
        total = macs.of(masks, selector=False)
        if exits is None:
            total += macs.selector * float((~masks.all(1)).double().mean())
        else:
            total += (macs.exit or macs.head) * float(exits.double().mean())
        return total


@dataclass
class ValidationChoices:
    """What validation decides, for use on every set."""

    static: dict[int, Tensor] = field(default_factory=dict)  # best mask of each size
    under: MaskTable | None = None  # the validation clips under every mask
    thresholds: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    center: Tensor | None = None  # mean features, for the constant control


@dataclass(frozen=True)
class Arms:
    """Measures a run under every rule of its method, as rows of a `measured.json`.

    Attributes:
        seed: of the random masks and the shuffling; the same for all runs of a study.
        draws: random masks of each size (methods that drop at random).
    """

    run: Run
    cost: Cost
    known: ValidationChoices
    seed: int
    draws: int

    @classmethod
    def learn(
        cls, run: Run, features: FeatureSet, targets: Targets, *, seed: int, draws: int
    ) -> Arms:
        """Learn from validation clips; the run gets thresholds for the precision of this study."""
        run.dynamic.mean_budgets = run.method.calibrate(run, features, run.config.precision)
        return cls(run, _cost(run, features), _known(run, features, targets), seed, draws)

    @property
    def layers(self) -> int:
        """L of the run."""
        return self.run.dynamic.num_layers

    def rows(
        self, features: FeatureSet, targets: Targets, under: MaskTable | None = None
    ) -> list[Json]:
        """Measure every rule at every budget.

        Args:
            under: the answers under every mask, where they are known (methods that choose).
        """
        kind = self.run.method.arms
        if kind == "depths":
            return self._depths(features, targets)
        if kind == "choices":
            return self._choices_and_controls(features, targets, under)
        if kind == "blind":
            return self._blind(features, targets)
        return self._real(features, targets)

    def _depths(self, features: FeatureSet, targets: Targets) -> list[Json]:
        """Measure early exit: at fixed depths, and once the answer is sure enough."""
        first = MaskTable(first_masks(self.layers), depths(self.run, features, targets))
        rows = [
            self._row("exact", k, first.under(mask), mask)
            for k, mask in enumerate(first.masks, start=1)
        ]
        return rows + self._means(first)

    def _means(self, under: MaskTable) -> list[Json]:
        """Measure where each clip stops by itself, and as a control where another clip stopped.

        The control is "mean-shuffled".
        """
        layers = self.layers
        first = under.index(first_masks(layers)[:-1])
        rows = []
        for rule, table in self.known.thresholds.items():
            sureness = getattr(under.found, SURENESS[rule])[first]
            for mean in range(2, layers):
                stop = stops(sureness, threshold_for(mean, table))
                masks = first_masks(layers)[stop - 1]
                exits = stop.clamp(max=layers - 1)  # it asks after each layer whether it is sure
                rows.append(self._row(rule, mean, under.under(masks), masks, exits))
                if rule == "mean":
                    masks = masks[_others(len(masks), self.seed)]
                    rows.append(self._row("mean-shuffled", mean, under.under(masks), masks, exits))
        return rows

    def _real(self, features: FeatureSet, targets: Targets) -> list[Json]:
        """Run the model at every budget: its policy may read what ran before."""
        layers = self.layers
        budgets: list[tuple[str, int, int | Budget]] = [
            ("exact", k, k) for k in range(1, layers + 1)
        ]
        if self.run.dynamic.mean_budgets:
            budgets += [("mean", mean, Budget.mean(mean)) for mean in range(2, layers)]
        return [
            self._row(rule, budget, *predict_all(self.run, features, asked, targets))
            for rule, budget, asked in budgets
        ]

    def _blind(self, features: FeatureSet, targets: Targets) -> list[Json]:
        """Measure masks that ignore the input: a fixed one, or random ones, and the best static."""
        exact = {k: self._blind_masks(k) for k in range(1, self.layers + 1)}
        wanted = torch.cat([*exact.values(), *(mask[None] for mask in self.known.static.values())])
        masks = torch.unique(wanted, dim=0)
        under = MaskTable(masks, mask_outputs(self.run, features, masks, targets))
        rows = []
        for k, drawn in exact.items():
            errors = torch.stack([under.under(mask) for mask in drawn])
            rows.append(self._row("exact", k, errors, drawn[0]))
        return rows + self._static(under)

    def _blind_masks(self, k: int) -> Tensor:
        """Return the masks of k layers that ignore the input. Shape: [draws, layers] bool."""
        layers = self.layers
        if self.run.method.draws_masks and k < layers:
            rng = np.random.default_rng([self.seed, k])
            return torch.unique(random_masks(rng, self.draws, layers, k), dim=0)
        fixed = self.run.dynamic.policy.fixed_mask(k)
        return (first_masks(layers)[k - 1] if fixed is None else fixed)[None]

    def _static(self, under: MaskTable) -> list[Json]:
        """Measure the best static mask of each size."""
        static = sorted(self.known.static.items())
        return [self._row("static", k, under.under(mask), mask) for k, mask in static]

    def _choices_and_controls(
        self, features: FeatureSet, targets: Targets, under: MaskTable | None
    ) -> list[Json]:
        """Measure the policy, its controls, the best static mask, and mean budgets.

        Args:
            under: the answers under every mask, where they are known: then the oracle too.
        """
        chosen = self._choices(features)
        oracle = under is not None
        if under is None:
            wanted = [first_masks(self.layers), *(m[None] for m in self.known.static.values())]
            wanted += [m for by_budget in chosen.values() for m in by_budget.values()]
            masks = torch.unique(torch.cat(wanted), dim=0)
            under = MaskTable(masks, mask_outputs(self.run, features, masks, targets))
        rows = [
            self._row(rule, k, under.under(mask), mask)
            for rule, by_budget in chosen.items()
            for k, mask in by_budget.items()
        ]
        rows += self._static(under)
        if oracle:
            rows += [self._row("oracle", k, *_oracle(under, k)) for k in range(1, self.layers)]
        return rows + self._means(under)

    def _choices(self, features: FeatureSet) -> dict[str, dict[int, Tensor]]:
        """Return masks [clips, layers] by rule and k: the selector's, and those of its controls."""
        layers, center = self.layers, self.known.center
        assert center is not None
        read = pooled(self.run, features)
        fed = {
            "exact": read,
            "shuffled": read[_others(len(read), self.seed)],
            "constant": center.expand_as(read),
        }
        chosen = {
            rule: {k: self.run.dynamic.policy.choose_pooled(seen, k) for k in range(1, layers)}
            for rule, seen in fed.items()
        }
        chosen["exact"][layers] = torch.ones(len(read), layers, dtype=torch.bool)
        return chosen

    def ceiling(self, chosen_on: MaskTable, scored_on: MaskTable) -> list[Json]:
        """Choose masks with the label on one noisy copy of some clips, and score them on another.

        Unlike the oracle it gains nothing from a lucky mask, only from what belongs to the clip.
        """
        rows = []
        for k in range(1, self.layers):
            best = _lowest_loss(chosen_on, k)
            own = self.run.dynamic.policy.choose_pooled(scored_on.found.pooled, k)
            for rule, mask in (("ceiling", best), ("ceiling-reference", own)):
                rows.append(self._row(rule, k, scored_on.under(mask), mask))
        return rows

    def _row(
        self,
        rule: str,
        budget: float,
        errors: Tensor,
        masks: Tensor,
        exits: Tensor | None = None,
    ) -> Json:
        """Return the row of a rule at a budget.

        Shape: errors [clips] or [draws, clips]; masks [layers] or [clips, layers] bool.
        """
        clips = errors.shape[-1]
        return {
            "rule": rule,
            "budget": budget,
            "errors": [[_short(x) for x in draw] for draw in errors.view(-1, clips).tolist()],
            "masks": _digits(masks) if masks.ndim == 1 else [_digits(mask) for mask in masks],
            "macs": self.cost.of(masks.expand(clips, -1), exits),
        }


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
        if row["rule"] not in ("exact", "mean") or run.method.draws_masks:
            continue
        mean = row["rule"] == "mean"
        budget = Budget.mean(row["budget"]) if mean else row["budget"]
        _, executed = predict_all(run, part, budget)
        masks = row["masks"]
        for clip, mask in zip(some.tolist(), executed, strict=True):
            ran, expected = _digits(mask), masks if isinstance(masks, str) else masks[clip]
            total += 1
            same += ran == expected
            if ran != expected and not mean:
                raise RuntimeError(f"clip {clip}, k = {budget}: {ran} ran, the row has {expected}")
    return {"clips": len(part), "runs": total, "same_layers": same}


def predict_all(
    run: Run, features: FeatureSet, budget: int | Budget, targets: Targets | None = None
) -> tuple[Tensor, Tensor]:
    """Return the errors of `predict_logits` for many clips, and the layers that ran.

    Errors are 0 without targets; the precision is that of the study.

    Shape: -> [clips], [clips, layers] bool.
    """
    errors = torch.zeros(len(features))
    masks = torch.zeros(len(features), run.dynamic.num_layers, dtype=torch.bool)
    for rows, batch in study_batches(run, features):
        logits, masks[rows] = predict_logits(run, batch, budget)
        if targets is not None:
            valid, some = run.frame_mask(batch, logits), [targets[row] for row in rows]
            errors[rows] = run.task.errors(logits[None], valid, some)[0].cpu()
    return errors, masks


def _cost(run: Run, features: FeatureSet) -> Cost:
    median = run.collate([sorted(features, key=len)[len(features) // 2]])
    return Cost(count_macs(run.dynamic, median))


def _known(run: Run, features: FeatureSet, targets: Targets) -> ValidationChoices:
    """Return what is decided on validation."""
    method, layers = run.method, run.dynamic.num_layers
    known = ValidationChoices()
    if method.best_static:
        masks = every_mask(layers)
        if masks is None:
            known.static = best_static(run, features, targets)
        else:
            known.under = MaskTable(masks, mask_outputs(run, features, masks, targets))
            ranked = ranked_masks(masks, known.under.found)
            known.static = {k: ranked[k][0] for k in range(1, layers)}
    if method.arms == "choices":
        known.center = pooled(run, features).mean(0)
        if run.dynamic.mean_budgets:
            known.thresholds["mean"] = run.dynamic.mean_budgets
    if method.arms == "depths" and layers > 1:  # one layer has no depth to choose
        known.thresholds["mean"] = run.dynamic.mean_budgets
        certain = depths(run, features).certainty[:-1]
        known.thresholds["mean-entropy"] = depth_table(certain, layers)
    return known


def _others(count: int, seed: int) -> Tensor:
    """Draw for each clip another one, by a cycle through all of them. Shape: -> [count] int."""
    turned = np.random.default_rng([seed, count]).permutation(count)
    other = np.empty_like(turned)
    other[turned] = np.roll(turned, 1)
    return torch.from_numpy(other)


def _oracle(under: MaskTable, k: int) -> tuple[Tensor, Tensor]:
    """Find for each clip the mask of k layers with the fewest errors, then the lowest loss."""
    masks = _lowest_loss(under, k, errors_first=True)
    return under.under(masks), masks


def _lowest_loss(under: MaskTable, k: int, *, errors_first: bool = False) -> Tensor:
    """Find for each clip the mask of k layers with the lowest loss, by its label.

    With `errors_first` the loss only decides between masks with equally few errors.

    Shape: -> [clips, layers].
    """
    rows = (under.masks.sum(1) == k).nonzero().squeeze(1)
    loss = under.found.losses[rows].double()
    if errors_first:
        loss = loss + 1e6 * under.found.errors[rows]
    return under.masks[rows[loss.argmin(0)]]


def _short(errors: float) -> float:
    return int(errors) if errors == int(errors) else round(errors, 4)


def _digits(values: Tensor) -> str:
    return "".join("1" if value else "0" for value in values.tolist())
