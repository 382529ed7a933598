"""Full depth only; below it the first k layers of the same model answer."""

from __future__ import annotations

from torch import Tensor

from ..runs.run import Batch, Run
from ..tasks.base import Targets
from .base import Look, Method, Step, batch_loss


class FullDepth(Method):
    """Fine-tunes at full depth, as without layer dropping."""

    name = "full"
    label = "full depth"
    color = "#444444"
    below = ("first", Look("first k layers", "#8c8c8c"))
    arms = "blind"
    in_demo = True

    def validated(self, layers: int) -> list[int]:
        """Return the full depth, the only one that is trained."""
        return [layers]

    def loss(self, run: Run, batch: Batch, targets: Targets, step: Step) -> Tensor:
        """Return the loss at full depth. Shape: -> []."""
        return batch_loss(run, batch, run.dynamic(**batch).logits, targets)


METHOD = FullDepth()
