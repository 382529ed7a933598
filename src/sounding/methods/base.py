"""What a training method is: the `Method`, and the `Step` that it takes the loss of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
from torch import Tensor, nn

from ..data.features import FeatureSet
from ..data.folder import AudioFolder, Clip
from ..policies import Policy, StaticScores
from ..policies.base import MeanBudgets
from ..runs.run import Batch, Run, new_run
from ..tasks import find_task
from ..tasks.base import Targets

# how a study answers test clips, see `study.arms`: with masks that ignore the input; at the first
# 1, 2, ... layers, stopping where the answer is sure; by choices from pooled features, with
# controls; or by running the model at every budget
ArmKind: TypeAlias = Literal["blind", "depths", "choices", "real"]
Settings: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """One training step: its place in the training, and its own random numbers.

    All randomness of a step comes from (seed, step), so that a resumed training repeats it.

    Attributes:
        whole: makes of a mean over the clips of this process that over the whole batch; see
            `Processes.mean`. A loss that is no mean over clips needs it.
        rows: which of the training clips are in this part of the batch.
    """

    index: int
    total: int
    rng: np.random.Generator
    whole: Callable[[Tensor], Tensor] = lambda mean: mean
    rows: Sequence[int] = ()

    @property
    def position(self) -> float:
        """The position in the training, from 0 at the first step to 1 at the last."""
        return self.index / max(1, self.total - 1)


class Look(NamedTuple):
    """How rows of a method are shown: what they are called, and a colour."""

    label: str
    color: str


class Method:
    """How a dynamic model comes to be: what is built, the loss of a step, and what comes after.

    A method has no state, and is registered by its name (`register_method`).

    Attributes:
        name: in settings and files.
        label, color: in tables and plots.
        short: of the label, where more follows it; by default the label.
        mean_color: of its mean budgets.
        below: name and look of its rows below full depth, where these are not of the method.
        own_heads: whether each number of kept layers gets a head of its own by default.
        adapts: whether a skipped layer gets an adapter by default, where the heads are shared.
        needs_teacher: whether it learns from a finished run of `teacher_method`.
        draws_masks: whether it was trained for masks from outside, which are drawn at random.
        arms: how a study answers with it.
        best_static: whether a study looks for its best static mask of each size.
        ablations: variants of it for a study, as settings by what follows its name.
        shows_layers: whether a sweep keeps which layers it chose for each clip.
        in_demo: whether the demo shows it.
        labelled: whether it learns from the targets of the clips.
        own_teacher: whether `teacher` is the run that it starts from, and may be left out.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    color: ClassVar[str] = "#555555"
    mean_color: ClassVar[str] = "#999999"
    short: ClassVar[str] = ""
    below: ClassVar[tuple[str, Look] | None] = None
    own_heads: ClassVar[bool] = False
    adapts: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = False
    teacher_method: ClassVar[str] = ""
    draws_masks: ClassVar[bool] = False
    arms: ClassVar[ArmKind] = "real"
    best_static: ClassVar[bool] = False
    ablations: ClassVar[Mapping[str, Settings]] = {}
    shows_layers: ClassVar[bool] = False
    in_demo: ClassVar[bool] = False
    labelled: ClassVar[bool] = True
    own_teacher: ClassVar[bool] = False

    def policy(self, config: Any, *, width: int, layers: int) -> Policy:
        """Make the policy that chooses the layers; by default it keeps the first k.

        Args:
            config: the settings of the run.
            width, layers: of the encoder.
        """
        return StaticScores.first(layers)

    def start(self, config: Any, folder: AudioFolder, info: dict[str, Any], out: Path) -> Run:
        """Make the run that is to be trained: by default of a backbone, with a new head.

        Args:
            info: what is known of the data and the program, for run.json.
            out: the directory of the run.
        """
        task = find_task(config.task, folder.task)
        tokenizer = task.make_tokenizer(config, folder, out)
        return new_run(config, task.labels_of(folder, tokenizer), info, tokenizer)

    def prepare(self, run: Run, clips: Sequence[Clip], targets: Targets, out: Path) -> Targets:
        """Do what comes before the first step, and return the targets of the training clips."""
        return targets

    def parameters(self, run: Run) -> Iterable[nn.Parameter] | None:
        """Return what is trained; None for all that the settings do not freeze."""
        return None

    def loss(self, run: Run, batch: Batch, targets: Targets, step: Step) -> Tensor:
        """Return the loss of a step, a mean over the clips of the batch. Shape: -> []."""
        raise NotImplementedError

    def validated(self, layers: int) -> list[int]:
        """Return the depths at which validation clips are measured during a training."""
        return sorted({max(1, round(layers * part / 4)) for part in (1, 2, 3, 4)})

    def calibrate(self, run: Run, features: FeatureSet, precision: str = "fp32") -> MeanBudgets:
        """Return the thresholds of its mean budgets on validation clips; none where it has none."""
        return []

    def finish(self, run: Run, features: FeatureSet, targets: Targets) -> None:
        """Decide what validation clips decide after the last step: thresholds of mean budgets."""
        run.dynamic.mean_budgets = self.calibrate(run, features)


def batch_loss(run: Run, batch: Batch, logits: Tensor, targets: Targets) -> Tensor:
    """Return the mean loss over the clips of a batch that ran once. Shape: logits [batch, ...]."""
    losses: Tensor = run.task.losses(logits[None], run.frame_mask(batch, logits), targets)
    return losses.mean()
