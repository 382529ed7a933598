"""What an exported model says of itself: JSON in the `metadata_props` of the ONNX file.

Beside it stands the sha256 of the file, computed with zeros in its own place, so that a flipped
bit in a weight is an error and not a wrong answer.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ..budget import Budget, threshold_for
from ..data.folder import Task
from ..errors import SoundingError, UsageError
from ..files import UNSET, file_seal_holds, set_seal
from ..typed import check, parse_json

KEY = "sounding"  # of the JSON in `metadata_props`
CHECKSUM = "sounding_sha256"  # of the checksum there
FORMAT = 1
GATES = "gates"  # what alone read a threshold, where earlier exports do not say it

# What is beyond these is damage, and would cost memory or time without end.
Layers = Annotated[int, Field(ge=1, le=1000)]
Rate = Annotated[int, Field(ge=4000, le=768_000)]
Length = Annotated[float, Field(gt=0, le=3600)]  # seconds
Cost = Annotated[float, Field(ge=0, le=1e18)]


class ModelError(SoundingError, ValueError):
    """An exported model that cannot be used; the text says why and what to do."""


@dataclass(frozen=True)
class Metadata:
    """What is known of an exported model.

    Attributes:
        format: of these data.
        task: "classification", "tags" (several classes a clip) or "text" (by CTC).
        labels: the classes or the tokens, in the order of the logits.
        rate: of the audio, in Hz.
        features: what `features.extractor` takes.
        limit_seconds: of a clip.
        max_seconds: longer clips are cut here by default, as in training; None for no cut.
        layers: L.
        selector: its kind.
        mask: the layers of a graph that has no choice, [layers]; None where it chooses.
        mean_budgets: [mean, threshold] by rising mean; empty where there are none.
        macs: [seconds, base, layer] by rising length: multiply-accumulates of front end, selector
            and head, and of a layer, for an input of that length.
        precision: "fp32" or "int8".
        backbone, licence: whose weights these are, and their licence where it is known.
        data: name and digest of the training data.
        commit, versions, opset: of what made it.
        confidence: by what an input under a mean budget is sure of its likeliest class: "sigmoid"
            where it may have several. Earlier exports stop by "softmax" there too.
        reads_threshold: whether the selector serves mean budgets, by a threshold that it reads.
    """

    format: int
    task: Task
    labels: Annotated[list[str], Field(min_length=1, max_length=1_000_000)]
    rate: Rate
    features: dict[str, Any]
    limit_seconds: Length
    max_seconds: Length | None
    layers: Layers
    selector: str
    mask: list[bool] | None
    mean_budgets: list[tuple[float, float]]
    macs: Annotated[list[tuple[Length, Cost, Cost]], Field(min_length=1)]
    precision: str
    backbone: str
    licence: str | None
    data: dict[str, Any]
    commit: str | None
    versions: dict[str, str]
    opset: int
    confidence: Literal["softmax", "sigmoid"] = "softmax"
    reads_threshold: bool = False

    def __post_init__(self) -> None:
        if self.mask is not None and (len(self.mask) != self.layers or not any(self.mask)):
            raise ValueError("mask: expected one layer at least, of all layers")
        if self.features.get("rate", self.rate) != self.rate:
            raise ValueError("features.rate: expected the rate of the audio")
        for name, limit in (("mean_budgets", self.layers), ("macs", None)):
            places = [row[0] for row in getattr(self, name)]
            if places != sorted(set(places)) or (limit and any(not 0 < x <= limit for x in places)):
                raise ValueError(f"{name}: expected rows that rise")

    def to_json(self) -> str:
        """Return the metadata as JSON text."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Metadata:
        """Read the metadata from JSON text.

        Raises:
            ModelError: damaged, or of another format.
        """
        says: Any = {"error": ModelError, "what": "are damaged", "advice": "export it again"}
        values = parse_json(text, dict[str, Any], "its metadata", **says)
        made_in = values.get("format")
        if isinstance(made_in, int) and made_in != FORMAT:
            raise ModelError(
                f"made in format {made_in}, and this version of sounding reads format {FORMAT}: "
                "export it again"
            )
        values.setdefault("reads_threshold", values.get("selector") == GATES)
        return check(values, cls, "its metadata", **says)

    def budget(self, budget: Any) -> tuple[int, float | None]:
        """Turn a budget into the number of kept layers and the threshold that it stands for.

        Returns:
            (k, None), or (L, threshold) for a mean budget.

        Raises:
            UsageError: a budget that is not allowed, or that this model cannot keep.
        """
        asked = Budget.parse(budget)
        if self.mask is not None:
            return self._fixed(asked), None
        if asked.is_exact:
            return asked.kept_layers(layers=self.layers)[0], None
        mean = asked.mean_layers(layers=self.layers)
        if not self.mean_budgets:
            raise UsageError("this model has no mean budgets: give a number of layers")
        return self.layers, threshold_for(mean, self.mean_budgets)

    def _fixed(self, asked: Budget) -> int:
        assert self.mask is not None
        has = sum(self.mask)
        fits = asked.is_exact and asked.kept_layers(layers=self.layers)[0] == has
        if asked == Budget.full() or fits:
            return has
        raise UsageError(
            f"this model always runs the same {has} of {self.layers} layers: leave the budget "
            "out, or export one that chooses (without --mask and --layers)"
        )


def sealed(data: bytes) -> bytes:
    """Set the checksum of a serialized model in which it is `UNSET`."""
    return set_seal(data, data.index(UNSET.encode(), data.index(CHECKSUM.encode())))


def check_seal(path: Path, digest: str) -> None:
    """Check a file against the checksum that it says it has.

    Raises:
        ModelError: it is not the file that was exported.
    """
    if not file_seal_holds(path, digest, CHECKSUM):
        raise ModelError(
            f"{path} is not the file that was exported (its sha256 differs): it is damaged or was "
            "changed; copy it again, or export it again"
        )
