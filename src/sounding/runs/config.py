"""`TrainConfig`: everything that decides a training, in one dataclass that loads from YAML."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..registry import METHODS, TASKS
from ..tasks import AUTO, RECOGNITION
from ..typed import read_yaml, to_yaml

FREEZE = ("front-end", "encoder", "none")
SKIP = ("auto", "identity", "norm", "adapter")
GATES = ("global", "local")
HEADS = ("auto", "own", "shared")
STACKS = ("both", "encoder", "decoder")
LOG_TO = ("", "tensorboard", "wandb")
PRECISION = ("auto", "bf16", "fp32")
AUTO_DEVICE = "auto"
SHARES = (
    "lr_warmup",
    "random_share",
    "distill",
    "least_depth",
    "padded_share",
    "noise_share",
    "speed_change",
    "mask_share",
)

POSITIVE = ("epochs", "batch_size", "accumulate", "lr_encoder", "lr_selector", "clip_norm", "rank")
MAY_BE_NONE = ("batch_seconds", "lr_head", "max_seconds")
MAY_BE_NUMBERS = ("vocabulary",)  # texts that a number says as well
FORMER = {"selector_fit": "joint"}  # a selector fitted after the training was no better
FORMER_NAMES = (*FORMER, "recognition")  # of settings: files of before have them
MOST = {  # beyond these is a slip, which would take time or memory without end
    "epochs": 10_000,
    "batch_size": 1_000_000,
    "accumulate": 10_000,
    "seed": 2**32 - 1,
    "candidates": 1000,
    "selector_after": 1000,
    "workers": 1000,
}


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training.

    Attributes:
        backbone: a name of `sounding.weights`, a local path or a hub id.
        method: a name of `sounding.methods`, or of a registered one.
        epochs: passes over the training clips; may be a fraction.
        batch_size: clips a step, at most.
        batch_seconds: seconds of audio a step, at most, padding counted; None for no limit.
        accumulate: a step takes so many times what these two allow, and computes it in as many
            parts, one after the other, whose gradients are added up.
        seed: of the data order, the budgets, the noise and the new weights.
        lr_encoder, lr_selector, lr_head: peak learning rates (AdamW, linear warm-up and decay).
            None for `lr_head` is the rate of the task: 1e-2 for CTC, whose model predicts blanks
            alone until its head has learned, and 1e-3 for the others.
        weight_decay: of AdamW, on matrices.
        lr_warmup: share of the steps with a rising learning rate.
        clip_norm: largest gradient norm.
        candidates: random masks beside the first k layers in each step, among which the selector
            learns to choose (methods that learn from candidates).
        random_share: share of the steps, at the start, in which all candidates count alike for
            the encoder; after it they count as the selector's probabilities say.
        distill: from 0 to 1, how much a reduced depth learns from the full depth's answers in
            place of the labels (methods that learn from candidates).
        selector_after: layers that run before the selector reads: 0 for the input features.
        gates: "global" or "local" (gates).
        gate_penalty: weight of the squared distance of the mean gate to 0.5 (gates).
        teacher: a finished run at full depth, for methods that learn from one.
        rank: of the updates of the encoder's and the decoder's matrices below full depth (methods
            that leave the pretrained weights as they are).
        least_depth: the smallest share of the layers that is trained (the same methods).
        distilled: whose updates are trained (the same methods): "both", "encoder" or "decoder". A
            decoder alone learns from what the teacher heard, which is quick, and in half of the
            steps from what an encoder that was distilled before makes of the clips.
        padded_share: share of the steps in which a model with a fixed window hears some clips
            padded to it, in place of their own length (the same methods).
        noise_share: share of the training clips that get noise, from 0 to 20 dB, anew each epoch.
        speed_change: a training clip is played by up to this share faster or slower, anew each
            epoch.
        mask_share: share of a training clip's time that is masked, anew each epoch, and of its
            frequency bands where the model takes some (SpecAugment, arXiv 1904.08779).
        backbone_masking: whether the backbone's own masking in training is on, as its config.json
            has it (`mask_time_prob`, `mask_feature_prob` of wav2vec 2.0 and those built like it,
            whose default is to mask); what is saved stays the backbone's own.
        freeze: "front-end" (what comes before layer 0), "encoder" (layers too), or "none".
        skip: what passes a skipped layer: "identity", "norm", "adapter" (a small learned map), or
            "auto": "adapter" where the heads are shared and the method trains with one,
            otherwise "identity".
        heads: "own" (a head for each number of kept layers), "shared", or "auto": as
            the method has them.
        task: what is asked: "class", "tags", "ctc" (a text by a new head), "decoder" (a text by the
            model's own decoder), or "auto": the first of these that fits the data.
        language: of the texts, for a decoder of many languages.
        vocabulary: for task "ctc": "characters", or a number of tokens, for pieces of words.
        precision: of the forward pass in training: "fp32", "bf16" (autocast; weights stay fp32), or
            "auto": bf16 where the device computes with it natively, and fp16 on an accelerator
            that does not.
        tf32: whether products in fp32 may be computed in TF32, on an accelerator that has it.
        compile: whether `torch.compile` compiles the layers for the training.
        gradient_checkpointing: whether the layers are run again in the backward pass, in place of
            keeping what is in them: a longer step, and less memory.
        device: "auto" (an accelerator where there is one, else the processor), "cpu", or another
            name of torch's, such as "cuda:1" or "mps". A training goes on on any device.
        workers: processes that read clips and make their features ahead of time; 0 does it between
            the steps. The batches are the same with any number of them.
        cache_gb: how much is kept of the decoded training clips, and how much of those of
            validation, in RUN/features until the training has ended: what is kept is not decoded
            again. 0 keeps nothing.
        max_seconds: use only the start of longer clips; None refuses clips over 30 s.
        validate_epochs: epochs between measurements of the validation clips, at a quarter, half,
            three quarters and all of the layers where the method trains these depths; the model
            that is kept is the best by them. 0 measures nothing, and keeps the last.
        patience: end the training after so many measurements in a row that were no better; 0 takes
            all steps.
        ema: decay of a moving average of the trained weights, which is measured and kept in their
            place; 0 for none. It starts lower, and rises with the steps.
        log_to: "tensorboard" (into RUN/tensorboard) or "wandb", which has to be installed: where
            losses, rates and validation are shown meanwhile. "" for nowhere.
        checkpoint_seconds: time between checkpoints.
    """

    backbone: str = "whisper-base"
    method: str = field(default_factory=lambda: METHODS.default)
    epochs: float = 5.0
    batch_size: int = 16
    batch_seconds: float | None = None
    accumulate: int = 1
    seed: int = 0
    lr_encoder: float = 1e-4
    lr_selector: float = 3e-3
    lr_head: float | None = None
    weight_decay: float = 0.01
    lr_warmup: float = 0.1
    clip_norm: float = 1.0
    candidates: int = 2
    random_share: float = 1.0
    distill: float = 0.5
    selector_after: int = 0
    gates: str = "global"
    gate_penalty: float = 5.0
    teacher: str = ""
    rank: int = 64
    least_depth: float = 0.5
    distilled: str = "both"
    padded_share: float = 0.1
    noise_share: float = 0.0
    speed_change: float = 0.0
    mask_share: float = 0.0
    backbone_masking: bool = False
    freeze: str = "front-end"
    skip: str = "auto"
    heads: str = "auto"
    task: str = AUTO
    language: str = "en"
    vocabulary: str = "characters"
    precision: str = "auto"
    tf32: bool = False
    compile: bool = False
    gradient_checkpointing: bool = False
    device: str = AUTO_DEVICE
    workers: int = 0
    cache_gb: float = 4.0
    max_seconds: float | None = None
    validate_epochs: float = 0.0
    patience: int = 0
    ema: float = 0.0
    log_to: str = ""
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("freeze", FREEZE),
            ("skip", SKIP),
            ("gates", GATES),
            ("heads", HEADS),
            ("task", (AUTO, *TASKS)),
            ("precision", PRECISION),
            ("distilled", STACKS),
            ("log_to", LOG_TO),
        ):
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"{name} is one of {', '.join(allowed)}; got {getattr(self, name)!r}"
                )
        for name in (
            "epochs",
            "batch_size",
            "lr_encoder",
            "lr_selector",
            "clip_norm",
            "rank",
            "accumulate",
        ):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} must be above 0; got {getattr(self, name)!r}")
        for name in MAY_BE_NONE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} must be above 0, or null; got {value!r}")
        if self.seed < 0:
            raise UsageError(f"seed must be 0 or more; got {self.seed!r}")
        for name in (
            "candidates",
            "selector_after",
            "gate_penalty",
            "weight_decay",
            "workers",
            "cache_gb",
            "validate_epochs",
            "patience",
            "checkpoint_seconds",
        ):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} must be 0 or more; got {getattr(self, name)!r}")
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is a share from 0 to 1; got {getattr(self, name)!r}")
        if self.patience and not self.validate_epochs:
            raise UsageError(
                f"patience {self.patience} counts measurements of the validation clips: set "
                "validate_epochs too, such as 1"
            )
        if not 0 <= self.ema < 1:
            raise UsageError(f"ema is from 0 to below 1, such as 0.999; got {self.ema!r}")
        if self.speed_change > 0.5:
            raise UsageError(f"speed_change is at most 0.5; got {self.speed_change!r}")
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"{name} must be finite; got {value!r}")
            if isinstance(value, str) and value.encode(errors="replace").decode() != value:
                raise UsageError(f"{name} has to be UTF-8; got {value!r}: rename that")
            if name in MOST and value > MOST[name]:
                raise UsageError(f"{name} is at most {MOST[name]:,}; got {value:.3g}")
        self._check_method()

    def _check_method(self) -> None:
        """Refuse an unknown method, and a teacher where none is needed, or none where one is."""
        if self.method == METHODS.default and not self.teacher:
            return  # the usual case, for which no method, and no torch, has to be imported
        method = METHODS[self.method]
        if not method.own_teacher and method.needs_teacher != bool(self.teacher):
            raise UsageError(
                f"method {self.method!r} needs teacher: a finished run of method "
                f"{method.teacher_method!r}"
                if method.needs_teacher
                else f"method {self.method!r} learns from no teacher: leave that setting out"
            )

    @property
    def augments(self) -> bool:
        """Whether a training clip changes from epoch to epoch."""
        return bool(self.noise_share or self.speed_change or self.mask_share)

    @property
    def has_exits(self) -> bool:
        """Whether each number of kept layers has a head of its own."""
        if self.heads == "auto":
            if self.task != AUTO and not TASKS[self.task].exits:
                return False
            return bool(METHODS[self.method].own_heads)
        return self.heads == "own"

    @property
    def skip_path(self) -> str:
        """What `skip` means for the method."""
        if self.skip != "auto":
            return self.skip
        adapts = METHODS[self.method].adapts and not self.has_exits
        return "adapter" if adapts else "identity"

    def to_yaml(self) -> str:
        """Return the configuration as YAML that `from_values` takes back."""
        return to_yaml(dataclasses.asdict(self))

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> TrainConfig:
        """Make a configuration of a mapping.

        Texts are read as numbers where a field has one, as on a command line.

        Raises:
            ValueError: an unknown name or a value of the wrong kind; the text lists the names.
        """
        values = _with_task(_without_former(values))
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(map(str, set(values) - set(fields)))
        if unknown:
            raise UsageError(f"unknown setting {', '.join(unknown)}; known: {', '.join(fields)}")
        made: dict[str, Any] = {}
        for name, value in values.items():
            default: Any = fields[name].default
            if default is dataclasses.MISSING:
                default = ""
            if value is not None or name not in MAY_BE_NONE:
                made[name] = _typed(name, value, float if default is None else type(default))
        return cls(**made)

    @classmethod
    def from_yaml(cls, path: Path | str, **changes: Any) -> TrainConfig:
        """Read a configuration from a YAML file, with `changes` on top.

        Raises:
            ValueError: a file that cannot be read, or as `from_values`.
        """
        what = "cannot be read as YAML of settings"
        values: dict[str, Any] = read_yaml(path, dict[str, Any], what=what)
        try:
            return cls.from_values({**values, **changes})
        except ValueError as error:
            if str(error).split()[0] in changes:
                raise
            raise UsageError(f"{path}: {error}") from None


def _without_former(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out settings that earlier versions had, where they say what now is always so.

    Raises:
        UsageError: they say otherwise.
    """
    kept = dict(values)
    for name, only in FORMER.items():
        if kept.pop(name, only) != only:
            raise UsageError(f"{name} is no setting any more: only {only!r} has stayed")
    return kept


def _with_task(values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with `task` in place of `recognition`, which older files have."""
    if "recognition" not in values:
        return values
    values = dict(values)
    given = values.pop("recognition")
    if given not in list(RECOGNITION) or "task" in values:
        raise UsageError(
            f"recognition is one of {', '.join(RECOGNITION)}, and is now called task; got "
            f"{_shown(given)}: give task alone"
        )
    return {**values, "task": RECOGNITION[given]}


def _typed(name: str, value: Any, kind: type) -> Any:
    """Return a value as its field has it: a number also from its text, nothing from a bool."""
    if kind is str:
        if name in MAY_BE_NUMBERS and type(value) is int:
            return str(value)
        if not isinstance(value, str):
            raise UsageError(f"{name} takes a text, in quotes; got {_shown(value)}")
        return value
    if kind is bool:
        known = {"true": True, "yes": True, "false": False, "no": False}  # also as a text of --set
        if str(value).lower() not in known:
            raise UsageError(f"{name} takes true or false; got {_shown(value)}")
        return known[str(value).lower()]
    try:
        if isinstance(value, bool):  # which is a number to Python
            raise TypeError
        made = kind(value)
        if kind is int and isinstance(value, float) and made != value:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        article = "an" if kind is int else "a"
        raise UsageError(f"{name} takes {article} {kind.__name__}; got {_shown(value)}") from None
    return made


def _shown(value: Any) -> str:
    """Return a value as text for people, with what YAML makes a bool of."""
    if isinstance(value, bool):
        return "true (or yes, or on)" if value else "false (or no, or off)"
    return reprlib.repr(value)
