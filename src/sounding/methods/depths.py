"""What each depth of a distilled recognizer costs a clip, and a policy that predicts it.

The cost is the divergence of the answer from that of the full depth, under teacher forcing, and the
prediction a ridge regression of its logarithm on the pooled state after the first layers. As in
use, each clip is by itself, with half a second of silence behind it where a Whisper hears it at its
own length, and runs with the changes that act below full depth, whatever it keeps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.features import clip_seconds, load_features
from ..data.folder import AudioFolder, Clip
from ..errors import UsageError
from ..files import write_json
from ..policies import PredictedDepth
from ..policies.plans import Fixed
from ..policies.pooling import pool
from ..policies.predicted import cheapest
from ..progress import progress
from ..runs.calibrate import calibrate_prices, cuts, savings
from ..runs.run import Run, provenance
from ..tasks.base import Target
from . import OUTPUTS
from .distill import answer_distances, with_silence
from .teaching import TeacherOutputs, teacher_outputs

TAIL = 50  # feature frames of silence behind a clip, as `sounding transcribe` adds
READ_AFTER = (1, 2)  # layers; the better one by cross-validation
FOLDS = 5
STRENGTHS = tuple(10.0**power for power in np.arange(-2, 3.1, 0.5))  # of the ridge, a clip
LOWEST = 1e-4  # nats a token; below, depths are as good as the full one
REPORT = "depths.json"


class Costs(NamedTuple):
    """What was measured of clips.

    Shape:
        costs: [clips, depths], in nats a token, of `least`, `least` + 1, ... layers.
        pooled: by the layers that ran before, [clips, 2 * width].
    """

    costs: Tensor
    pooled: dict[int, Tensor]


@dataclass(frozen=True)
class Predictor:
    """A ridge regression, with the names of `PredictedDepth`, and its cross-validated error.

    Shape: residuals [clips, depths], of logarithms.
    """

    center: Tensor
    spread: Tensor
    slopes: Tensor
    offsets: Tensor
    residuals: Tensor
    strength: float

    @property
    def error(self) -> float:
        """The mean squared error."""
        return float(self.residuals.square().mean())


def predict_depths(run: Run, folder: AudioFolder, directory: Path, limit: int) -> dict[str, Any]:
    """Give a distilled run the policy that predicts depths, save it, and return what it is worth.

    Args:
        folder: training clips to fit it to, and validation clips to find the prices by, which are
            also those that the report is of.
        directory: of the run; the report is kept there too, in depths.json.
        limit: the most training clips to use, and four times the validation clips.

    Raises:
        UsageError: a run that is not distilled or has no decoder, or too few clips.
        Interrupted: on SIGINT or SIGTERM, while the teacher answers; what it did is kept.
    """
    _check(run)
    static: Any = run.dynamic.policy
    scores = static.layer_scores.detach().clone()
    layers, width = run.dynamic.num_layers, int(run.dynamic.base.config.hidden_size)
    least = max(1, round(layers * run.config.least_depth))
    if least == layers:
        raise UsageError("this run was distilled at one depth only: there is nothing to choose")
    masks = torch.stack([static.fixed_mask(k) for k in range(least, layers + 1)])
    after = [n for n in READ_AFTER if bool(masks[:, :n].all())] or [0]
    known = []
    for split, most in (("train", limit), ("validation", max(1, limit // 4))):
        clips = _drawn(run, folder.split(split), most)
        lessons = teacher_outputs(run, clips, directory / OUTPUTS)
        known.append(measure(run, clips, lessons, masks, after, f"depths of {split} clips"))
    train, held_out = known
    fitted = {n: fit(pooled, train.costs) for n, pooled in train.pooled.items()}
    best = min(fitted, key=lambda n: fitted[n].error)
    policy = PredictedDepth(scores, width, after=best, least=least)
    for name in ("center", "spread", "slopes", "offsets"):
        getattr(policy, name).copy_(getattr(fitted[best], name))
    predicted = policy.costs(held_out.pooled[best])
    policy.mean_budgets = calibrate_prices(predicted, least)
    run.dynamic.policy = policy.to(run.dynamic.device).eval()
    report = {
        "after": best,
        "least": least,
        "clips": {"train": len(train.costs), "validation": len(held_out.costs)},
        "data": {"digest": folder.digest},
        "strength": fitted[best].strength,
        "explained": _explained(fitted[best], train.costs),
        "costs": held_out.costs.mean(0).tolist(),
        "rows": _rows(policy, predicted, held_out.costs),
        **provenance(),
    }
    run.dynamic.save_pretrained(directory / "model", companions=run.companions)
    write_json(directory / REPORT, report)
    return report


def _check(run: Run) -> None:
    if not run.task.token_by_token:
        raise UsageError(
            "this run has no decoder: its training has calibrated mean budgets by the answer after "
            "each layer"
        )
    if run.method.labelled or not hasattr(run.dynamic.policy, "layer_scores"):
        raise UsageError(
            "depths are predicted for a run of `sounding distill`, whose layers are kept by scores"
        )


def _drawn(run: Run, clips: Sequence[Clip], most: int) -> list[Clip]:
    """Return at most so many clips, of those that fit the window of the model."""
    window = run.dynamic.backbone.window(run.dynamic.base)
    rows = np.random.default_rng(run.config.seed).permutation(len(clips)).tolist()
    drawn: list[Clip] = []
    for row in rows:
        if len(drawn) == most:
            break
        frames = 0.0
        if window is not None:
            seconds = clip_seconds(clips[row])
            frames = seconds * run.extractor.sampling_rate / run.extractor.hop_length
        if window is None or frames + TAIL < window:
            drawn.append(clips[row])
    if len(drawn) < 2 * FOLDS:
        raise UsageError(
            f"{len(drawn)} clips of a split that fit the model: give {2 * FOLDS} or more (one in "
            "20 of a directory is for validation)"
        )
    return drawn


@torch.no_grad()
def measure(
    run: Run,
    clips: Sequence[Clip],
    lessons: TeacherOutputs,
    masks: Tensor,
    after: Sequence[int],
    title: str,
) -> Costs:
    """Measure what each mask costs each clip, and pool the states that a policy may read.

    Shape: masks [depths, layers] bool.
    """
    dynamic = run.dynamic.eval()
    costs, pooled = torch.zeros(len(clips), len(masks)), {n: list[Tensor]() for n in after}
    with progress(title, len(clips)) as show:
        for row, clip in enumerate(clips):
            features = load_features([clip], run.extractor, max_seconds=run.config.max_seconds)
            lesson = lessons[row]
            targets = [Target(tuple(lesson.ids.tolist()), "")]
            batch = run.task.inputs(run.collate(features), targets)
            batch = with_silence(run, batch, TAIL)
            for place, mask in enumerate(masks):
                plan = _Listening(mask[None], after)
                logits = dynamic.forward_plan(batch, plan).logits
                costs[row, place] = answer_distances(run, batch, logits, [lesson], targets)[0]
            for n, state in plan.pooled.items():  # of the full depth: the same for all
                pooled[n].append(state[0].cpu())
            show(row + 1, "")
    return Costs(costs, {n: torch.stack(states) for n, states in pooled.items()})


class _Listening(Fixed):
    """Runs the layers of a mask, and pools the states after some of them."""

    def __init__(self, mask: Tensor, after: Sequence[int]) -> None:
        super().__init__(mask)
        self.after, self.pooled = after, dict[int, Tensor]()

    def __call__(
        self, index: int, state: Tensor, frame_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return which inputs run layer `index`. Shape: -> [batch] bool."""
        if index in self.after:
            self.pooled[index] = pool(state.float(), frame_mask).cpu()
        return super().__call__(index, state, frame_mask)


def fit(pooled: Tensor, costs: Tensor) -> Predictor:
    """Regress the logarithms of the costs on pooled states, in closed form.

    The strength of the ridge is that of the lowest error in cross-validation. Offsets are raised by
    what the residuals add to the expectation of an exponential (smearing, Duan 1983), so that the
    exponential of the prediction is the expected cost. All numbers fit half precision, in which
    parts may be saved, and the prices are found by what is left.

    Shape: pooled [clips, 2 * width], costs [clips, depths].

    Raises:
        UsageError: fewer clips than folds.
    """
    if len(pooled) < 2 * FOLDS:
        raise UsageError(f"{len(pooled)} clips to fit depths to: give {2 * FOLDS} or more")
    center = pooled.mean(0).half().float()
    spread = pooled.std(0).clamp(min=1e-3).half().float()
    x = ((pooled - center) / spread).double()
    y = costs.clamp(min=LOWEST).log().double()
    fold = torch.from_numpy(np.random.default_rng(0).permutation(len(x))) % FOLDS
    residuals = torch.zeros(len(STRENGTHS), *y.shape, dtype=torch.double)
    for index in range(FOLDS):
        out = fold == index
        for place, (slopes, offsets) in enumerate(_ridges(x[~out], y[~out])):
            residuals[place, out] = y[out] - x[out] @ slopes.T - offsets
    best = int(residuals.square().mean((1, 2)).argmin())
    slopes, offsets = _ridges(x, y)[best]
    offsets = offsets + residuals[best].exp().mean(0).log()
    rounded = (slopes.half().float(), offsets.half().float())
    return Predictor(center, spread, *rounded, residuals[best].float(), STRENGTHS[best])


def _ridges(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return slopes [depths, inputs] and offsets [depths] of a ridge of each strength."""
    middle, base = x.mean(0), y.mean(0)
    u, s, v = torch.linalg.svd(x - middle, full_matrices=False)
    seen = u.T @ (y - base)
    found = []
    for strength in STRENGTHS:
        slopes = (v.T @ ((s / (s.square() + strength * len(x)))[:, None] * seen)).T
        found.append((slopes, base - slopes @ middle))
    return found


def _explained(fitted: Predictor, costs: Tensor) -> list[float]:
    """Return the share of the variance of the logarithms that is predicted, for each depth."""
    logs = costs.clamp(min=LOWEST).log()
    shares = 1 - fitted.residuals.square().mean(0) / logs.var(0, correction=0)
    return [float(share) for share in shares]


def _rows(policy: PredictedDepth, predicted: Tensor, costs: Tensor) -> list[dict[str, float]]:
    """Return the mean cost at each calibrated mean, of the choice and of its controls."""
    rows = []
    for mean, price in policy.mean_budgets[1:-1]:
        kept = cheapest(predicted, price, policy.least)
        found = compared(costs, kept, policy.least)
        rows.append({"mean": mean, "kept": float(kept.float().mean())})
        rows[-1] |= {name: float(values.mean()) for name, values in found.items()}
    return rows


def compared(costs: Tensor, kept: Tensor, least: int) -> dict[str, Tensor]:
    """Return what a choice of depths costs each clip, and its controls at the same mean.

    "shuffled" is the choice of another clip, in expectation over all shuffles; "static" one depth
    for all, drawn from the two that cost least with that mean, which is seen on these very clips;
    "oracle" the best choice by the costs themselves.

    Shape: costs [clips, depths], of `least`, `least` + 1, ... layers, kept [clips] int -> [clips]
    each.
    """
    costs = costs.double()
    depths = costs.shape[1]
    mean = float(kept.double().mean()) - least
    share = torch.bincount(kept - least, minlength=depths).double() / len(kept)
    return {
        "predicted": costs.gather(1, (kept - least)[:, None])[:, 0],
        "shuffled": costs @ share,
        "static": _static(costs, mean),
        "oracle": _oracle(costs, mean),
    }


def _static(costs: Tensor, mean: float) -> Tensor:
    """Return the costs of the two depths, drawn so that the mean comes out, that cost least.

    Shape: costs [clips, depths] -> [clips].
    """
    mixed = []
    for low in range(int(mean) + 1):
        for high in range(max(low + 1, math.ceil(mean)), costs.shape[1]):
            part = (mean - low) / (high - low)
            mixed.append((1 - part) * costs[:, low] + part * costs[:, high])
    return min(mixed, key=lambda one: float(one.sum()), default=costs[:, -1])


def _oracle(costs: Tensor, mean: float) -> Tensor:
    """Return the costs of the best choice, drawn from two prices so that the mean comes out.

    Shape: costs [clips, depths] double -> [clips].
    """
    prices = cuts(savings(costs))
    chosen = [cheapest(costs, float(price), 0) for price in prices[[0, -1]]]
    low, high = 0, len(prices) - 1  # the mean falls with the price
    while high - low > 1:
        middle = (low + high) // 2
        kept = cheapest(costs, float(prices[middle]), 0)
        if float(kept.double().mean()) >= mean:
            low, chosen[0] = middle, kept
        else:
            high, chosen[1] = middle, kept
    more, fewer = (float(one.double().mean()) for one in chosen)
    share = 1.0 if more == fewer else (mean - fewer) / (more - fewer)
    one, other = (costs.gather(1, kept[:, None])[:, 0] for kept in chosen)
    return share * one + (1 - share) * other
