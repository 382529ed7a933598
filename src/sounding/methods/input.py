"""Ours: a selector that reads the input, trained on the losses of candidate masks."""

from __future__ import annotations

from typing import Any

from ..data.features import FeatureSet
from ..policies import InputSelector, Policy
from ..policies.base import MeanBudgets
from ..runs.calibrate import calibrate_confidence
from ..runs.run import Run
from ..runs.search import choose_fallbacks
from ..tasks.base import Targets
from .choice import Choice


class InputDriven(Choice):
    """Lets the input choose where that beats the best static mask on validation clips."""

    name = "input"
    label = "input-driven"
    short = "input"
    color = "#c2255c"
    mean_color = "#e884a8"
    arms = "choices"
    shows_layers = True
    in_demo = True
    ablations = {  # noqa: RUF012
        "shared-head": {"heads": "shared", "skip": "identity"},
        "shared-adapter": {"heads": "shared", "skip": "adapter"},
        "adapter": {"skip": "adapter"},
        "after-1": {"selector_after": 1},
        "shaped": {"random_share": 0.3},
        "no-distill": {"distill": 0.0},
        "depths-only": {"candidates": 0},
    }

    def policy(self, config: Any, *, width: int, layers: int) -> Policy:
        """Make a selector that reads the input."""
        return InputSelector(width, layers, after=min(config.selector_after, layers - 1))

    def calibrate(self, run: Run, features: FeatureSet, precision: str = "fp32") -> MeanBudgets:
        """Return the thresholds of confidence at which inputs stop."""
        return calibrate_confidence(run, features, precision)

    def finish(self, run: Run, features: FeatureSet, targets: Targets) -> None:
        """Calibrate mean budgets, and choose the budgets at which a static mask stands in."""
        super().finish(run, features, targets)
        choose_fallbacks(run, features, targets)


METHOD = InputDriven()
