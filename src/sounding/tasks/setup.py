"""What a task is made of: its labels and tokenizer, and the model with its head."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

from ..data.folder import AudioFolder
from ..data.folder import Task as DataKind
from ..data.text import tokens_of
from ..model.dynamic import DynamicModel
from .heads import classifier


class Settings(Protocol):
    """The settings of a training that a task reads."""

    @property
    def backbone(self) -> str:
        """A name of `sounding.weights`, a local path or a hub id."""

    @property
    def language(self) -> str:
        """The language of the texts."""

    @property
    def vocabulary(self) -> str:
        """The tokens of texts: "characters", or how many pieces of words."""


class Setup:
    """The part of a `Task` that is settled before the first clip.

    Args:
        labels: the classes, or the tokens of `tokenizer`, in the order of the logits.
        tokenizer: of a task with texts.
        settings: of the training.
        beam: finds the text of a clip in its logits [frames, tokens], where `Task.takes_beam`.

    Attributes:
        data: what a folder has to hold: "classification" (a label a clip), "tags" or "text".
        confidence_by: what makes probabilities of logits; see `Task.confidence`.
        exits: whether a head can answer after each layer, and a mean budget stop by its answer.
        head_rate: the learning rate of a new head, where the settings name none.
    """

    data: ClassVar[DataKind] = "classification"
    confidence_by: ClassVar[Literal["softmax", "sigmoid"]] = "softmax"
    exits: ClassVar[bool] = True
    head_rate: ClassVar[float] = 1e-3

    def __init__(
        self,
        labels: Sequence[str] = (),
        *,
        tokenizer: Any = None,
        settings: Settings | None = None,
        beam: Callable[[Tensor], str] | None = None,
    ) -> None:
        self.labels = list(labels)
        self.tokenizer = tokenizer
        self.settings = settings
        self.beam = beam

    @classmethod
    def make_tokenizer(cls, settings: Settings, folder: AudioFolder, directory: Path) -> Any:
        """Return the tokenizer of a new run; None for a task without texts.

        Args:
            directory: of the run, to keep one that was made from the training texts.
        """
        return None

    @classmethod
    def load_tokenizer(cls, directory: Path) -> Any:
        """Return the tokenizer that lies beside a saved model; None for a task without texts."""
        return None

    @classmethod
    def labels_of(cls, folder: AudioFolder, tokenizer: Any) -> list[str]:
        """Return what the logits are of: the tokens, or the classes of a folder."""
        return list(folder.labels) if tokenizer is None else tokens_of(tokenizer)

    def build(self, path: Path | str) -> Any:
        """Return the pretrained model in `path` with the head of this task, a new one if need be.

        Raises:
            ValueError: a model that this task cannot use.
        """
        return classifier(path, self.labels, several=self.confidence_by == "sigmoid")

    def mismatch(self, model: nn.Module) -> str:
        """Say how the labels differ from those of a loaded model; "" where they do not."""
        known: Any = model.config
        if len(self.labels) == known.num_labels:
            return ""
        return f"names {len(self.labels)} classes, and its model knows {known.num_labels}"

    def pretrained(self, dynamic: DynamicModel) -> nn.Module:
        """Return the part that was pretrained, which learns at the rate of the encoder."""
        base: nn.Module = dynamic.base
        return base

    def room(self, model: nn.Module) -> float:
        """Return how many positions the decoder of a model has."""
        return math.inf
