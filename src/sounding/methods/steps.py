"""The training methods: which layers run in a step, and the loss that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import kl_div

from ..model.dynamic import MaskLogits
from ..policies.masks import first_masks, random_masks
from ..policies.plans import SampledGates
from ..policies.pooling import frame_mean
from ..policies.selectors import GateSelector, depth_prior
from ..runs.run import Batch, Run
from ..tasks.kinds import Targets

# weights of full depth and of the candidates; that of the lower depths together is 1
FULL, CANDIDATES = 0.2, 0.2


@dataclass(frozen=True)
class Step:
    """One training step: where it stands, and its own random numbers.

    All randomness of a step comes from (seed, step), so that a resumed training repeats it.

    Attributes:
        whole: makes of a mean over the clips of this process that over the whole batch; see
            `Processes.mean`. A loss that is no mean over clips needs it.
    """

    index: int
    total: int
    rng: np.random.Generator
    whole: Callable[[Tensor], Tensor] = lambda mean: mean

    @property
    def position(self) -> float:
        """From 0 at the first step to 1 at the last."""
        return self.index / max(1, self.total - 1)


def train_full(run: Run, batch: Batch, targets: Targets, step: Step) -> Tensor:
    """Full depth only."""
    return _loss(run, batch, run.dynamic(**batch).logits, targets)


def train_random(run: Run, batch: Batch, targets: Targets, step: Step) -> Tensor:
    """One mask per batch, each layer kept with probability 0.5 (LDASR, EUSIPCO 2024)."""
    layers = run.dynamic.num_layers
    mask = step.rng.random(layers) < 0.5
    if not mask.any():
        mask[step.rng.integers(layers)] = True
    logits = run.dynamic(**batch, mask=torch.from_numpy(mask)).logits
    return _loss(run, batch, logits, targets)


def train_early_exit(run: Run, batch: Batch, targets: Targets, step: Step) -> Tensor:
    """The mean of the losses of all exits (arXiv 2309.09546)."""
    layers = run.dynamic.num_layers
    out = run.dynamic.forward_masks(batch, first_masks(layers))
    return run.task.losses(out.logits, out.frame_mask, targets).mean()


def train_dld(run: Run, batch: Batch, targets: Targets, step: Step) -> Tensor:
    """Random layers that imitate the embeddings of a frozen full model (DLD, arXiv 2601.16117)."""
    assert run.teacher is not None
    with torch.no_grad(), _final_state(run.teacher) as target:
        outputs, _ = run.teacher.dynamic.layer_outputs(batch)
    frame_mask = outputs[-1][1]
    with _final_state(run) as state:
        loss = train_random(run, batch, targets, step)
    distance = kl_div(
        state[0].float().log_softmax(-1),
        target[0].float().log_softmax(-1),
        log_target=True,
        reduction="none",
    ).sum(-1)
    # of each clip first, so that all clips weigh alike in a batch, and in a part of it
    return loss + frame_mean(distance, frame_mask).mean()


@contextmanager
def _final_state(run: Run) -> Iterator[list[Tensor]]:
    """Collects what the encoder of a run puts out, its final norm applied."""
    seen: list[Tensor] = []
    handle = run.dynamic.base.register_forward_hook(
        lambda base, args, out: seen.append(out.last_hidden_state)
    )
    try:
        yield seen
    finally:
        handle.remove()


def train_i3d(run: Run, batch: Batch, targets: Targets, step: Step) -> Tensor:
    """Sampled gates, and a penalty on their mean (I3D, arXiv 2303.07624)."""
    selector = run.dynamic.selector
    assert isinstance(selector, GateSelector)
    plan = SampledGates(selector)
    loss = _loss(run, batch, run.dynamic.forward_plan(batch, plan).logits, targets)
    mean = step.whole(torch.stack(plan.soft).mean())
    return loss + run.config.gate_penalty * (mean - 0.5).square()


def train_choice(run: Run, batch: Batch, targets: Targets, step: Step) -> Tensor:
    """Every depth, and a selector that learns from the loss of each input under each candidate.

    Full depth learns from the labels; the first k layers for every k, and some random masks of one
    size, learn from the labels and from full depth's answers (a sandwich, arXiv 1903.05134, with
    all sizes in it: shared prefixes run once). Among the candidates of that size the selector
    spreads a probability by the sum of its layer scores, and lowers the expected loss. No
    relaxation is needed, since all candidates ran.
    """
    config, dynamic = run.config, run.dynamic
    layers = dynamic.num_layers
    k = int(step.rng.integers(1, max(2, layers)))
    masks = first_masks(layers)
    prior = depth_prior(layers).numpy()
    selector: Any = dynamic.selector
    prior[: selector.after] = np.inf  # these always run
    drawn = random_masks(step.rng, config.candidates, layers, k, prior)
    masks = torch.cat([masks, _new(drawn, masks[k - 1 : k])])
    out = dynamic.forward_masks(batch, masks)
    losses = _losses(run, out, targets)  # [masks, batch]
    loss = losses[layers - 1].mean()
    if layers == 1:
        return loss
    rows = [k - 1, *range(layers, len(masks))]
    budget = torch.full((len(targets),), k)
    scores = selector.scores(out.features, out.frame_mask, budget)[:, selector.after :]
    energy = scores @ masks[rows][:, selector.after :].float().T
    share = energy.softmax(-1)  # [batch, candidates]
    candidates = losses[rows].T
    weight = share.detach()
    if step.position < config.random_share:
        weight = torch.full_like(weight, 1 / len(rows))
    chosen = (weight * candidates).sum(1).mean()
    expected = (share * candidates.detach()).sum(1).mean()
    return FULL * loss + losses[: layers - 1].mean() + CANDIDATES * chosen + expected


def _new(masks: Tensor, known: Tensor) -> Tensor:
    """Those of `masks` that are not among the `known`, each once. Shape: [masks, layers]."""
    seen = {tuple(mask) for mask in known.tolist()}
    fresh = [m for m in dict.fromkeys(map(tuple, masks.tolist())) if m not in seen]
    return torch.tensor(fresh, dtype=torch.bool).view(-1, masks.shape[1])


def _loss(run: Run, batch: Batch, logits: Tensor, targets: Targets) -> Tensor:
    """Mean over the clips of a batch that ran once. Shape: logits [batch, ...] -> []."""
    return run.task.losses(logits[None], run.frame_mask(batch, logits), targets).mean()


def _losses(run: Run, out: MaskLogits, targets: Targets) -> Tensor:
    """Of each input under each mask; full depth learns from the labels only.

    Shape: -> [masks, batch].
    """
    full, distill = run.dynamic.num_layers - 1, run.config.distill
    hard = run.task.losses(out.logits, out.frame_mask, targets)
    teacher = out.logits[full].detach()
    soft = run.task.distances(out.logits, teacher, out.frame_mask, targets)
    mixed = (1 - distill) * hard + distill * soft
    return torch.where(torch.arange(len(hard))[:, None] == full, hard, mixed)


TRAIN: dict[str, Callable[[Run, Batch, Targets, Step], Tensor]] = {
    "full": train_full,
    "random": train_random,
    "dld": train_dld,
    "early-exit": train_early_exit,
    "i3d": train_i3d,
    "static": train_choice,
    "input": train_choice,
}
