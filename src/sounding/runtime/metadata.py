"""What an exported model says of itself: JSON in the `metadata_props` of the ONNX file.

Beside it stands the sha256 of the file, taken with zeros where it stands itself, so that a flipped
bit in a weight is an error and not a wrong answer.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..core.budget import kept_layers, mean_layers, threshold_for
from ..data.folder import COLUMNS, Task

KEY = "sounding"  # of the JSON in `metadata_props`
CHECKSUM = "sounding_sha256"  # of the checksum there
UNSET = "0" * 64
FORMAT = 1


class ModelError(ValueError):
    """An exported model that cannot be used; the text says why and what to do."""


@dataclass(frozen=True)
class Metadata:
    """Of an exported model.

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
    """

    format: int
    task: Task
    labels: list[str]
    rate: int
    features: dict[str, Any]
    limit_seconds: float
    max_seconds: float | None
    layers: int
    selector: str
    mask: list[bool] | None
    mean_budgets: list[tuple[float, float]]
    macs: list[tuple[float, float, float]]
    precision: str
    backbone: str
    licence: str | None
    data: dict[str, Any]
    commit: str | None
    versions: dict[str, str]
    opset: int

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Metadata:
        """Of JSON text.

        Raises:
            ModelError: damaged, or of another format.
        """
        try:
            values = json.loads(text)
            if values["format"] != FORMAT:
                raise ModelError(
                    f"made in format {values['format']}, and this version of sounding reads "
                    f"format {FORMAT}: export it again"
                )
            made = cls(**{one.name: values[one.name] for one in fields(cls)})
            made._check()
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"its metadata are damaged ({error}): export it again") from None
        return made

    def _check(self) -> None:
        if not (isinstance(self.layers, int) and self.layers > 0):
            raise ValueError("no layers")
        if not (isinstance(self.labels, list) and self.labels):
            raise ValueError("no labels")
        if not (isinstance(self.rate, int) and self.rate > 0):
            raise ValueError("no rate")
        if self.task not in COLUMNS:
            raise ValueError(f"task {self.task!r}")
        if any(len(row) != 3 for row in self.macs):
            raise ValueError("costs that are none")
        if self.mask is not None and len(self.mask) != self.layers:
            raise ValueError("a mask of another number of layers")

    def budget(self, budget: Any) -> tuple[int, float | None]:
        """The number of kept layers and the threshold that a budget stands for.

        Returns:
            (k, None), or (L, threshold) for a mean budget.

        Raises:
            ValueError: a budget that is not allowed, or that this model cannot keep.
        """
        mean = mean_layers(budget, layers=self.layers)
        if self.mask is not None:
            return self._fixed(budget), None
        if mean is None:
            return kept_layers(budget, layers=self.layers, batch=1)[0], None
        if not self.mean_budgets:
            raise ValueError("this model has no mean budgets: give a number of layers")
        return self.layers, threshold_for(mean, self.mean_budgets)

    def _fixed(self, budget: Any) -> int:
        assert self.mask is not None
        has = sum(self.mask)
        if budget is None:
            return has
        if mean_layers(budget, layers=self.layers) is None:
            asked = kept_layers(budget, layers=self.layers, batch=1)[0]
            if asked == has:
                return has
        raise ValueError(
            f"this model always runs the same {has} of {self.layers} layers: leave the budget "
            "out, or export one that chooses (without --mask and --layers)"
        )


def sealed(data: bytes) -> bytes:
    """A serialized model whose checksum is `UNSET`, with its checksum set."""
    place = data.index(UNSET.encode(), data.index(CHECKSUM.encode()))
    digest = hashlib.sha256(data).hexdigest().encode()
    return data[:place] + digest + data[place + len(UNSET) :]


def check_seal(path: Path, digest: str) -> None:
    """Check a file against the checksum that it says it has.

    Raises:
        ModelError: it is not the file that was exported.
    """
    wanted = digest.encode()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = data.find(wanted, max(0, data.find(CHECKSUM.encode())))
        found = hashlib.sha256()
        if len(wanted) == len(UNSET) and place >= 0:
            with memoryview(data) as view, view[:place] as before, view[place + 64 :] as after:
                for part in (before, UNSET.encode(), after):
                    found.update(part)
    if found.hexdigest() != digest:
        raise ModelError(
            f"{path} is not the file that was exported (its sha256 differs): it is damaged or was "
            "changed; copy it again, or export it again"
        )
