"""A run: the directory that a training writes and everything else reads.

RUN/config.yaml             the `TrainConfig`
RUN/run.json                data digest, labels, versions, commit, machine
RUN/log.csv                 loss per step
RUN/validation.csv          error and loss of the validation clips, where they were measured
RUN/model/                  the dynamic model (also loads with plain `from_pretrained`)
RUN/tokenizer/              of a task that makes one of the training texts
RUN/checkpoint.safetensors  only while the training is not finished
RUN/best.safetensors        likewise: the weights that were best on the validation clips
RUN/features/               likewise: what was decoded of the training clips
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import AutoFeatureExtractor

from .. import __version__
from ..data.features import Change, FeatureSet, extract, load_features
from ..data.folder import Clip
from ..data.folder import Task as DataKind
from ..errors import UsageError
from ..files import recover, sha256
from ..machine import processor
from ..model.dynamic import DynamicModel
from ..model.loading import load
from ..model.wrapping import wrap
from ..progress import progress
from ..registry import METHODS, TASKS
from ..tasks import AUTO, find_task
from ..tasks.base import Batch, Task
from ..typed import check, read_json
from ..weights import pretrained, resolve
from .config import TrainConfig
from .device import PROCESSOR, find_device
from .randomness import seeded

CONFIG = "config.yaml"
LOWEST_RATE, HIGHEST_RATE = 4000, 768_000  # in Hz; any model of speech is between


@dataclass
class Run:
    """A model with all that is needed to train it on or to use it."""

    config: TrainConfig
    dynamic: DynamicModel
    extractor: Any
    info: dict[str, Any]
    teacher: Run | None = None  # in training by a method that learns from one
    lessons: Any = None  # what its teacher makes of the training clips, in such a training
    tokenizer: Any = None  # of a task with texts
    beam: Callable[[Tensor], str] | None = None  # decodes for CTC; by default greedy

    @property
    def labels(self) -> list[str]:
        """The classes, or the tokens, in the order of the logits."""
        return list(self.info["labels"])

    @property
    def task(self) -> Task:
        """What is asked of the model."""
        return _task(self.config, self.info, self.labels, self.tokenizer, self.beam)

    @property
    def method(self) -> Any:
        """The `Method` that it is trained by."""
        return METHODS[self.config.method]

    @property
    def companions(self) -> list[Any]:
        """What is saved beside the model: its feature extractor, and a tokenizer if it has one."""
        return [part for part in (self.extractor, self.tokenizer) if part is not None]

    def frame_mask(self, batch: Batch, logits: Tensor) -> Tensor | None:
        """Return which frames of the logits are no padding, as `Task.frame_mask` does."""
        return self.task.frame_mask(self.dynamic, batch, logits)

    def read(self, clips: Sequence[Clip], title: str, change: Change | None = None) -> FeatureSet:
        """Return the features of clips, with progress under a title.

        `change` is that of `load_features`.
        """
        with progress(title, len(clips)) as show:
            return load_features(
                clips,
                self.extractor,
                max_seconds=self.config.max_seconds,
                change=change,
                progress=lambda done, total: show(done, ""),
            )

    def collate(self, features: Sequence[np.ndarray]) -> Batch:
        """Make a batch as the model takes it, where it is, from features of `load_features`."""
        window = self.dynamic.backbone.window(self.dynamic.base)
        batch = self.task.collate(features, self.extractor, window)
        return {name: value.to(self.dynamic.device) for name, value in batch.items()}


def new_run(
    config: TrainConfig, labels: list[str], info: dict[str, Any], tokenizer: Any = None
) -> Run:
    """Make a run of a backbone with a new head and selector, by the seed of `config`.

    Args:
        labels: the classes, or the tokens of `tokenizer`.
        info: `task` in it is the kind of the data.
        tokenizer: of a task with texts.

    Raises:
        ValueError: an unknown or an unsupported backbone.
    """
    path = resolve(config.backbone)
    with seeded(config.seed):
        model = _task(config, info, labels, tokenizer).build(path)
        dynamic = wrap(model, "first", skip=config.skip_path, exits=config.has_exits)
        width, layers = dynamic.base.config.hidden_size, dynamic.num_layers
        dynamic.policy = METHODS[config.method].policy(config, width=width, layers=layers)
    extractor = _extractor(path)
    return Run(config, dynamic, extractor, {**info, "labels": labels}, tokenizer=tokenizer)


def _task(
    config: TrainConfig,
    info: dict[str, Any],
    labels: list[str],
    tokenizer: Any,
    beam: Callable[[Tensor], str] | None = None,
) -> Task:
    kind = find_task(config.task, info.get("task", "classification"))
    return kind(labels, tokenizer=tokenizer, settings=config, beam=beam)


def _extractor(path: Path | str) -> Any:
    """Load the feature extractor in `path`, and have it make features of half a second of noise.

    Raises:
        ValueError: it is damaged or missing.
    """
    extractor = pretrained(AutoFeatureExtractor, path)
    rate = getattr(extractor, "sampling_rate", None)
    try:
        if not isinstance(rate, int) or not LOWEST_RATE <= rate <= HIGHEST_RATE:
            raise UsageError(f"a rate of {rate!r} Hz")
        noise = np.random.default_rng(0).normal(0, 0.1, rate // 2).astype(np.float32)
        if not np.isfinite(extract(noise, extractor)).all():
            raise UsageError("features that are not finite")
    except Exception as error:  # a damaged setting shows in any way
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(f"{path}: preprocessor_config.json makes no features: {reason}") from None
    return extractor


def load_run(directory: Path | str, device: str = PROCESSOR.type) -> Run:
    """Load the finished run in `directory`.

    Args:
        device: that it computes on, as the setting of `TrainConfig`.

    Raises:
        ValueError: not a run, an unfinished one, or a damaged one.
    """
    directory = Path(directory)
    recover(directory / "model")
    if not (directory / "model").is_dir():
        if (directory / "checkpoint.safetensors").exists():
            raise UsageError(
                f"the training in {directory} has not finished: give its `sounding train` command "
                "again to go on"
            )
        raise UsageError(f"{directory} is not a run: `sounding train --out {directory}` makes one")
    info, config = _read(directory)
    data = info.get("task", "classification")
    if config.task != AUTO and TASKS[config.task].data != data:
        config = replace(config, task=AUTO)  # of before: a way to recognize texts, without texts
    dynamic = load(directory / "model").to(find_device(device))
    tokenizer = find_task(config.task, data).load_tokenizer(directory / "model")
    run = Run(config, dynamic, _extractor(directory / "model"), info, tokenizer=tokenizer)
    mismatch = run.task.mismatch(dynamic.model)
    if mismatch:
        raise UsageError(f"{directory} is damaged: run.json {mismatch}")
    return run


@dataclass(frozen=True)
class Info:
    """What has to be in run.json; there may be more.

    Attributes:
        labels: the classes, or the tokens, in the order of the logits.
        task: the kind of the data.
        sha256: of the files beside it, by name.
    """

    labels: Annotated[list[str], Field(min_length=1)]
    task: DataKind = "classification"
    data: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    commit: str | None = None
    machine: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    precision: str | None = None
    sha256: dict[str, str] = field(default_factory=dict)


def _read(directory: Path) -> tuple[dict[str, Any], TrainConfig]:
    """Return the content of run.json and of config.yaml, whose checksum is in run.json.

    Raises:
        ValueError: either is damaged or was changed.
    """
    path = directory / "run.json"
    says: Any = {"what": "is damaged", "advice": "restore it, or train again"}
    info: dict[str, Any] = read_json(path, dict[str, Any], **says)
    known = {name: info[name] for name in Info.__dataclass_fields__ if name in info}
    expected = check(known, Info, path, **says).sha256.get(CONFIG)
    config = TrainConfig.from_yaml(directory / CONFIG)
    if expected is not None and sha256(directory / CONFIG) != expected:
        raise UsageError(
            f"{directory / CONFIG} is not the file that was trained with (its sha256 differs): it "
            f"is damaged or was changed; {says['advice']}"
        )
    return info, config


def trained_with(config: TrainConfig, info: dict[str, Any]) -> dict[str, Any]:
    """Return what a result keeps of the training of its model; `info` is that of its run."""
    kept = {key: info.get(key) for key in ("data", "commit", "steps")}
    return {"config": asdict(config), **kept}


def provenance() -> dict[str, Any]:
    """Return where a number comes from: versions, commit, machine."""
    return {
        "versions": {
            "sounding": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "numpy")},
        },
        "commit": _commit(),
        "machine": {
            "cpu": processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
        },
    }


@cache
def _commit() -> str | None:
    """Return the commit of the source tree that runs; None outside of one.

    It ends in "-dirty" if the tree was changed.

    It is found once, at the start: the tree may change under a long process, which goes on as it
    began.
    """
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", "--", "src"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")
