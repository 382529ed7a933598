"""Training: resumable at any step, and the same weights whether it was interrupted or not."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ..data.augment import SPAN_SECONDS, change_speed, mask_spans
from ..data.features import FeatureSet, batches, clip_seconds, extract, read_clips
from ..data.folder import AudioFolder, Clip
from ..data.language import known_languages, language_code
from ..data.noise import add_noise, noise_for
from ..data.text import build_tokenizer, normalize_text, tokens_of
from ..files import (
    LOCK,
    SEAL,
    UNSET,
    atomic_directory,
    atomic_path,
    file_seal_holds,
    locked,
    open_regular,
    remove_dead,
    remove_leftovers,
    seal_file,
    sha256,
    write_sealed_json,
    write_text,
)
from ..methods.steps import TRAIN, Step
from ..policies.selectors import InputSelector
from ..progress import Interrupted, progress, stop_signals
from ..runs.config import TrainConfig
from ..runs.mask_outputs import calibrate
from ..runs.precision import autocast, uses_bf16
from ..runs.randomness import seeded
from ..runs.run import CONFIG, Run, load_run, new_run, provenance
from ..runs.search import choose_fallbacks
from ..tasks.kinds import Target, Targets
from ..weights import pretrained, resolve
from .decay import matrices
from .distributed import Processes, processes
from .fit import CLIPS as FIT_CLIPS
from .fit import SNR_DB as FIT_SNR_DB
from .fit import fit_selector
from .fitting import Frames, check_words, fitting, takes, uncut

SNR_DB = (0.0, 20.0)  # of the noise in training
HEAD_RATE, CTC_HEAD_RATE = 1e-3, 1e-2  # learning rates


def train(config: TrainConfig, folder: AudioFolder, out: Path | str) -> Run:
    """Fine-tune a backbone on a folder by `config`, into the run directory `out`.

    Goes on from the last checkpoint in `out` if there is one, and ends with the same weights as
    without the interruption, bit for bit on the same CPU and number of threads. A finished run
    with the same configuration and data is loaded and returned.

    Clips whose texts do not fit the model are left out, and told: see `fitting`. The global
    generators of random numbers are as they were afterwards.

    Started by `torchrun`, each process takes a part of every batch, and the
    first one writes the files.

    Raises:
        ValueError: `out` holds another run or is in use, or the configuration does not fit the
            data: before the first step, for the validation clips too.
        WriteError: no room is left; there is a checkpoint to go on from.
        Interrupted: on SIGINT or SIGTERM, after saving a checkpoint.
    """
    with processes() as group, seeded(config.seed):
        if group.first:
            check_words(folder, "train")
        with _claimed(Path(out), config, folder, group):
            return _train(config, folder, Path(out), group)


def _train(config: TrainConfig, folder: AudioFolder, out: Path, group: Processes) -> Run:
    if group.first and folder.task == "text":
        _tokenizer(config, folder, out)
    group.wait()
    if (out / "model").is_dir():
        return load_run(out)
    data = {"digest": folder.digest, "name": folder.root.name}
    info = {"data": data, "task": folder.task, **provenance()}
    if folder.task == "text":
        tokenizer = _tokenizer(config, folder, out)
        run = new_run(config, tokens_of(tokenizer), info, tokenizer)
        if config.recognition == "decoder":
            _check_language(run)
    else:
        run = new_run(config, list(folder.labels), info)
    if config.teacher:
        run.teacher = _teacher(config, run)
    clips, targets, source = _training(run, folder)
    held_out = _held_out(run, folder) if group.first else None
    order = _Order(_lengths(config, source, clips), config)
    state = TrainState(run, order.total)
    _fit(run, state, source, order, targets, out, group)
    if group.first:
        if config.method == "input" and config.selector_fit != "joint":
            fit_selector(run, *_for_fit(run, clips, targets))
        if held_out is not None:
            _decide(run, *held_out)
        _finish(run, state, out)
    group.wait()
    return run if group.first else load_run(out)


def _training(run: Run, folder: AudioFolder) -> tuple[list[Clip], list[Target], _Source]:
    """The clips of the training that fit the model, what they are answered with, their audio."""
    clips = uncut(run.config, folder, "train")
    targets = run.task.targets(folder, clips)
    source = _Source(run, clips)
    kept = fitting(run, folder, clips, targets, source.frames())
    source.keep(kept)
    return [clips[index] for index in kept], [targets[index] for index in kept], source


def _held_out(run: Run, folder: AudioFolder) -> tuple[FeatureSet, list[Target]] | None:
    """The validation clips that fit, read before the training, lest one of them stops its end."""
    if not any(clip.split == "validation" for clip in folder.clips):
        return None
    clips = uncut(run.config, folder, "validation")
    targets = run.task.targets(folder, clips)
    features = run.read(clips, "read validation clips")
    kept = fitting(run, folder, clips, targets, Frames.of(run, features))
    return [features[index] for index in kept], [targets[index] for index in kept]


def _decide(run: Run, features: FeatureSet, targets: Targets) -> None:
    """What the validation clips decide: thresholds of mean budgets, and where to choose at all."""
    run.dynamic.mean_budgets = calibrate(run, features)
    if run.config.method == "input":
        choose_fallbacks(run, features, targets)


def _tokenizer(config: TrainConfig, folder: AudioFolder, out: Path) -> Any:
    """That of the run in `out`; the first time it is made from the training texts."""
    if config.recognition == "decoder":
        return _decoder_tokenizer(config)
    directory = out / "tokenizer"
    if not directory.is_dir():
        texts = [normalize_text(clip.target) for clip in folder.split("train")]
        made = build_tokenizer(texts, config.vocabulary)
        with atomic_directory(directory) as temporary:
            made.save_pretrained(temporary)
    return pretrained(PreTrainedTokenizerFast, directory)


def _decoder_tokenizer(config: TrainConfig) -> Any:
    tokenizer = pretrained(AutoTokenizer, resolve(config.backbone))
    if hasattr(tokenizer, "set_prefix_tokens"):  # Whisper; without effect if it knows one language
        language = language_code(config.language)
        tokenizer.set_prefix_tokens(language, "transcribe", predict_timestamps=False)
    return tokenizer


def _check_language(run: Run) -> None:
    """Check that a decoder knows the language of the texts, as far as it says what it knows.

    Raises:
        ValueError: it does not.
    """
    known = known_languages(run.dynamic.generation_config)
    if known:
        language_code(run.config.language, known)


def _for_fit(run: Run, clips: list[Clip], targets: Targets) -> tuple[FeatureSet, Targets]:
    """Some training clips, with noise, for the second stage."""
    seed, rate = run.config.seed, run.extractor.sampling_rate
    rows = np.random.default_rng(seed).permutation(len(clips))[:FIT_CLIPS].tolist()
    change = noise_for(FIT_SNR_DB, rate, seed, copy=2)
    features = run.read([clips[row] for row in rows], "read for the selector", change)
    return features, [targets[row] for row in rows]


def _teacher(config: TrainConfig, run: Run) -> Run:
    teacher = load_run(config.teacher)
    if teacher.labels != run.labels or teacher.config.method != "full":
        raise ValueError(
            f"{config.teacher} is a run of method {teacher.config.method!r} with the classes "
            f"{', '.join(teacher.labels)}: give one of method 'full' on the same data"
        )
    return teacher


def _lengths(config: TrainConfig, source: _Source, clips: Sequence[Clip]) -> Sequence[float]:
    """Of the training clips: in seconds where these count, else in the unit of the features."""
    if config.batch_seconds is None:
        return source.lengths()
    longest = config.max_seconds or math.inf
    return [min(clip_seconds(clip), longest) for clip in clips]


class TrainState:
    """All that changes in a training: the parameters, the optimizer, the step, the log."""

    def __init__(self, run: Run, total: int) -> None:
        self.modules = nn.ModuleDict({"dynamic": run.dynamic})
        _freeze(run)
        self.total = total
        self.step = 0
        self.losses: list[float] = []
        self.optimizer = torch.optim.AdamW(_groups(run, self.modules), foreach=True)

    def save(self, path: Path) -> None:
        """Write a checkpoint, all or nothing."""
        tensors = {f"model.{k}": v.contiguous() for k, v in self._changing().items()}
        for name, parameter in self._trained():
            values = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{name}.{k}": torch.as_tensor(v) for k, v in values.items()}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"step": str(self.step), SEAL: UNSET})
            seal_file(temporary)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: a file that is damaged, was changed, or is of another training.
        """
        try:
            with open_regular(path), safe_open(path, "pt") as file:
                says = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if set(says) - {"step"} and not file_seal_holds(path, says[SEAL]):  # older: none
                raise ValueError("its sha256 differs: it is damaged or was changed")
            self._restore(int(says["step"]), tensors)
        except (
            SafetensorError,
            OSError,
            LookupError,
            ValueError,
            TypeError,
            RuntimeError,
        ) as error:
            raise ValueError(
                f"{path} is not a checkpoint of this training ({error}): remove it to start anew"
            ) from None

    def _restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Take the tensors of a checkpoint, if all of them fit, whatever their order."""
        losses, changing = tensors.pop("losses"), self._changing()
        if not 0 <= step <= self.total or losses.shape != (step,):
            raise ValueError(f"step {step} of {self.total} with losses {list(losses.shape)}")
        trained = dict(self._trained())
        numbers = {id(p): i for i, p in enumerate(self._grouped())}
        state: dict[int, dict[str, Tensor]] = {}
        for name, saved in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "model":
                own, shapes = changing[rest], {changing[rest].shape}
            else:
                parameter, _, key = rest.rpartition(".")
                own, shapes = trained[parameter], {trained[parameter].shape, torch.Size()}
                state.setdefault(numbers[id(own)], {})[key] = saved
            if saved.shape not in shapes or saved.is_floating_point() != own.is_floating_point():
                raise ValueError(f"{name} is {list(saved.shape)}, expected {list(own.shape)}")
        for name, value in changing.items():
            value.copy_(tensors[f"model.{name}"])
        self.losses, self.step = losses.tolist(), step
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})

    def _grouped(self) -> list[Tensor]:
        """The parameters in the order in which the optimizer numbers them."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _trained(self) -> list[tuple[str, Tensor]]:
        return [(n, p) for n, p in self.modules.named_parameters() if p.requires_grad]

    @torch.no_grad()
    def _changing(self) -> dict[str, Tensor]:
        """Trained parameters and all buffers, by name."""
        trained = {name: parameter.data for name, parameter in self._trained()}
        return trained | dict(self.modules.named_buffers())


class _Source:
    """Features of the training clips: made once, or in each step where the clips are changed."""

    def __init__(self, run: Run, clips: list[Clip]) -> None:
        self.run, self.config = run, run.config
        self.rate = run.extractor.sampling_rate
        self.features, self.audio = [], []
        if not self.config.augments:
            self.features = run.read(clips, "features")
            return
        with progress("read audio", len(clips)) as show:
            for audio in read_clips(clips, self.rate, self.config.max_seconds):
                self.audio.append(audio)
                show(len(self.audio), "")

    def lengths(self) -> list[int]:
        return [len(clip) for clip in self.features or self.audio]

    def frames(self) -> Frames:
        """How many frames the clips have as they are."""
        if self.features:
            return Frames.of(self.run, self.features)
        audio, extractor = self.audio, self.run.extractor
        return Frames(self.run, self.lengths(), lambda row: len(extract(audio[row], extractor)))

    def keep(self, rows: list[int]) -> None:
        """Forget all clips but these."""
        for kept in (self.features, self.audio):
            kept[:] = [kept[row] for row in rows] if kept else []

    def batch(self, rows: list[int], step: int) -> dict[str, Tensor]:
        if self.features:
            return self.run.collate([self.features[row] for row in rows])
        return self.run.collate([self._changed(row, step) for row in rows])

    def _changed(self, row: int, step: int) -> np.ndarray:
        """The features of a clip as it is in this step."""
        config, audio = self.config, self.audio[row]
        rng = np.random.default_rng([config.seed, step, 1, row])
        if rng.random() < config.noise_share:
            audio = add_noise(audio, rng.uniform(*SNR_DB), self.rate, rng)
        audio, features = self._played(audio, rng)
        if config.mask_share:
            span = round(SPAN_SECONDS * self.rate * len(features) / len(audio))
            features = mask_spans(features, config.mask_share, span, rng)
        return features

    def _played(self, audio: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A clip at a random speed and its features; as it is where the model would not take it."""
        most, extractor = self.config.speed_change, self.run.extractor
        if most:
            changed = change_speed(audio, 1 + rng.uniform(-most, most), self.rate)
            features = extract(changed, extractor)
            if takes(self.run, len(features)):
                return changed, features
        return audio, extract(audio, extractor)


def _fit(
    run: Run,
    state: TrainState,
    source: _Source,
    order: _Order,
    targets: Targets,
    out: Path,
    group: Processes,
) -> None:
    checkpoint = out / "checkpoint.safetensors"
    if checkpoint.exists():
        state.load(checkpoint)
    group.wait()  # before anyone writes a new one
    _train_mode(state.modules)
    if isinstance(run.dynamic.selector, InputSelector):
        run.dynamic.selector.gather = group.gather
    saved = time.monotonic()
    with (
        _masking(run),
        stop_signals() as stopped,
        progress(f"train {run.config.method}", state.total) as show,
    ):
        while state.step < state.total:
            rows, weight = group.share(order[state.step])
            with seeded(run.config.seed, state.step, group.rank):
                batch = source.batch(rows, state.step)
                state.losses.append(
                    _one_step(run, state, batch, [targets[r] for r in rows], weight, group)
                )
            state.step += 1
            show(state.step, f"loss {np.mean(state.losses[-20:]):.3f}")
            due = time.monotonic() - saved > run.config.checkpoint_seconds
            stop = group.total(float(stopped())) > 0
            if group.first and (due or stop) and state.step < state.total:
                state.save(checkpoint)
                saved = time.monotonic()
            if stop and state.step < state.total:
                raise Interrupted(
                    f"stopped at step {state.step} of {state.total}; the same command goes on"
                )
    state.modules.eval()


def _train_mode(modules: nn.Module) -> None:
    """Training mode, but for batch norms (Parakeet), which stay at their running statistics.

    Those of a batch hang on its padding, and on how many processes share it.
    """
    modules.train()
    for module in modules.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


@contextmanager
def _masking(run: Run) -> Iterator[None]:
    """Turn the masking of `transformers` off unless asked for; the configuration is put back."""
    configs: list[Any] = [getattr(m, "config", None) for m in run.dynamic.model.modules()]
    masking = {id(c): c for c in configs if getattr(c, "apply_spec_augment", False)}
    off = [] if run.config.backbone_masking else list(masking.values())
    for config in off:
        config.apply_spec_augment = False
    try:
        yield
    finally:
        for config in off:
            config.apply_spec_augment = True


def _one_step(
    run: Run,
    state: TrainState,
    batch: dict[str, Tensor],
    targets: Targets,
    weight: float,
    group: Processes,
) -> float:
    """Take a step with this process's part of a batch, and return the loss of the whole."""
    config = run.config
    rng = np.random.default_rng([config.seed, state.step])
    step = Step(state.step, state.total, rng, whole=partial(group.mean, weight=weight))
    with autocast(config.precision):
        loss = TRAIN[config.method](run, run.task.inputs(batch, targets), targets, step)
        loss = weight * loss
    value = group.total(float(loss.detach()))
    if not math.isfinite(value):
        raise ValueError(f"the loss is {value} at step {state.step}: lower lr_encoder or lr_head")
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    group.add_gradients(state.modules.parameters())
    nn.utils.clip_grad_norm_(state.modules.parameters(), config.clip_norm)
    rate = _rate(state.step, state.total, config.lr_warmup)
    for parameters in state.optimizer.param_groups:
        parameters["lr"] = rate * parameters["peak_lr"]
    state.optimizer.step()
    return value


def _finish(run: Run, state: TrainState, out: Path) -> None:
    """Write the results; the model comes last, since its presence says that the run is finished."""
    lines = [f"{step},{loss!r}" for step, loss in enumerate(state.losses)]
    write_text(out / "log.csv", "\n".join(["step,loss", *lines]) + "\n")
    precision = "bf16" if uses_bf16(run.config.precision) else "fp32"
    run.info |= {"steps": state.total, "precision": precision}
    write_sealed_json(out / "run.json", {**run.info, "sha256": {CONFIG: sha256(out / CONFIG)}})
    companions = [run.extractor] if run.tokenizer is None else [run.extractor, run.tokenizer]
    run.dynamic.save_pretrained(out / "model", companions=companions)
    (out / "checkpoint.safetensors").unlink(missing_ok=True)


@contextmanager
def _claimed(
    out: Path, config: TrainConfig, folder: AudioFolder, group: Processes
) -> Iterator[None]:
    """Make `out` the directory of this training alone, or say why it cannot be."""
    if not group.first:  # the first process keeps it for all of them
        yield
        return
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give a directory for the run")
    _refuse_others(out)
    if (out / "model").is_dir():  # finished: nothing will be written
        _claim(out, config, folder)
        yield
        return
    with locked(out):
        _claim(out, config, folder)
        yield


def _refuse_others(out: Path) -> None:
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    ours = {name for name in names if name == LOCK or (name[0] == "." and name[-4:] == ".tmp")}
    if CONFIG not in names and names - ours:
        raise ValueError(f"{out} holds other files: choose another directory for the run")


def _claim(out: Path, config: TrainConfig, folder: AudioFolder) -> None:
    """Begin a run in `out`, or go on with it if it is the same."""
    mark = f"# data {folder.digest}\n"
    path = out / CONFIG
    remove_dead(out)
    for name in (CONFIG, "run.json", "log.csv", "checkpoint.safetensors", "model", "tokenizer"):
        remove_leftovers(out / name)
    begun = (out / "checkpoint.safetensors").exists() or (out / "model").is_dir()
    if not path.exists():
        write_text(path, config.to_yaml() + mark)
        return
    before = TrainConfig.from_yaml(path)
    changed = [
        f"{field.name} {getattr(before, field.name)!r} -> {getattr(config, field.name)!r}"
        for field in dataclasses.fields(config)
        if getattr(before, field.name) != getattr(config, field.name)
    ]
    if not changed and mark not in path.read_text(encoding="utf-8"):
        changed = ["the data"]
    if changed and not begun:  # it was refused or stopped before there was anything to keep
        shutil.rmtree(out / "tokenizer", ignore_errors=True)
        write_text(path, config.to_yaml() + mark)
    elif changed:
        raise ValueError(
            f"{out} holds a run with other settings ({', '.join(changed)}): choose another "
            "directory, or remove it"
        )


class _Order:
    """The clips of each step: a function of the step, so that a resumed training needs no state."""

    def __init__(self, lengths: Sequence[float], config: TrainConfig) -> None:
        self.lengths, self.config = lengths, config
        self._made: tuple[int, list[list[int]]] = (-1, [])
        part = config.epochs % 1
        counts = [len(self._epoch(epoch)) for epoch in range(math.ceil(config.epochs))]
        if part:
            counts[-1] = max(1, math.ceil(round(part * counts[-1], 9)))
        self.ends = np.cumsum(counts)  # of each epoch, in steps

    @property
    def total(self) -> int:
        """Steps of the whole training."""
        return int(self.ends[-1])

    def __getitem__(self, step: int) -> list[int]:
        epoch = int(np.searchsorted(self.ends, step, side="right"))
        return self._epoch(epoch)[step - (int(self.ends[epoch - 1]) if epoch else 0)]

    def _epoch(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch; those of the last one that was asked for are kept."""
        if self._made[0] != epoch:
            config = self.config
            made = batches(
                self.lengths,
                config.batch_size,
                seed=config.seed,
                epoch=epoch,
                shuffle=True,
                most=config.batch_seconds or math.inf,
            )
            self._made = (epoch, made)
        return self._made[1]


def _freeze(run: Run) -> None:
    if run.config.freeze == "none":
        return
    for parameter in run.dynamic.base.parameters():
        parameter.requires_grad_(False)
    if run.config.freeze == "front-end":
        owner = run.dynamic.backbone.owner(run.dynamic.base)
        norm = run.dynamic.backbone.output_norm(owner)
        for module in (*run.dynamic.stack.layers, *([norm] if norm is not None else [])):
            for parameter in module.parameters():
                parameter.requires_grad_(True)


def _groups(run: Run, modules: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups: encoder, selector and head, each with and without weight decay."""
    pretrained = run.dynamic.model if run.config.recognition == "decoder" else run.dynamic.base
    encoder = {id(p) for p in pretrained.parameters()}
    selector = {id(p) for p in run.dynamic.selector.parameters()}
    decayed = matrices(modules)
    groups: dict[tuple[str, bool], list[Tensor]] = {}
    for parameter in modules.parameters():
        if parameter.requires_grad:
            part = "head"
            if id(parameter) in encoder:
                part = "encoder"
            elif id(parameter) in selector:
                part = "selector"
            groups.setdefault((part, id(parameter) in decayed), []).append(parameter)
    head_rate = CTC_HEAD_RATE if run.task.by_frame else HEAD_RATE
    config = run.config
    rates = {
        "encoder": config.lr_encoder,
        "selector": config.lr_selector,
        "head": head_rate if config.lr_head is None else config.lr_head,
    }
    return [
        {
            "params": parameters,
            "peak_lr": rates[part],
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (part, decays), parameters in groups.items()
    ]


def _rate(step: int, total: int, warmup: float) -> float:
    """Linear warm-up and decay to zero, as a factor of the peak learning rate."""
    rising = max(1, round(total * warmup))
    if step < rising:
        return (step + 1) / rising
    return max(0.0, (total - step) / max(1, total - rising))
