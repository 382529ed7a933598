"""The directory of a dynamic model: what stands in it beside the plain model, sealed and checked.

DIR/model.safetensors, config.json, ...  as `transformers` writes them
DIR/PART.safetensors                     selector, skip path, exits, decoder selector, updates
DIR/sounding.json                        the `Description`, with the sha256 of all files
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any

import torch
import transformers
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import nn

from ..errors import UsageError
from ..files import recover, sha256, write_sealed_json
from ..typed import check, read_json
from .heads import HEADS

CONFIG = "sounding.json"
# a policy has the name of its file from before it was called so
POLICY, SKIP, EXITS, DECODER_POLICY = "selector", "skip", "exits", "decoder_selector"
UPDATES = "updates"
FORMAT = 2
RESTORE = "restore it, or save the model again"


@dataclass(frozen=True)
class Description:
    """What `sounding.json` says of a dynamic model.

    Attributes:
        format: of this description.
        model: name of the model's class.
        selector, decoder_selector: the `config()` of each, where there is one.
        skip: kind of the skip path.
        exits: the `config()` of the exits, where there are some.
        mean_budgets: [mean, threshold] by rising mean.
        updates: the `config()` of the updates, where there are some.
        layers: of the encoder.
        sha256: of the files, by name. Earlier versions listed the weights only.
        versions: of what wrote it.
        weights: of parts without their model, its `rounded_digest`; None where the model is there.
        trained, decoder_trained: as of `DynamicModel`; unknown of what earlier versions wrote.
    """

    format: int
    model: str
    selector: dict[str, Any]
    skip: str
    exits: dict[str, Any] | None
    mean_budgets: list[tuple[float, float]]
    layers: Annotated[int, Field(ge=1, le=10_000)]
    sha256: dict[str, str]
    versions: dict[str, str] = field(default_factory=dict)
    decoder_selector: dict[str, Any] | None = None
    trained: bool | None = None
    decoder_trained: bool | None = None
    updates: dict[str, Any] | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        if any(before >= after for (before, _), (after, _) in pairwise(self.mean_budgets)):
            raise UsageError("mean_budgets are not [mean, threshold] by rising mean")
        outside = [name for name in self.sha256 if not _is_file_name(name)]
        if outside:
            raise UsageError(f"{outside[0]!r} is not the name of a file beside it")
        needed = {POLICY: True, SKIP: self.skip == "adapter", EXITS: self.exits is not None}
        needed[UPDATES] = self.updates is not None
        needed[DECODER_POLICY] = self.decoder_selector is not None
        for part, is_needed in needed.items():
            if is_needed and file_of(part) not in self.sha256:
                raise UsageError(f"sha256 does not list {file_of(part)}")


def _is_file_name(name: str) -> bool:
    """Return whether a name stays within its directory, on every system."""
    parts = {PurePosixPath(name).name, PureWindowsPath(name).name}
    return parts == {name} and name not in ("", ".", "..") and "\0" not in name


def file_of(part: str) -> str:
    """Return the name of the file with the weights of a part."""
    return f"{part}.safetensors"


def write_parts(directory: Path, parts: Mapping[str, nn.Module | None], **description: Any) -> None:
    """Write the weights of the parts, and the description with the sha256 of all files.

    Args:
        directory: with all other files of the model.
        parts: by `POLICY`, ...
        description: the other attributes of a `Description`.
    """
    for name, module in parts.items():
        values = {} if module is None else module.state_dict()
        state = {key: value.contiguous() for key, value in values.items()}
        if state or name == POLICY:
            save_file(state, directory / file_of(name))
    files = sorted(path for path in directory.iterdir() if path.is_file())
    said = Description(
        format=FORMAT,
        sha256={path.name: sha256(path) for path in files},
        versions={name: version(name) for name in ("torch", "transformers")},
        **description,
    )
    write_sealed_json(directory / CONFIG, asdict(said))


def read_description(directory: Path) -> Description:
    """Read the description in a directory, and check all files against it.

    Raises:
        ValueError: not such a directory, or a missing, truncated or changed file.
    """
    recover(directory)
    path = directory / CONFIG
    if not path.is_file():
        raise UsageError(
            f"{directory} has no {CONFIG}: it was not made by save_pretrained of a dynamic model"
        )
    read: dict[str, Any] = read_json(path, dict[str, Any], what="is damaged", advice=RESTORE)
    if read.get("format", FORMAT) != FORMAT:
        raise UsageError(f"{path} has format {read['format']!r}, this version reads {FORMAT}")
    description = check(read, Description, path, what="is damaged", advice=RESTORE)
    if description.weights is None:  # without it, transformers would take a default one
        read_json(directory / "config.json", dict[str, Any], what="is damaged", advice=RESTORE)
    for name, expected in description.sha256.items():
        _check_file(directory / name, expected)
    return description


def _check_file(path: Path, expected: str) -> None:
    try:
        found = sha256(path)
    except FileNotFoundError:
        raise UsageError(f"{path.parent}: {path.name} is missing: {RESTORE}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): {RESTORE}") from None
    if found != expected:
        raise UsageError(
            f"{path} is not the file that was saved (its sha256 differs): it is damaged or was "
            f"changed; {RESTORE}"
        )


def state_digest(module: nn.Module) -> str:
    """Return a digest of all weights and buffers of a module."""
    made = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        made.update(name.encode())
        made.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return made.hexdigest()


def load_part(module: nn.Module, directory: Path, part: str) -> None:
    """Load the weights of a part into it.

    Raises:
        Exception: of safetensors or torch, for a file that does not fit.
    """
    module.load_state_dict(load_file(directory / file_of(part)))


def model_class_named(name: str) -> Any:
    """Return a class of `transformers`, or of ours; None where there is none."""
    return HEADS.get(name) or getattr(transformers, name, None)
