"""What a model says of one clip."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Answer:
    """The likeliest class of a clip, and what it took to find it.

    Attributes:
        file: the path, or "" for samples.
        probability: of `label`, by the model.
        kept_layers: k, as asked for; with a mean budget, as many as ran.
        executed_layers: indexes of the layers that really ran.
        layers: L, of which these are.
        milliseconds: of the model, without reading the file and its features.
        logits: of all classes. Shape: [labels].
    """

    file: str
    label: str
    probability: float
    kept_layers: int
    executed_layers: list[int]
    layers: int
    milliseconds: float
    logits: np.ndarray = field(repr=False, compare=False)

    @classmethod
    def of(
        cls,
        logits: np.ndarray,
        executed: np.ndarray,
        labels: list[str],
        *,
        file: str = "",
        kept_layers: int | None = None,
        milliseconds: float = 0.0,
    ) -> Answer:
        """From what a model puts out.

        Args:
            kept_layers: as asked for; None for as many as ran.

        Shape: logits [labels]; executed [layers] bool.
        """
        exponents = np.exp(logits.astype(np.float64) - logits.max())
        best = int(logits.argmax())
        ran = np.flatnonzero(executed).tolist()
        return cls(
            file=file,
            label=labels[best],
            probability=float(exponents[best] / exponents.sum()),
            kept_layers=len(ran) if kept_layers is None else kept_layers,
            executed_layers=ran,
            layers=len(executed),
            milliseconds=milliseconds,
            logits=logits,
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON, without the logits."""
        values = asdict(self)
        del values["logits"]
        return values


def show(answer: Answer) -> str:
    """One line for people: a filled block for each layer that ran."""
    blocks = "".join("■" if i in answer.executed_layers else "·" for i in range(answer.layers))
    return (
        f"{answer.file}: {answer.label} ({100 * answer.probability:.0f} %)  layers {blocks} "
        f"{len(answer.executed_layers)} of {answer.layers}  {answer.milliseconds:.0f} ms"
    )
