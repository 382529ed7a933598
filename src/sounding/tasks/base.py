"""What is asked of a model: the head, the targets, the loss, the prediction and its score.

`Task` has a default for all of it but the loss. To add a task: docs/add-a-task.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import kl_div

from ..data.features import collate, extractor_layout
from ..data.folder import AudioFolder, Clip
from ..data.folder import Task as DataKind
from ..model.dynamic import DynamicModel
from ..policies.confidence import certainty, confidence
from ..statistics import ratio_bootstrap
from .imitation import Batch, Imitation, Target, Targets
from .setup import Setup

__all__ = ["Batch", "Prediction", "Score", "Target", "Targets", "Task", "divergence"]


class Prediction(NamedTuple):
    """What a model answers to a batch, on the processor.

    Attributes:
        texts: the class or the text of each input.
        executed: the layers that ran. Shape: [batch, layers] bool.
        logits: None where there are none, as of texts that a decoder generates.
    """

    texts: list[str]
    executed: Tensor
    logits: Tensor | None


class Score(NamedTuple):
    """The score of many clips, with its 95 % interval.

    Attributes:
        metric: its name in files.
        cer: of texts, the character error rate.
    """

    metric: str
    value: float
    low: float
    high: float
    cer: float | None = None


class Task(Imitation, Setup):
    """One class a clip, unless a subclass says otherwise; a subclass has to define the loss.

    Its labels, tokenizer and model come from `Setup`.

    Attributes:
        metric: the name in files of `count` over `weight`.
        titles: of the metrics of this task, as people read them.
        runtime: what `sounding.runtime` does with the logits of an export: "classification" (the
            likeliest label), "tags" (all above 0, or the highest) or "text" (greedy CTC). None:
            nothing that fits, and an export is refused with `no_export`.
        by_frame: whether the logits are those of the encoder's frames.
        batches: whether clips of several lengths may share a batch outside of a training.
        cuts: whether what is longer than the model's window is cut by the model itself.
        takes_beam: whether a beam search may look for the text.
        transcribes: whether it writes down what is said.
        token_by_token: whether it writes so, one call of a decoder for each token.
        by_mask: whether there are logits under every mask, which a study compares.
        too_short, too_short_advice: what is said of clips with fewer frames than `frames` asks for.
        pipeline_tag, title: of a model card.
    """

    metric: ClassVar[str] = "error"
    titles: ClassVar[Mapping[str, str]] = {}
    runtime: ClassVar[DataKind | None] = "classification"
    no_export: ClassVar[str] = "the runtime cannot read the logits of this task: it stays in Python"
    by_frame: ClassVar[bool] = False
    batches: ClassVar[bool] = True
    cuts: ClassVar[bool] = False
    takes_beam: ClassVar[bool] = False
    transcribes: ClassVar[bool] = False
    token_by_token: ClassVar[bool] = False
    by_mask: ClassVar[bool] = True
    too_short: ClassVar[str] = "are too short for their targets"
    too_short_advice: ClassVar[str] = "leave them out, or join them to their neighbours"
    pipeline_tag: ClassVar[str] = "audio-classification"
    title: ClassVar[str] = "An audio classifier"

    # --- the clips ------------------------------------------------------------------------

    def targets(self, folder: AudioFolder, clips: Sequence[Clip]) -> list[Target]:
        """Return what each clip is to be answered with."""
        known: dict[str, Target] = {}
        for clip in clips:
            if clip.target not in known:
                known[clip.target] = Target((folder.label_index(clip),), clip.target)
        return [known[clip.target] for clip in clips]

    def weight(self, target: Target) -> int:
        """Return how much of a target can be wrong: one class, or so many words."""
        return 1

    def frames(self, target: Target) -> int:
        """Return how many frames of the encoder a target takes at least."""
        return 1

    def positions(self, target: Target) -> int:
        """Return how many positions of a decoder a target takes; 0 without a decoder."""
        return 0

    def collate(
        self, features: Sequence[NDArray[np.float32]], extractor: Any, window: int | None
    ) -> Batch:
        """Return a batch as the model takes it, from the features of clips.

        Args:
            window: the most frames that the model takes, where it has such a limit.

        Shape: features of [frames, bins] or [samples] each.
        """
        batch: Batch = collate(features, *extractor_layout(extractor))
        if bool(batch["attention_mask"].all()):  # nothing is padded (AST: ever)
            del batch["attention_mask"]
        return batch

    def inputs(self, batch: Batch, targets: Targets | None) -> Batch:
        """Return a batch with what the model takes beside features.

        For a decoder these are the tokens before each one; without targets the start only.
        """
        return batch

    # --- training -------------------------------------------------------------------------

    def losses(self, logits: Tensor, frame_mask: Tensor | None, targets: Targets) -> Tensor:
        """Return the loss of each clip under each mask.

        Shape: logits [masks, batch, ...], frame_mask [batch, frames] bool or None
        -> [masks, batch].
        """
        raise NotImplementedError(f"{type(self).__name__} has to define losses")

    def distances(
        self, logits: Tensor, teacher: Tensor, frame_mask: Tensor | None, targets: Targets
    ) -> Tensor:
        """Return the Kullback-Leibler divergence from a teacher, in the units of `losses`.

        Shape: logits [masks, batch, ...], teacher [batch, ...] -> [masks, batch].
        """
        return divergence(logits, teacher)

    # --- prediction -----------------------------------------------------------------------

    @torch.inference_mode()
    def predict(self, dynamic: DynamicModel, batch: Batch, choice: Mapping[str, Any]) -> Prediction:
        """Return what a model answers to a batch.

        Args:
            choice: the budget or the mask, as the model takes it.
        """
        out = dynamic(**batch, **choice)
        valid, logits = self.frame_mask(dynamic, batch, out.logits), out.logits.cpu()
        valid = None if valid is None else valid.cpu()
        return Prediction(self.decode(logits, valid), out.executed_layers, logits)

    def frame_mask(self, dynamic: DynamicModel, batch: Batch, logits: Tensor) -> Tensor | None:
        """Return which frames of the logits are no padding, where there are logits a frame.

        Shape: logits [batch, ...] -> [batch, frames] bool.
        """
        return dynamic.frame_mask(batch, logits.shape[1]) if self.by_frame else None

    def decode(self, logits: Tensor, frame_mask: Tensor | None) -> list[str]:
        """Return the class or the text of each input. Shape: logits [batch, ...]."""
        return [self.labels[index] for index in logits.argmax(-1).tolist()]

    def confidence(self, logits: Tensor, frame_mask: Tensor | None) -> Tensor:
        """Return how sure predictions are, as `policies.confidence.confidence` does.

        A mean budget stops by it. Shape: logits [batch, ...] -> [batch].
        """
        return confidence(logits, frame_mask, several=self.confidence_by == "sigmoid")

    def certainty(self, logits: Tensor, frame_mask: Tensor | None) -> Tensor:
        """Return how sure predictions are, as `policies.confidence.certainty` does."""
        return certainty(logits, frame_mask, several=self.confidence_by == "sigmoid")

    # --- how good it is -------------------------------------------------------------------

    def count(self, texts: Sequence[str], targets: Targets) -> list[float]:
        """Return how many errors are in predicted texts, at most `weight` as a rule."""
        return [float(text != target.text) for text, target in zip(texts, targets, strict=True)]

    def errors(self, logits: Tensor, frame_mask: Tensor | None, targets: Targets) -> Tensor:
        """Return how many errors there are under each mask. Shape: as `losses`, float."""
        counts = [self.count(self.decode(one, frame_mask), targets) for one in logits]
        return torch.tensor(counts, dtype=torch.float)

    def details(self, predicted: Prediction, targets: Targets) -> NDArray[np.float64] | None:
        """Return what `score` needs of each clip of a batch beside its errors; None for nothing.

        Shape: -> [batch, ...].
        """
        return None

    def score(
        self, errors: NDArray[np.float64], details: NDArray[np.float64] | None, targets: Targets
    ) -> Score:
        """Return the score of all clips; by default `metric`, which falls as clips come right.

        Args:
            details: of all clips, of the first draw.

        Shape: errors [draws, clips].
        """
        weight = np.array([self.weight(target) for target in targets], dtype=np.float64)
        return Score(self.metric, *ratio_bootstrap(errors.mean(0), weight))

    def knows(self) -> tuple[str, list[str]]:
        """Return what the model knows, for a model card: a heading, and the parts."""
        return "Classes", self.labels


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence over the last dimension.

    Shape: logits [masks, batch, ..., labels], teacher [batch, ..., labels] -> [masks, batch, ...].
    """
    given = logits.float().log_softmax(-1)
    target = teacher.float().log_softmax(-1).expand_as(given)
    return kl_div(given, target, log_target=True, reduction="none").sum(-1)
