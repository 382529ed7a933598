"""A run: the directory that a training writes and everything else reads.

RUN/config.yaml             the `TrainConfig`
RUN/run.json                data digest, labels, versions, commit, machine
RUN/log.csv                 loss per step
RUN/model/                  the dynamic model (also loads with plain `from_pretrained`)
RUN/tokenizer/              for recognition
RUN/checkpoint.safetensors  only while the training is not finished
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from .. import __version__
from ..model.backbones import find_backbone
from ..model.heads import HEADS, EncoderForAudioClassification, EncoderForCTC
from ..model.dynamic import DynamicModel, load, selector_width, wrap
from ..policies.selectors import GateSelector, InputSelector, StaticSelector, depth_prior
from ..data.features import (
    Change,
    FeatureSet,
    collate,
    extract,
    extractor_layout,
    load_features,
)
from ..data.folder import Clip
from ..data.folder import Task as TaskName
from ..data.text import tokens_of
from ..files import recover, sha256
from ..machine import processor
from ..progress import progress
from ..typed import check, read_json
from ..weights import pretrained, pretrained_model, read_config, resolve
from .config import TrainConfig
from .randomness import seeded
from ..tasks.kinds import Batch, Classes, Dictation, Recognition, Tags, Task

CONFIG = "config.yaml"
MASKED = "masked_spec_embed"  # stands for masked spans in pretraining; fine-tuned models lack it
LOWEST_RATE, HIGHEST_RATE = 4000, 768_000  # in Hz; any model of speech is between


@dataclass
class Run:
    """A model with all that is needed to train it on or to use it."""

    config: TrainConfig
    dynamic: DynamicModel
    extractor: Any
    info: dict[str, Any]
    teacher: Run | None = None  # in training by method "dld"
    tokenizer: Any = None  # for recognition
    beam: Callable[[Tensor], str] | None = None  # decodes for CTC; by default greedy

    @property
    def labels(self) -> list[str]:
        """The classes, or the tokens, in the order of the logits."""
        return list(self.info["labels"])

    @property
    def task(self) -> Task:
        """Classification, or recognition of one kind."""
        if self.tokenizer is None:
            return (Tags if self.info.get("task") == "tags" else Classes)(self.labels)
        if self.config.recognition == "decoder":
            return Dictation(self.tokenizer)
        return Recognition(self.tokenizer, self.beam)

    @property
    def batches(self) -> bool:
        """Whether inputs of several lengths may share a batch outside of training."""
        return self.config.recognition != "decoder"

    def frame_mask(self, batch: Batch, logits: Tensor) -> Tensor | None:
        """Which frames of answers are no padding, where there is an answer a frame.

        Shape: logits [batch, ...] -> [batch, frames] bool.
        """
        return self.dynamic.frame_mask(batch, logits.shape[1]) if self.task.by_frame else None

    def read(self, clips: Sequence[Clip], title: str, change: Change | None = None) -> FeatureSet:
        """The features of clips, with progress under that title; `change` as `load_features`."""
        with progress(title, len(clips)) as show:
            return load_features(
                clips,
                self.extractor,
                max_seconds=self.config.max_seconds,
                change=change,
                progress=lambda done, total: show(done, ""),
            )

    def collate(self, features: Sequence[np.ndarray]) -> Batch:
        """A batch as the model takes it, from the features of `load_features`."""
        if self.config.recognition == "decoder" and self.dynamic.backbone.window(self.dynamic.base):
            features = _with_silence(features)
        batch = collate(features, *extractor_layout(self.extractor))
        if bool(batch["attention_mask"].all()):  # nothing is padded (AST: ever)
            del batch["attention_mask"]
        return batch


def new_run(
    config: TrainConfig, labels: list[str], info: dict[str, Any], tokenizer: Any = None
) -> Run:
    """A backbone with a new head and selector, by the seed of `config`.

    Args:
        labels: the classes, or the tokens of `tokenizer`.
        tokenizer: for recognition.

    Raises:
        ValueError: an unknown or an unsupported backbone.
    """
    path = resolve(config.backbone)
    with seeded(config.seed):
        if tokenizer is None:
            model = _classifier(str(path), labels, several=info.get("task") == "tags")
        elif config.recognition == "decoder":
            model = _whole(AutoModelForSpeechSeq2Seq, path, dtype=torch.float32)
        else:
            model = _recognizer(str(path), len(labels))
        dynamic = wrap(model, "first", skip=config.skip_path, exits=config.has_exits)
        dynamic.selector = _selector(config, dynamic)
    extractor = _extractor(path)
    return Run(config, dynamic, extractor, {**info, "labels": labels}, tokenizer=tokenizer)


def _extractor(path: Path | str) -> Any:
    """The feature extractor in `path`, which makes features of half a second of noise.

    Raises:
        ValueError: it is damaged or missing.
    """
    extractor = pretrained(AutoFeatureExtractor, path)
    rate = getattr(extractor, "sampling_rate", None)
    try:
        if not isinstance(rate, int) or not LOWEST_RATE <= rate <= HIGHEST_RATE:
            raise ValueError(f"a rate of {rate!r} Hz")
        noise = np.random.default_rng(0).normal(0, 0.1, rate // 2).astype(np.float32)
        if not np.isfinite(extract(noise, extractor)).all():
            raise ValueError("features that are not finite")
    except Exception as error:  # a damaged setting shows in any way
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path}: preprocessor_config.json makes no features: {reason}") from None
    return extractor


def _classifier(path: str, labels: list[str], *, several: bool = False) -> Any:
    """The pretrained model in `path` with a new head: that of `transformers`, or ours.

    Args:
        several: whether an input may have several labels.
    """
    names = dict(enumerate(labels))
    naming: dict[str, Any] = {"id2label": names, "label2id": {n: i for i, n in names.items()}}
    if several:
        naming["problem_type"] = "multi_label_classification"
    loading: dict[str, Any] = {"ignore_mismatched_sizes": True, "dtype": torch.float32, **naming}
    if _saved_by(path, EncoderForAudioClassification):
        return _whole(EncoderForAudioClassification, path, **loading)
    if type(pretrained(AutoConfig, path)) in AutoModelForAudioClassification._model_mapping:
        return _whole(AutoModelForAudioClassification, path, **loading)
    model = _whole(AutoModel, path, dtype=torch.float32)
    return EncoderForAudioClassification.of(model, **naming)


def _whole(kind: Any, path: Path | str, **loading: Any) -> Any:
    """A pretrained model whose head may be new, but not its encoder.

    Raises:
        ValueError: weights of the encoder are not there or do not fit: they would be random ones.
    """
    model, info = pretrained_model(kind, path, output_loading_info=True, **loading)
    _, base = find_backbone(model)
    name = next(name for name, module in model.named_modules() if module is base)
    encoder = {f"{name}.{part}".lstrip(".") for part, _ in base.named_parameters()}
    missing = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    lost = sorted(key for key in missing & encoder if not key.endswith(MASKED))
    if lost:
        raise ValueError(
            f"{path} lacks {len(lost)} of {len(encoder)} weights of its encoder, such as "
            f"{lost[0]}, or has them in other shapes: copy it again, or take another"
        )
    return model


def _saved_by(path: str, head: type) -> bool:
    """Whether the model in `path` is one with this head of ours, as of a run to go on from.

    Raises:
        ValueError: it has the other head of ours.
    """
    try:
        (name,) = read_config(path)["architectures"]
    except (ValueError, KeyError, TypeError):
        return False  # transformers says what is wrong with it
    if not isinstance(name, str):
        return False
    if name in HEADS and HEADS[name] is not head:
        raise ValueError(f"{path} holds an {name}, which this task cannot go on from")
    return name in HEADS


def _with_silence(features: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Log-mel features made as long as the longest one: Whisper's decoder knows no padding mask.

    Silence has the lowest value of a clip: the extractor cuts off what is 80 dB below the loudest.
    """
    longest = max(len(one) for one in features)
    return [
        np.pad(one, ((0, longest - len(one)), (0, 0)), constant_values=one.min())
        for one in features
    ]


def _recognizer(path: str, tokens: int) -> Any:
    """The pretrained model in `path` with a new CTC head: that of `transformers`, or ours.

    A CTC head of as many tokens goes on as it is.
    """
    if _saved_by(path, EncoderForCTC):
        return _whole(
            EncoderForCTC,
            path,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            vocab_size=tokens,
        )
    config = pretrained(AutoConfig, path)
    if getattr(config, "add_adapter", False):
        raise ValueError(f"{path} has an adapter behind its layers: recognition needs one without")
    if type(config) in AutoModelForCTC._model_mapping:
        return _whole(
            AutoModelForCTC,
            path,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            vocab_size=tokens,
            pad_token_id=0,
        )
    if config.model_type == "audio-spectrogram-transformer":
        raise ValueError(f"{path} has no frames in time to recognize a text from: take another")
    model = _whole(AutoModel, path, dtype=torch.float32)
    return EncoderForCTC.of(model, vocab_size=tokens)


def _selector(config: TrainConfig, dynamic: DynamicModel) -> Any:
    """What chooses the layers by the method; the first k where the method has no choice."""
    layers, width = dynamic.num_layers, dynamic.base.config.hidden_size
    if config.method == "input":
        after = min(config.selector_after, layers - 1)
        return InputSelector(width, layers, hidden=selector_width(width), after=after)
    if config.method == "static":
        return StaticSelector(depth_prior(layers), learn=True)
    if config.method == "i3d":
        return GateSelector(width, layers, hidden=selector_width(width), scope=config.gates)
    return StaticSelector.first(layers)


def load_run(directory: Path | str) -> Run:
    """The finished run in `directory`.

    Raises:
        ValueError: not a run, an unfinished one, or a damaged one.
    """
    directory = Path(directory)
    recover(directory / "model")
    if not (directory / "model").is_dir():
        if (directory / "checkpoint.safetensors").exists():
            raise ValueError(
                f"the training in {directory} has not finished: give its `sounding train` command "
                "again to go on"
            )
        raise ValueError(f"{directory} is not a run: `sounding train --out {directory}` makes one")
    info, config = _read(directory)
    dynamic = load(directory / "model")
    extractor = _extractor(directory / "model")
    tokenizer = None
    if info.get("task") == "text":
        own = config.recognition == "decoder"  # a tokenizer of the model, or one that we made
        kind = AutoTokenizer if own else PreTrainedTokenizerFast
        tokenizer = pretrained(kind, directory / "model")
        if info["labels"] != tokens_of(tokenizer):
            raise ValueError(f"{directory} is damaged: run.json names other tokens than its model")
    elif len(info["labels"]) != dynamic.model.config.num_labels:
        raise ValueError(
            f"{directory} is damaged: run.json names {len(info['labels'])} classes, and its model "
            f"knows {dynamic.model.config.num_labels}"
        )
    return Run(config, dynamic, extractor, info, tokenizer=tokenizer)


@dataclass(frozen=True)
class Info:
    """What has to be in run.json; there may be more.

    Attributes:
        labels: the classes, or the tokens, in the order of the logits.
        sha256: of the files beside it, by name.
    """

    labels: Annotated[list[str], Field(min_length=1)]
    task: TaskName = "classification"
    data: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    commit: str | None = None
    machine: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    precision: str | None = None
    sha256: dict[str, str] = field(default_factory=dict)


def _read(directory: Path) -> tuple[dict[str, Any], TrainConfig]:
    """The content of run.json, and that of config.yaml, which it has the checksum of.

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
        raise ValueError(
            f"{directory / CONFIG} is not the file that was trained with (its sha256 differs): it "
            f"is damaged or was changed; {says['advice']}"
        )
    return info, config


def trained_with(config: TrainConfig, info: dict[str, Any]) -> dict[str, Any]:
    """What a result keeps of the training of its model; `info` is that of its run."""
    kept = {key: info.get(key) for key in ("data", "commit", "steps")}
    return {"config": asdict(config), **kept}


def provenance() -> dict[str, Any]:
    """Where a number comes from: versions, commit, machine."""
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
    """The commit of the source tree that runs, "-dirty" if it was changed; None elsewhere.

    Asked once, at the start: the tree may change under a long process, which goes on as it began.
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
