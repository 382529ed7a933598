"""Training: resumable at any step, and the same weights whether it was interrupted or not."""

from __future__ import annotations

import dataclasses
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..data.features import FeatureSet, batches, extract, load_audio
from ..data.folder import AudioFolder, Clip
from ..data.noise import add_noise, noise_for
from ..files import atomic_path, write_json, write_text
from ..progress import progress
from .answers import calibrate
from .config import TrainConfig
from .fit import CLIPS as FIT_CLIPS
from .fit import SNR_DB as FIT_SNR_DB
from .fit import fit_selector
from .methods import TRAIN, Step
from .precision import autocast, uses_bf16
from .runs import Run, load_run, new_run, provenance
from .search import settle

SNR_DB = (0.0, 20.0)  # of the noise in training


class Interrupted(Exception):
    """The training was asked to stop and has saved a checkpoint."""


def train(config: TrainConfig, folder: AudioFolder, out: Path | str) -> Run:
    """Fine-tune a backbone on a folder by `config`, into the run directory `out`.

    Goes on from the last checkpoint in `out` if there is one, and ends with the same weights as
    without the interruption, bit for bit on the same CPU and number of threads. A finished run
    with the same configuration and data is loaded and returned.

    Raises:
        ValueError: `out` holds another run, or the configuration does not fit the data.
        Interrupted: on SIGINT or SIGTERM, after saving a checkpoint.
    """
    out = Path(out)
    if folder.task != "classification":
        raise ValueError(
            f"{folder.root} has texts, not labels: training for recognition is not there yet; "
            "give a metadata.csv with a 'label' column"
        )
    _claim(out, config, folder)
    if (out / "model").is_dir():
        return load_run(out)
    info = {"data": {"digest": folder.digest, "name": folder.root.name}, **provenance()}
    run = new_run(config, list(folder.labels), info)
    if config.teacher:
        run.teacher = _teacher(config, folder)
    clips = folder.split("train")
    source = _Source(run, clips)
    labels = torch.tensor([folder.label_index(clip) for clip in clips])
    state = TrainState(run, steps_in(config, len(clips)))
    _fit(run, state, source, labels, out)
    if config.method == "input" and config.selector_fit != "joint":
        fit_selector(run, *_for_fit(run, clips, labels))
    if any(clip.split == "validation" for clip in folder.clips):
        held_out = folder.split("validation")
        features = run.read(held_out, "read validation clips")
        run.dynamic.mean_budgets = calibrate(run, features)
        if config.method == "input":
            settle(run, features, torch.tensor([folder.label_index(clip) for clip in held_out]))
    _finish(run, state, out)
    return run


def _for_fit(run: Run, clips: list[Clip], labels: Tensor) -> tuple[FeatureSet, Tensor]:
    """Some training clips, with noise, for the second stage."""
    seed, rate = run.config.seed, run.extractor.sampling_rate
    rows = np.random.default_rng(seed).permutation(len(clips))[:FIT_CLIPS].tolist()

    change = noise_for(FIT_SNR_DB, rate, seed, copy=2)
    return run.read([clips[row] for row in rows], "read for the selector", change), labels[rows]


def _teacher(config: TrainConfig, folder: AudioFolder) -> Run:
    teacher = load_run(config.teacher)
    if teacher.labels != list(folder.labels) or teacher.config.method != "full":
        raise ValueError(
            f"{config.teacher} is a run of method {teacher.config.method!r} with the classes "
            f"{', '.join(teacher.labels)}: give one of method 'full' on the same data"
        )
    return teacher


def steps_in(config: TrainConfig, clips: int) -> int:
    """Steps of a whole training on that many clips."""
    return max(1, math.ceil(config.epochs * math.ceil(clips / config.batch_size)))


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
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in values.items()}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"step": str(self.step)})

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: a truncated or foreign file.
        """
        try:
            with safe_open(path, "pt") as file:
                step = int(file.metadata()["step"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            changing = self._changing()
            for name, value in changing.items():
                value.copy_(tensors[f"model.{name}"])
            self.losses = tensors["losses"].tolist()
        except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"{path} is not a checkpoint of this training ({error}): remove it to start anew"
            ) from None
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.step = step

    @torch.no_grad()
    def _changing(self) -> dict[str, Tensor]:
        """Trained parameters and all buffers, by name."""
        trained = {n: p.data for n, p in self.modules.named_parameters() if p.requires_grad}
        return trained | dict(self.modules.named_buffers())


class _Source:
    """Features of the training clips: made once, or in each step where noise is added."""

    def __init__(self, run: Run, clips: list[Clip]) -> None:
        self.run, self.config = run, run.config
        self.rate = run.extractor.sampling_rate
        self.features, self.audio = [], []
        if not self.config.noise_share:
            self.features = run.read(clips, "features")
            return
        with progress("read audio", len(clips)) as show:
            for done, clip in enumerate(clips, start=1):
                self.audio.append(load_audio(clip.path, self.rate, self.config.max_seconds))
                show(done, "")

    def lengths(self) -> list[int]:
        return [len(clip) for clip in self.features or self.audio]

    def batch(self, rows: list[int], step: int) -> dict[str, Tensor]:
        if self.features:
            return self.run.collate([self.features[row] for row in rows])
        rng = np.random.default_rng([self.config.seed, step, 1])
        made = []
        for row in rows:
            audio = self.audio[row]
            if rng.random() < self.config.noise_share:
                audio = add_noise(audio, rng.uniform(*SNR_DB), self.rate, rng)
            made.append(extract(audio, self.run.extractor))
        return self.run.collate(made)


def _fit(run: Run, state: TrainState, source: _Source, labels: Tensor, out: Path) -> None:
    checkpoint = out / "checkpoint.safetensors"
    if checkpoint.exists():
        state.load(checkpoint)
    state.modules.train()
    order = _Order(source.lengths(), run.config)
    saved = time.monotonic()
    with _stop_signals() as stopped, progress(f"train {run.config.method}", state.total) as show:
        while state.step < state.total:
            rows = order[state.step]
            batch = source.batch(rows, state.step)
            state.losses.append(_one_step(run, state, batch, labels[rows]))
            state.step += 1
            show(state.step, f"loss {np.mean(state.losses[-20:]):.3f}")
            due = time.monotonic() - saved > run.config.checkpoint_seconds
            if (due or stopped()) and state.step < state.total:
                state.save(checkpoint)
                saved = time.monotonic()
            if stopped() and state.step < state.total:
                raise Interrupted(
                    f"stopped at step {state.step} of {state.total}; the same command goes on"
                )
    state.modules.eval()


def _one_step(run: Run, state: TrainState, batch: dict[str, Tensor], labels: Tensor) -> float:
    config = run.config
    torch.manual_seed(config.seed * 1_000_003 + state.step)
    rng = np.random.default_rng([config.seed, state.step])
    step = Step(state.step, state.total, rng)
    with autocast(config.precision):
        loss = TRAIN[config.method](run, batch, labels, step)
    if not torch.isfinite(loss):
        raise ValueError(
            f"the loss is {loss.item()} at step {state.step}: lower lr_encoder or lr_head"
        )
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(state.modules.parameters(), config.clip_norm)
    rate = _rate(state.step, state.total, config.lr_warmup)
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group["peak_lr"]
    state.optimizer.step()
    return float(loss.detach())


def _finish(run: Run, state: TrainState, out: Path) -> None:
    """Write the results; the model comes last, since its presence says that the run is finished."""
    lines = [f"{step},{loss!r}" for step, loss in enumerate(state.losses)]
    write_text(out / "log.csv", "\n".join(["step,loss", *lines]) + "\n")
    precision = "bf16" if uses_bf16(run.config.precision) else "fp32"
    info = {**run.info, "steps": state.total, "precision": precision}
    write_json(out / "run.json", info)
    run.dynamic.save_pretrained(out / "model", companions=[run.extractor])
    (out / "checkpoint.safetensors").unlink(missing_ok=True)


def _claim(out: Path, config: TrainConfig, folder: AudioFolder) -> None:
    """Make `out` the directory of this training, or say why it cannot be."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give a directory for the run")
    mark = f"# data {folder.digest}\n"
    path = out / "config.yaml"
    for leftover in out.glob(".*.tmp"):  # of a kill in the middle of a write
        leftover.unlink() if leftover.is_file() else shutil.rmtree(leftover)
    if not path.exists():
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"{out} holds other files: choose another directory for the run")
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
    if changed:
        raise ValueError(
            f"{out} holds a run with other settings ({', '.join(changed)}): choose another "
            "directory, or remove it"
        )


class _Order:
    """The clips of each step: a function of the step, so that a resumed training needs no state."""

    def __init__(self, lengths: list[int], config: TrainConfig) -> None:
        self.lengths, self.config = lengths, config
        self.per_epoch = math.ceil(len(lengths) / config.batch_size)
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    def __getitem__(self, step: int) -> list[int]:
        epoch, index = divmod(step, self.per_epoch)
        if self._epoch[0] != epoch:
            made = batches(
                self.lengths,
                self.config.batch_size,
                seed=self.config.seed,
                epoch=epoch,
                shuffle=True,
            )
            self._epoch = (epoch, made)
        return self._epoch[1][index]


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
    encoder = {id(p) for p in run.dynamic.base.parameters()}
    selector = {id(p) for p in run.dynamic.selector.parameters()}
    groups: dict[tuple[str, bool], list[Tensor]] = {}
    for parameter in modules.parameters():
        if parameter.requires_grad:
            part = "head"
            if id(parameter) in encoder:
                part = "encoder"
            elif id(parameter) in selector:
                part = "selector"
            groups.setdefault((part, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "peak_lr": getattr(run.config, f"lr_{part}"),
            "weight_decay": run.config.weight_decay if decays else 0.0,
        }
        for (part, decays), parameters in groups.items()
    ]


def _rate(step: int, total: int, warmup: float) -> float:
    """Linear warm-up and decay to zero, as a factor of the peak learning rate."""
    rising = max(1, round(total * warmup))
    if step < rising:
        return (step + 1) / rising
    return max(0.0, (total - step) / max(1, total - rising))


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM only ask to stop, so that a step in progress ends and is saved.

    A second signal stops at once.
    """
    asked: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are not ours
        yield lambda: False
        return
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
