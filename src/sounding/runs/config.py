"""`TrainConfig`: everything that decides a training, in one dataclass that loads from YAML."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..typed import read_yaml, to_yaml

METHODS = ("input", "static", "random", "dld", "i3d", "early-exit", "full")
FREEZE = ("front-end", "encoder", "none")
SKIP = ("auto", "identity", "norm", "adapter")
GATES = ("global", "local")
SELECTOR_FIT = ("joint", "search", "library")
HEADS = ("auto", "own", "shared")
RECOGNITION = ("ctc", "decoder")
PRECISION = ("auto", "bf16", "fp32")
SHARES = ("lr_warmup", "random_share", "distill", "noise_share", "speed_change", "mask_share")
MAY_BE_NONE = ("batch_seconds", "lr_head", "max_seconds")
MAY_BE_NUMBERS = ("vocabulary",)  # texts that a number says as well
MOST = {  # beyond these is a slip, which would take time or memory without end
    "epochs": 10_000,
    "batch_size": 1_000_000,
    "seed": 2**32 - 1,
    "candidates": 1000,
    "selector_after": 1000,
}


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        backbone: a name of `sounding.weights`, a local path or a hub id.
        method: "input" (the selector), "static" (learned scores that ignore the input, trained as
            "input" is), "random" (a random mask per batch, each layer kept with probability 0.5:
            LDASR), "dld" (as random, learning from the run `teacher`), "i3d" (gates by
            Gumbel-softmax with a budget penalty), "early-exit" (a head after each layer, summed
            losses) or "full" (full depth only).
        epochs: passes over the training clips; may be a fraction.
        batch_size: clips a step, at most.
        batch_seconds: seconds of audio a step, at most, padding counted; None for no limit.
        seed: of the data order, the budgets, the noise and the new weights.
        lr_encoder, lr_selector, lr_head: peak learning rates (AdamW, linear warm-up and decay).
            None for `lr_head` is 1e-2 for CTC, which answers with nothing but blanks until its head
            has learned, and 1e-3 for classes.
        weight_decay: of AdamW, on matrices.
        lr_warmup: share of the steps with a rising learning rate.
        clip_norm: largest gradient norm.
        candidates: random masks beside the first k layers in each step, among which the selector
            learns to choose (methods "input" and "static").
        random_share: share of the steps, at the start, in which all candidates count alike for
            the encoder; after it they count as the selector's probabilities say.
        distill: from 0 to 1, how much a reduced depth learns from the full depth's answers in
            place of the labels (methods "input" and "static").
        selector_after: layers that run before the selector reads: 0 for the input features.
        selector_fit: "joint" (with the encoder), or after it to the losses of all masks: "search"
            (a score for each layer) or "library" (a choice among a few masks) (method "input").
        gates: "global" or "local" (method "i3d").
        gate_penalty: weight of the squared distance of the mean gate to 0.5 (method "i3d").
        teacher: a finished run of method "full" (method "dld").
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
            "auto": "adapter" where the heads are shared and the method is "input" or "static",
            otherwise "identity".
        heads: "own" (a head for each number of kept layers), "shared", or "auto": own for the
            methods "input", "static" and "early-exit".
        recognition: how texts are recognized: "ctc" (a new head) or "decoder" (the model's own).
        language: of the texts, for a decoder of many languages.
        vocabulary: for "ctc": "characters", or a number of tokens, for pieces of words.
        precision: of the forward pass in training: "fp32", "bf16" (autocast; weights stay fp32), or
            "auto": bf16 where the processor computes with it natively.
        max_seconds: use only the start of longer clips; None refuses clips over 30 s.
        checkpoint_seconds: time between checkpoints.
    """

    backbone: str = "whisper-base"
    method: str = "input"
    epochs: float = 5.0
    batch_size: int = 16
    batch_seconds: float | None = None
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
    selector_fit: str = "joint"
    gates: str = "global"
    gate_penalty: float = 5.0
    teacher: str = ""
    noise_share: float = 0.0
    speed_change: float = 0.0
    mask_share: float = 0.0
    backbone_masking: bool = False
    freeze: str = "front-end"
    skip: str = "auto"
    heads: str = "auto"
    recognition: str = "ctc"
    language: str = "en"
    vocabulary: str = "characters"
    precision: str = "auto"
    max_seconds: float | None = None
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("method", METHODS),
            ("freeze", FREEZE),
            ("skip", SKIP),
            ("gates", GATES),
            ("heads", HEADS),
            ("selector_fit", SELECTOR_FIT),
            ("recognition", RECOGNITION),
            ("precision", PRECISION),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is one of {', '.join(allowed)}; got {getattr(self, name)!r}"
                )
        for name in ("epochs", "batch_size", "lr_encoder", "lr_selector", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0; got {getattr(self, name)!r}")
        for name in MAY_BE_NONE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, or null; got {value!r}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more; got {self.seed!r}")
        for name in (
            "candidates",
            "selector_after",
            "gate_penalty",
            "weight_decay",
            "checkpoint_seconds",
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more; got {getattr(self, name)!r}")
        if (self.method == "dld") != bool(self.teacher):
            raise ValueError(
                'method "dld" needs teacher: a finished run of method "full"'
                if self.method == "dld"
                else f'teacher is for method "dld", not {self.method!r}'
            )
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share from 0 to 1; got {getattr(self, name)!r}")
        if self.speed_change > 0.5:
            raise ValueError(f"speed_change is at most 0.5; got {self.speed_change!r}")
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be finite; got {value!r}")
            if isinstance(value, str) and value.encode(errors="replace").decode() != value:
                raise ValueError(f"{name} has to be UTF-8; got {value!r}: rename that")
            if name in MOST and value > MOST[name]:
                raise ValueError(f"{name} is at most {MOST[name]:,}; got {value:.3g}")

    @property
    def augments(self) -> bool:
        """Whether a training clip changes from epoch to epoch."""
        return bool(self.noise_share or self.speed_change or self.mask_share)

    @property
    def has_exits(self) -> bool:
        """Whether each number of kept layers has a head of its own."""
        if self.heads == "auto":
            if self.recognition == "decoder":  # one decoder answers at every depth
                return False
            return self.method in ("input", "static", "early-exit")
        return self.heads == "own"

    @property
    def skip_path(self) -> str:
        """What `skip` means for the method."""
        if self.skip != "auto":
            return self.skip
        adapts = self.method in ("input", "static") and not self.has_exits
        return "adapter" if adapts else "identity"

    def to_yaml(self) -> str:
        """The configuration as YAML that `from_values` takes back."""
        return to_yaml(dataclasses.asdict(self))

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> TrainConfig:
        """From a mapping; texts are read as numbers where a field has one, as on a command line.

        Raises:
            ValueError: an unknown name or a value of the wrong kind; the text lists the names.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(map(str, set(values) - set(fields)))
        if unknown:
            raise ValueError(f"unknown setting {', '.join(unknown)}; known: {', '.join(fields)}")
        made: dict[str, Any] = {}
        for name, value in values.items():
            default: Any = fields[name].default
            if value is not None or name not in MAY_BE_NONE:
                made[name] = _typed(name, value, float if default is None else type(default))
        return cls(**made)

    @classmethod
    def from_yaml(cls, path: Path | str, **changes: Any) -> TrainConfig:
        """From a YAML file, with `changes` on top.

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
            raise ValueError(f"{path}: {error}") from None


def _typed(name: str, value: Any, kind: type) -> Any:
    """A value as its field has it: a number also from its text, nothing from a bool."""
    if kind is str:
        if name in MAY_BE_NUMBERS and type(value) is int:
            return str(value)
        if not isinstance(value, str):
            raise ValueError(f"{name} takes a text, in quotes; got {_shown(value)}")
        return value
    if kind is bool:
        known = {"true": True, "yes": True, "false": False, "no": False}  # also as a text of --set
        if str(value).lower() not in known:
            raise ValueError(f"{name} takes true or false; got {_shown(value)}")
        return known[str(value).lower()]
    try:
        if isinstance(value, bool):  # which is a number to Python
            raise TypeError
        made = kind(value)
        if kind is int and isinstance(value, float) and made != value:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        article = "an" if kind is int else "a"
        raise ValueError(f"{name} takes {article} {kind.__name__}; got {_shown(value)}") from None
    return made


def _shown(value: Any) -> str:
    """With what YAML makes a bool of."""
    if isinstance(value, bool):
        return "true (or yes, or on)" if value else "false (or no, or off)"
    return reprlib.repr(value)
