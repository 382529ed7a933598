"""Scores that ignore the input, trained as those of `input` are: the control of its choice.

Learned scores are those of Dynamic Encoder Size (arXiv 2407.18930).
"""

from __future__ import annotations

from typing import Any

from ..policies import Policy, StaticScores
from ..policies.static import depth_prior
from .choice import Choice


class LearnedScores(Choice):
    """Learns one score a layer."""

    name = "static"
    label = "static scores"
    color = "#7b4fc9"
    arms = "blind"

    def policy(self, config: Any, *, width: int, layers: int) -> Policy:
        """Make scores that ignore the input and are learned."""
        return StaticScores(depth_prior(layers), learn=True)


METHOD = LearnedScores()
