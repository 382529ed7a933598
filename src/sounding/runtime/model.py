"""Exported models, run by ONNX Runtime: one file, or a directory of parts."""

from __future__ import annotations

import json
import math
import os
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, local
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
import onnxruntime

from ..budget import Budget
from ..data.audio import MIN_SECONDS, Seconds, check_length, check_samples
from ..data.features import load_audio
from ..data.folder import Clip
from ..errors import UsageError
from ..files import recover, sha256
from ..typed import check, read_json
from .answer import Answer, confidence, not_finite
from .features import extractor
from .inputs import Samples, file_name, one_channel
from .metadata import CHECKSUM, KEY, Metadata, ModelError, check_seal
from .profile import LENGTHS, ROUNDS, Profile, Table, between, fitting_layers, measure

MANIFEST = "model.json"  # of a split export
LARGEST = 16  # inputs in a batch
MOST_THREADS = 1024  # beyond what any device has
FLOAT, BOOL = "tensor(float)", "tensor(bool)"
SPINNING = "session.intra_op.allow_spinning"  # of ONNX Runtime
DAMAGED: dict[str, Any] = {"what": "is damaged", "advice": "copy it again, or export it again"}
Audio: TypeAlias = str | os.PathLike[str] | Samples


def load(
    path: Path | str,
    *,
    threads: int | None = None,
    unload: bool = False,
    options: onnxruntime.SessionOptions | None = None,
    profile: Path | str | None = None,
) -> Model:
    """Load what `sounding export` wrote: a file, or a directory (--split).

    Args:
        threads: that a layer may use; by default one for each core.
        profile: of this device, for budgets in time; by default the one beside the model
            (`profile_path`), if there is one.
        unload: of a directory, keep in memory only the parts that the last call used.
        options: of ONNX Runtime, in place of ours, which let no thread spin.

    Raises:
        ModelError: a missing, damaged or foreign file.
        UsageError: no thread, or too many.
    """
    path = Path(path)
    if not path.exists():
        recover(path)
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"{threads} threads: give 1 to {MOST_THREADS}")
    if options is None:
        options = onnxruntime.SessionOptions()
        # Threads that spin while they wait are somewhat faster on an idle device, but wait in the
        # way of other programs, and of the other parts of a split export: docs/device.md.
        options.add_session_config_entry(SPINNING, "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors, which are raised as well
    model: Model = Split(path, options, unload=unload) if path.is_dir() else OneFile(path, options)
    model.threads = threads or os.cpu_count() or 1
    beside = profile_path(path)
    if profile is not None or beside.exists():
        model.profile = Profile.load(beside if profile is None else profile)
    return model


def profile_path(model: Path | str) -> Path:
    """Return where `sounding calibrate` writes the profile of a model: beside it."""
    path = Path(model)
    return path.with_name(f"{path.name}.profile.json")


def is_exported(path: Path | str) -> bool:
    """Return whether `path` looks like an exported model.

    A file does by its name, a directory by its files.
    """
    path = Path(path)
    return path.suffix == ".onnx" or (path / MANIFEST).exists()


@dataclass(frozen=True)
class Manifest:
    """What the file `MANIFEST` of a split export says.

    Attributes:
        model: as `Metadata`.
        after: layers that run before the selector reads.
        per_input: of each further input of a layer, whether its first dimension is the batch.
        batches: whether inputs run together.
        files: sha256 of each part, by its name.
    """

    model: dict[str, Any]
    after: int
    per_input: list[bool]
    batches: bool
    files: dict[str, str]


class Model(ABC):
    """An exported model.

    Attributes:
        path: of the file or directory.
        meta: what it says of itself.
        largest: the most inputs that run together.
        threads: that a layer may use.
        profile: what it takes on this device, or None.
    """

    largest = 1
    threads = 1
    profile: Profile | None = None

    def __init__(self, path: Path, meta: Metadata) -> None:
        self.path, self.meta = path, meta
        self._digest: str | None = None
        self._checked: Profile | None = None
        try:
            self.extract = extractor(meta.features)
        except ValueError as error:
            raise ModelError(f"{path}: {error}") from None

    def run(
        self, audio: Audio, budget: Any = None, *, max_seconds: Seconds | None = None
    ) -> Answer:
        """Classify one clip.

        Args:
            audio: a file, or samples at `meta.rate`, as `inputs.one_channel` takes them: floats of
                about -1 to 1 or integer PCM. Shape: [samples].
            budget: kept layers: 3, "50%", "mean:3"; None for full depth. With a profile of
                this device also a time: "40ms" for the clip, "rtf:0.1"; and "1.5gmac": the most
                layers that fit, one at least.
            max_seconds: use only the start of a longer clip.

        Raises:
            AudioError: a clip that cannot be used, or to which the answer is not finite.
            TypeError: no clip at all.
            UsageError: a budget that is not allowed.
        """
        return self.run_many([audio], budget, max_seconds=max_seconds)[0]

    def run_many(
        self, clips: Sequence[Audio], budget: Any = None, *, max_seconds: Seconds | None = None
    ) -> list[Answer]:
        """Classify clips, and return the answers in their order; arguments as for `run`.

        A split export runs clips of one length together, each layer on just those that kept it.
        Nothing is padded, so that no answer depends on the other clips (within float noise). One
        file runs one clip at a time.
        """
        if isinstance(clips, str | os.PathLike):
            raise TypeError(f"run_many takes a list of clips, and run one: {clips}")
        given = Budget.parse(budget)
        limit = given if given.is_limit else None
        asked = (0, None) if limit else self.meta.budget(given)
        same: dict[Any, list[int]] = defaultdict(list)
        features = [self.features(clip, max_seconds) for clip in clips]
        for index, one in enumerate(features):
            chosen = asked if limit is None else (self.fitting(limit, self.seconds(one)), None)
            same[one.shape, *chosen].append(index)
        answers: dict[int, Answer] = {}
        for (_, k, threshold), indexes in same.items():
            for start in range(0, len(indexes), self.largest):
                rows = indexes[start : start + self.largest]
                began = perf_counter()
                logits, executed = self.predict(
                    np.stack([features[row] for row in rows]), k, threshold
                )
                milliseconds = 1000 * (perf_counter() - began) / len(rows)
                for row, own, ran in zip(rows, logits, executed, strict=True):
                    if not np.isfinite(own).all():
                        raise not_finite(file_name(clips[row]))
                    answers[row] = Answer.of(
                        own,
                        ran,
                        self.meta.labels,
                        task=self.meta.task,
                        file=file_name(clips[row]),
                        kept_layers=k if threshold is None else None,
                        milliseconds=milliseconds,
                    )
        return [answers[index] for index in range(len(clips))]

    def fitting(self, limit: Budget, seconds: Seconds) -> int:
        """Return the most layers that a limit allows an input of that length.

        Raises:
            ModelError: no profile, or one of another model or device.
        """
        if self.meta.mask is not None:
            raise UsageError("this model always runs the same layers: leave the budget out")
        if limit.kind == "gmac":
            places, base, layer = np.array(self.meta.macs).T

            def cost(k: int) -> float:
                return between(seconds, places, (base + k * layer) / 1e9)

        else:
            profile = self.checked_profile()

            def cost(k: int) -> float:
                return profile.expected(seconds, k, self.threads, sure=True)

        return fitting_layers(limit, cost, seconds, self.meta.layers)

    def checked_profile(self) -> Profile:
        """Return the profile, if it is of this very model and device.

        Raises:
            ModelError: there is none, or another one.
        """
        if self.profile is None:
            raise ModelError(
                f"a budget in time needs a profile of this device: sounding calibrate {self.path}"
            )
        if self._checked is not self.profile:
            self.profile.check(self.digest(), self.threads)
            if self.profile.layers != self.meta.layers:
                raise ModelError(
                    f"the profile has times for {self.profile.layers} layers, and the model has "
                    f"{self.meta.layers}: calibrate again"
                )
            self._checked = self.profile
        return self.profile

    def digest(self) -> str:
        """Return the sha256 of the model.

        That of a directory is of its manifest, which has those of the rest.
        """
        if self._digest is None:
            self._digest = sha256(self.path / MANIFEST if self.path.is_dir() else self.path)
        return self._digest

    def calibrate(
        self,
        lengths: Sequence[Seconds] = LENGTHS,
        rounds: int = ROUNDS,
        show: Callable[[int, int], None] = lambda done, total: None,
    ) -> Table:
        """Time this model on this device; the arguments are those of `profile.measure`."""
        if self.meta.mask is not None:
            raise UsageError("a model of fixed layers has nothing to calibrate")
        return measure(
            lambda features, k: self.predict(features[None], k),
            self.extract,
            self.meta,
            lengths,
            rounds,
            show,
        )

    def seconds(self, features: np.ndarray) -> Seconds:
        """Return the length of the audio that features are of."""
        return len(features) * self.meta.features.get("hop", 1) / self.meta.rate

    def features(self, audio: Audio, max_seconds: Seconds | None = None) -> np.ndarray:
        """Return the features of one clip.

        Shape: as `samples` takes it -> [frames, bins] or [samples].
        """
        return self.extract(self.samples(audio, max_seconds))

    def samples(self, audio: Audio, max_seconds: Seconds | None = None) -> np.ndarray:
        """Return the samples of one clip, checked and cut.

        Shape: `audio` as `run` takes it -> [samples] float32.
        """
        rate, limit = self.meta.rate, self.meta.limit_seconds
        cut = self.meta.max_seconds if max_seconds is None else max_seconds
        if cut is not None and not MIN_SECONDS <= cut < math.inf:
            raise UsageError(f"max_seconds is {cut}: give at least {MIN_SECONDS}, or None")
        if isinstance(audio, str | os.PathLike):
            samples = load_audio(Clip(Path(audio), "", "test"), rate, cut, limit)
        else:
            samples = one_channel(audio)
            check_samples(samples, rate, "the audio")
            samples = samples if cut is None else samples[: math.ceil(cut * rate)]
        check_length(samples, rate, limit, file_name(audio) or "the audio")
        return samples

    def check_answer(self, logits: np.ndarray, executed: np.ndarray, batch: int) -> None:
        """Refuse what is no answer of this model to so many inputs.

        Raises:
            ModelError: the graph does not fit its description.
        """
        labels, rank = len(self.meta.labels), 3 if self.meta.task == "text" else 2
        fits = logits.ndim == rank and (len(logits), logits.shape[-1]) == (batch, labels)
        if not fits or executed.shape != (batch, self.meta.layers):
            raise ModelError(
                f"{self.path} is damaged: it answers with logits {list(logits.shape)} and layers "
                f"{list(executed.shape)} to {batch} inputs, for {labels} labels and "
                f"{self.meta.layers} layers; export it again"
            )

    @abstractmethod
    def predict(
        self, features: np.ndarray, k: int, threshold: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return logits and the layers that ran.

        Args:
            k: kept layers of each input.
            threshold: of a mean budget, in place of k.

        Shape: features [batch, frames, bins] or [batch, samples] -> [batch, labels] float32,
        [batch, layers] bool.
        """


class OneFile(Model):
    """A graph that chooses its own layers, or one of a fixed mask. One input at a time."""

    def __init__(self, path: Path, options: onnxruntime.SessionOptions) -> None:
        self.session = _session(path, options)
        says = self.session.get_modelmeta().custom_metadata_map
        if KEY not in says:
            raise ModelError(
                f"{path} was not made by `sounding export`: it says no labels and no features"
            )
        check_seal(path, says.get(CHECKSUM, ""))
        super().__init__(path, _metadata(path, says[KEY]))
        inputs = {"features": FLOAT}
        if self.meta.mask is None:
            inputs["k"] = "tensor(int64)"
        if self.meta.mean_budgets:
            inputs["threshold"] = FLOAT
        _check_graph(path, self.session, inputs, {"logits": FLOAT, "executed_layers": BOOL})
        self.inputs = list(inputs)

    def predict(
        self, features: np.ndarray, k: int, threshold: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return logits and the layers that ran, for a batch of one, as `Model.predict`."""
        threshold = np.inf if threshold is None else threshold
        feed = {
            "features": features,
            "k": np.array(k, np.int64),
            "threshold": np.array(threshold, np.float32),
        }
        feed = {name: feed[name] for name in self.inputs}
        logits, executed = _run(self.session, self.path, ["logits", "executed_layers"], feed)
        self.check_answer(logits, executed[None], len(features))
        return logits, executed[None]


class Split(Model):
    """A front end, a selector, layers and heads, each loaded when it is needed first.

    A batch may be mixed: each layer runs on just the inputs that kept it.

    Attributes:
        loaded: the parts in memory, by name.
    """

    def __init__(
        self, path: Path, options: onnxruntime.SessionOptions, *, unload: bool = False
    ) -> None:
        read = _read_manifest(path)
        super().__init__(path, _metadata(path / MANIFEST, json.dumps(read["model"])))
        manifest = check(read, Manifest, path / MANIFEST, error=ModelError, **DAMAGED)
        if not 0 <= manifest.after < self.meta.layers:
            raise ModelError(
                f"{path / MANIFEST} is damaged (after is {manifest.after}): export again"
            )
        self.options, self.unload = options, unload
        self.loaded: dict[str, onnxruntime.InferenceSession] = {}
        self._calls: dict[int, set[str]] = {}  # the parts that each call in progress has used
        self._call = local()  # `used`: those of the call of this thread
        self._loading: dict[str, Lock] = defaultdict(Lock)
        self._lock = Lock()  # of the books, never held while a part is loaded or runs
        self.files, self.after = manifest.files, manifest.after
        self.per_input = manifest.per_input
        self.largest = LARGEST if manifest.batches else 1

    def predict(
        self, features: np.ndarray, k: int, threshold: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return logits and the layers that ran, as `Model.predict`.

        Several threads may call it at once.
        """
        used = self._call.used = set()
        with self._lock:
            self._calls[id(used)] = used
        try:
            return self._predict(features, k, threshold)
        finally:
            with self._lock:
                del self._calls[id(used)]
                if self.unload:
                    needed = used.union(*self._calls.values())
                    self.loaded = {n: s for n, s in self.loaded.items() if n in needed}

    def _predict(
        self, features: np.ndarray, k: int, threshold: float | None
    ) -> tuple[np.ndarray, np.ndarray]:
        state, *extras = self.run_part("front", {"features": features})
        stops = threshold is not None and not self.meta.reads_threshold
        layers, batch = self.meta.layers, len(state)
        mask = np.ones((batch, layers), bool)
        for index in range(layers):
            if stops:
                mask[:, index] = self._going(index, state, mask, threshold)
            elif index < self.after:
                mask[:, index] = index < k
            elif index == self.after and (k < layers or threshold is not None):
                mask = self._choose(state, k, threshold)
            state = self._layer(index, state, extras, mask[:, index])
        logits = self._answer(state, mask.sum(1))
        self.check_answer(logits, mask, batch)
        return logits, mask

    def _choose(self, state: np.ndarray, k: int, threshold: float | None) -> np.ndarray:
        feed: dict[str, Any] = {"state": state, "k": np.full(len(state), k, np.int64)}
        if self.meta.reads_threshold:
            feed["threshold"] = np.array(np.inf if threshold is None else threshold, np.float32)
        mask = self.run_part("selector", feed)[0]
        return self._fitting("selector", mask, (len(state), self.meta.layers), np.bool_)

    def _going(
        self, index: int, state: np.ndarray, mask: np.ndarray, threshold: float | None
    ) -> np.ndarray:
        """Return which inputs are not sure enough after `index` layers. Shape: -> [batch] bool."""
        assert threshold is not None
        if index == 0:
            return np.ones(len(state), bool)
        going = mask[:, index - 1].copy()
        rows = np.flatnonzero(going)
        if len(rows):
            left = state[rows]
            for later in range(index, self.meta.layers):
                left = self._skip(later, left)
            logits = self._answer(left, np.full(len(rows), index))
            sure = confidence(logits, several=self.meta.confidence == "sigmoid")
            going[rows] = sure.astype(np.float32) < np.float32(threshold)
        return going

    def _layer(
        self, index: int, state: np.ndarray, extras: list[np.ndarray], keep: np.ndarray
    ) -> np.ndarray:
        """Run layer `index` on the inputs that keep it, and the skip path on the others."""
        if not keep.any():
            return self._skip(index, state)
        rows = slice(None) if keep.all() else np.flatnonzero(keep)
        feed = {"state": state[rows]}
        for number, (extra, per_input) in enumerate(zip(extras, self.per_input, strict=True)):
            feed[f"extra_{number}"] = extra[rows] if per_input else extra
        out = self.run_part(f"layer_{index}", feed)[0]
        self._fitting(f"layer_{index}", out, feed["state"].shape, np.float32)
        if keep.all():
            return out
        state = state.copy()
        state[~keep] = self._skip(index, state[~keep])
        state[rows] = out
        return state

    def _skip(self, index: int, state: np.ndarray) -> np.ndarray:
        name = f"skip_{index}"
        if name not in self.files:
            return state
        out = self.run_part(name, {"state": state})[0]
        return self._fitting(name, out, state.shape, np.float32)

    def _answer(self, state: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Answer by the head of as many layers as each input ran. Shape: kept [batch] int."""
        parts: dict[int, np.ndarray] = {}
        for k in np.unique(kept).tolist():
            rows = np.flatnonzero(kept == k)
            name = f"head_{k}" if f"head_{k}" in self.files else "head"
            logits = self.run_part(name, {"state": state[rows]})[0]
            self._fitting(name, logits, (len(rows), *logits.shape[1:]), np.float32)
            parts |= dict(zip(rows.tolist(), logits, strict=True))
        return np.stack([parts[row] for row in range(len(kept))])

    def run_part(self, name: str, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run one part by its name ("front", "layer_3", ...), loaded if it is not.

        Raises:
            ModelError: its file is missing or damaged.
        """
        with self._lock:
            used: set[str] = getattr(self._call, "used", set())
            used.add(name)
            session, loading = self.loaded.get(name), self._loading[name]
        if session is None:
            with loading:  # one thread loads it, the others that need it wait
                session = self.loaded.get(name) or self._load(name)
                with self._lock:
                    self.loaded[name] = session
        # another thread may forget the part meanwhile
        return _run(session, self.path / f"{name}.onnx", None, feed)

    def _fitting(
        self, name: str, made: np.ndarray, shape: tuple[int, ...], kind: type
    ) -> np.ndarray:
        """Return what a part made, if it has the shape that the others expect."""
        if made.shape != shape or made.dtype != kind:
            raise ModelError(
                f"{self.path / name}.onnx gives {made.dtype} {list(made.shape)}, expected "
                f"{list(shape)}: it does not belong to the others; export it again"
            )
        return made

    def _load(self, name: str) -> onnxruntime.InferenceSession:
        path = self.path / f"{name}.onnx"
        if not path.is_file():
            raise ModelError(f"{path} is missing: copy the whole directory, or export it again")
        if sha256(path) != self.files.get(name):
            raise ModelError(
                f"{path} is not the file that was exported (its sha256 differs): it is damaged; "
                "copy it again, or export it again"
            )
        session = _session(path, self.options)
        outputs = 1 + len(self.per_input) if name == "front" else 1
        if len(session.get_outputs()) != outputs:
            raise ModelError(f"{path} has not the {outputs} outputs of its part: export it again")
        return session


def _session(path: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    if not path.is_file():
        raise ModelError(f"{path}: no such file, expected a model of `sounding export`")
    try:
        return onnxruntime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime has a class for each reason and no common one
        raise ModelError(
            f"{path} cannot be loaded: it is damaged or no ONNX model; copy it again, or export "
            f"it again ({_reason(error)})"
        ) from None


def _run(
    session: onnxruntime.InferenceSession,
    path: Path,
    names: list[str] | None,
    feed: dict[str, np.ndarray],
) -> list[np.ndarray]:
    try:
        return session.run(names, feed)
    except Exception as error:  # as above
        raise ModelError(
            f"{path} cannot answer ({_reason(error)}): it is damaged or short of memory; export it "
            "again, or give a shorter clip"
        ) from None


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _check_graph(
    path: Path,
    session: onnxruntime.InferenceSession,
    inputs: dict[str, str],
    outputs: dict[str, str],
) -> None:
    for wanted, found in (
        (inputs, {one.name: one.type for one in session.get_inputs()}),
        (outputs, {one.name: one.type for one in session.get_outputs()}),
    ):
        if found != wanted:
            has, should = (
                ", ".join(f"{name} {kind}" for name, kind in some.items())
                for some in (found, wanted)
            )
            raise ModelError(f"{path} has a graph of {has[:200]}, not of {should}: export it again")


def _metadata(path: Path, text: str) -> Metadata:
    try:
        return Metadata.from_json(text)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    if not path.is_file():
        raise ModelError(f"{directory} has no {MANIFEST}: it was not made by `sounding export`")
    read: dict[str, Any] = read_json(path, dict[str, Any], error=ModelError, **DAMAGED)
    if not isinstance(read.get("model"), dict):
        raise ModelError(f"{path} is damaged (model is missing): export it again")
    return read
