"""What a model says of one clip."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..data.audio import AudioError
from ..data.folder import Task
from ..data.text import collapse, printable, spelled


@dataclass(frozen=True)
class Answer:
    """The likeliest class of a clip, or its text, and what it took to find it.

    Attributes:
        file: the path, or "" for samples.
        label: the class, classes with ";" between them, or the text.
        probability: of the (likeliest) class; for a text by CTC the mean over the frames of the
            likeliest token's; None from a decoder.
        kept_layers: k, as asked for; with a mean budget, as many as ran.
        executed_layers: indexes of the layers that really ran.
        layers: L, of which these are.
        milliseconds: of the model, without reading the file and its features.
        logits: [labels], or [frames, tokens]; None from a decoder.
    """

    file: str
    label: str
    probability: float | None
    kept_layers: int
    executed_layers: list[int]
    layers: int
    milliseconds: float
    logits: np.ndarray | None = field(repr=False, compare=False)

    @classmethod
    def of(
        cls,
        logits: np.ndarray,
        executed: np.ndarray,
        labels: list[str],
        *,
        task: Task = "classification",
        file: str = "",
        kept_layers: int | None = None,
        milliseconds: float = 0.0,
    ) -> Answer:
        """Make an answer of what a model puts out.

        Args:
            labels: the classes, or the tokens of a text.
            kept_layers: as asked for; None for as many as ran.

        Shape: logits [labels], of a text [frames, labels]; executed [layers] bool.
        """
        ran = np.flatnonzero(executed).tolist()
        if task == "text":
            label = spelled([labels[i] for i in collapse(logits.argmax(-1).tolist())])
        elif task == "tags":
            chosen = (logits > 0) | (logits == logits.max())
            label = ";".join(labels[i] for i in np.flatnonzero(chosen).tolist())
        else:
            label = labels[int(logits.argmax())]
        return cls(
            file=file,
            label=label,
            probability=float(confidence(logits[None], several=task == "tags")[0]),
            kept_layers=len(ran) if kept_layers is None else kept_layers,
            executed_layers=ran,
            layers=len(executed),
            milliseconds=milliseconds,
            logits=logits,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the answer as JSON values, without the logits."""
        values = asdict(self) | {"file": printable(self.file)}
        del values["logits"]
        return values


def confidence(logits: np.ndarray, *, several: bool) -> np.ndarray:
    """Return how sure answers are, as `policies.confidence.confidence` does.

    Args:
        several: whether an input may have several classes, each a yes or no by itself.

    Shape: [batch, labels] or [batch, frames, labels] -> [batch].
    """
    logits = logits.astype(np.float64)
    highest = logits.max(-1, keepdims=True)
    # over the exponents of all classes, or of the yes and the no of the likeliest one
    exponents = np.exp(np.minimum(-highest, 700)) if several else np.exp(logits - highest)
    sure = 1 / (exponents.sum(-1) + several)
    return sure if sure.ndim == 1 else sure.mean(-1)


def not_finite(name: str) -> AudioError:
    """Return the error for a clip to which a model answers with NaN or infinity."""
    return AudioError(
        f"{name or 'the audio'}: the answer is NaN or infinite, of which no class and no text can "
        "be told: look for samples far beyond -1 and 1, or else the model is damaged"
    )


def show(answer: Answer) -> str:
    """Return one line for people, with a filled block for each layer that ran."""
    blocks = "".join("■" if i in answer.executed_layers else "·" for i in range(answer.layers))
    sure = "" if answer.probability is None else f" ({100 * answer.probability:.0f} %)"
    return (
        f"{answer.file}: {answer.label}{sure}  layers {blocks} "
        f"{len(answer.executed_layers)} of {answer.layers}  {answer.milliseconds:.0f} ms"
    )
