"""Training of scores by the losses of candidate masks: what the methods of ours share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..model.dynamic import MaskLogits
from ..policies.masks import first_masks, random_masks
from ..policies.static import depth_prior
from ..runs.run import Batch, Run
from ..tasks.base import Targets
from .base import Method, Step

# weights of full depth and of the candidates; that of the lower depths together is 1
FULL, CANDIDATES = 0.2, 0.2


class Choice(Method):
    """Trains every depth, and a policy that learns from the loss of each input by candidate.

    Full depth learns from the labels; the first k layers for every k, and some random masks of one
    size, learn from the labels and from full depth's answers (a sandwich, arXiv 1903.05134, with
    all sizes in it: shared prefixes run once). Among the candidates of that size the policy
    spreads a probability by the sum of its layer scores, and lowers the expected loss. No
    relaxation is needed, since all candidates ran.
    """

    own_heads = True
    adapts = True
    best_static = True

    def loss(self, run: Run, batch: Batch, targets: Targets, step: Step) -> Tensor:
        """Return the loss of the candidates, and that of the policy. Shape: -> []."""
        config, dynamic = run.config, run.dynamic
        layers = dynamic.num_layers
        k = int(step.rng.integers(1, max(2, layers)))
        masks = first_masks(layers)
        prior = depth_prior(layers).numpy()
        policy: Any = dynamic.policy
        prior[: policy.after] = np.inf  # these always run
        drawn = random_masks(step.rng, config.candidates, layers, k, prior)
        masks = torch.cat([masks, _new(drawn, masks[k - 1 : k])])
        out = dynamic.forward_masks(batch, masks)
        losses = _losses(run, out, targets)  # [masks, batch]
        loss = losses[layers - 1].mean()
        if layers == 1:
            return loss
        rows = [k - 1, *range(layers, len(masks))]
        budget = torch.full((len(targets),), k, device=out.features.device)
        scores = policy.scores(out.features, out.frame_mask, budget)[:, policy.after :]
        energy = scores @ masks[rows][:, policy.after :].float().T.to(scores.device)
        share = energy.softmax(-1)  # [batch, candidates]
        candidates = losses[rows].T
        weight = share.detach()
        if step.position < config.random_share:
            weight = torch.full_like(weight, 1 / len(rows))
        chosen = (weight * candidates).sum(1).mean()
        expected = (share * candidates.detach()).sum(1).mean()
        whole: Tensor = FULL * loss + losses[: layers - 1].mean() + CANDIDATES * chosen + expected
        return whole


def _new(masks: Tensor, known: Tensor) -> Tensor:
    """Return those of `masks` that are not among the `known`, each once. Shape: [masks, layers]."""
    seen = {tuple(mask) for mask in known.tolist()}
    fresh = [m for m in dict.fromkeys(map(tuple, masks.tolist())) if m not in seen]
    return torch.tensor(fresh, dtype=torch.bool).view(-1, masks.shape[1])


def _losses(run: Run, out: MaskLogits, targets: Targets) -> Tensor:
    """Return the loss of each input under each mask; full depth learns from the labels only.

    Shape: -> [masks, batch].
    """
    full, distill = run.dynamic.num_layers - 1, run.config.distill
    hard = run.task.losses(out.logits, out.frame_mask, targets)
    teacher = out.logits[full].detach()
    soft = run.task.distances(out.logits, teacher, out.frame_mask, targets)
    mixed = (1 - distill) * hard + distill * soft
    return torch.cat([mixed[:full], hard[full : full + 1], mixed[full + 1 :]])
