"""What a run answers to audio files, at a budget: a class, or a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from ..core.budget import Budget, kept_layers, mean_layers
from ..core.plan import confidence
from ..data.audio import Seconds
from ..data.features import load_features
from ..data.folder import Clip
from ..training.runs import Run
from .predict import say


@dataclass(frozen=True)
class Answer:
    """What a run says of one clip.

    Attributes:
        label: the class, or the text.
        probability: of the class; for a text by CTC the mean over the frames of the likeliest
            token's; None from a decoder.
        kept_layers: k, as asked for; with a mean budget, as many as ran.
        executed_layers: indexes of the layers that really ran.
        milliseconds: of the model, without reading the file.
    """

    file: str
    label: str
    probability: float | None
    kept_layers: int
    executed_layers: list[int]
    layers: int
    milliseconds: float

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def classify(
    run: Run,
    files: Sequence[Path | str],
    budget: Budget = None,
    *,
    max_seconds: Seconds | None = None,
) -> Iterator[Answer]:
    """Answer to each file by itself, in order.

    Raises:
        ValueError: a budget that is not allowed.
        AudioError: a file that cannot be used, when its turn comes.
    """
    layers = run.dynamic.num_layers
    asked: int | str
    if isinstance(budget, str) and mean_layers(budget, layers=layers) is not None:
        asked = budget
    else:
        (asked,) = kept_layers(budget, layers=layers, batch=1)
    for file in files:
        features = load_features(
            [Clip(Path(file), "", "test")], run.extractor, max_seconds=max_seconds
        )
        start = perf_counter()
        said = say(run, run.collate(features), asked)
        milliseconds = 1000 * (perf_counter() - start)
        executed = said.executed
        yield Answer(
            file=str(file),
            label=said.texts[0],
            probability=None if said.logits is None else float(confidence(said.logits)),
            kept_layers=asked if isinstance(asked, int) else int(executed.sum()),
            executed_layers=executed[0].nonzero().squeeze(1).tolist(),
            layers=layers,
            milliseconds=milliseconds,
        )


def show(answer: Answer) -> str:
    """One line for people: a filled block for each layer that ran."""
    blocks = "".join("■" if i in answer.executed_layers else "·" for i in range(answer.layers))
    sure = "" if answer.probability is None else f" ({100 * answer.probability:.0f} %)"
    return (
        f"{answer.file}: {answer.label}{sure}  layers {blocks} "
        f"{len(answer.executed_layers)} of {answer.layers}  {answer.milliseconds:.0f} ms"
    )
