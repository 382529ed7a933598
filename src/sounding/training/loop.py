"""Training: resumable at any step, and the same weights whether it was interrupted or not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from ..data.features import FeatureSet
from ..data.folder import AudioFolder, Clip
from ..errors import UsageError
from ..files import (
    sha256,
    write_sealed_json,
    write_text,
)
from ..methods.base import Method, Step
from ..progress import Interrupted, progress, stop_signals
from ..registry import METHODS
from ..runs.config import TrainConfig
from ..runs.device import find_device
from ..runs.precision import autocast, precision_on
from ..runs.randomness import seeded
from ..runs.run import CONFIG, Run, load_run, provenance
from ..tasks.base import Target, Targets
from .checkpoint import TrainState
from .claim import claimed
from .distributed import Processes, processes
from .fitting import Frames, check_words, fitting, uncut
from .loader import Order, Source, lengths_of

T = TypeVar("T")


def train(config: TrainConfig, folder: AudioFolder, out: Path | str) -> Run:
    """Fine-tune a backbone on a folder by `config`, into the run directory `out`.

    Training goes on from the last checkpoint in `out` if there is one, and ends with the same
    weights as without the interruption, bit for bit on the same CPU and number of threads. A
    finished run with the same configuration and data is loaded and returned. What is returned is
    on the processor, wherever it was trained.

    Clips whose texts do not fit the model are left out, and named: see `fitting`. Afterwards the
    global generators of random numbers are as they were before.

    Started by `torchrun`, each process takes a part of every batch, and the first one writes the
    files.

    Raises:
        ValueError: `out` holds another run or is in use, or the configuration does not fit the
            data: before the first step, for the validation clips too.
        WriteError: no room is left; there is a checkpoint to go on from.
        Interrupted: on SIGINT or SIGTERM, after saving a checkpoint.
    """
    with processes(config.device) as group, seeded(config.seed):
        if group.first and METHODS[config.method].labelled:
            check_words(folder, "train")
        with claimed(Path(out), config, folder, group):
            return _train(config, folder, Path(out), group)


def _train(config: TrainConfig, folder: AudioFolder, out: Path, group: Processes) -> Run:
    if (out / "model").is_dir():
        return load_run(out)
    method: Method = METHODS[config.method]
    data = {"digest": folder.digest, "name": folder.root.name}
    info = {"data": data, "task": folder.task, **provenance()}
    run = _in_turn(group, lambda: method.start(config, folder, info, out))  # writes a tokenizer
    device = find_device(config.device)
    run.dynamic.to(device)
    if method.needs_teacher:
        run.teacher = _teacher(config, run)
        run.teacher.dynamic.to(device)
    clips, given, source = _training(run, folder)
    held_out = _held_out(run, folder) if group.first else None
    targets = _in_turn(group, lambda: method.prepare(run, clips, given, out))
    order = Order(lengths_of(config, source, clips), config)
    state = TrainState(run, order.total)
    run.info |= {"device": device.type, "precision": precision_on(device, config.precision)}
    _fit(run, state, source, order, targets, out, group)
    if group.first:
        if held_out is not None:
            run.method.finish(run, *held_out)
        run.dynamic.cpu()
        _finish(run, state, out)
    group.wait()
    return run if group.first else load_run(out)


def _in_turn(group: Processes, make: Callable[[], T]) -> T:
    """Return what `make` returns; the first process makes it, and files, before the others do."""
    if group.first:
        made = make()
        group.wait()
        return made
    group.wait()
    return make()


def _training(run: Run, folder: AudioFolder) -> tuple[list[Clip], list[Target], Source]:
    """Return the training clips that fit the model, their targets and their audio."""
    clips = uncut(run.config, folder, "train")
    source = Source(run, clips)
    if not run.method.labelled:
        source.frames().check(folder, clips)
        return clips, [Target((), "", clip.speaker) for clip in clips], source
    targets = run.task.targets(folder, clips)
    kept = fitting(run, folder, clips, targets, source.frames())
    source.keep(kept)
    return [clips[index] for index in kept], [targets[index] for index in kept], source


def _held_out(run: Run, folder: AudioFolder) -> tuple[FeatureSet, list[Target]] | None:
    """Return the validation clips that fit; None without any.

    They are read before the training, lest one of them stops its end.
    """
    there = any(clip.split == "validation" for clip in folder.clips)
    if not there or not run.method.labelled:
        return None
    clips = uncut(run.config, folder, "validation")
    targets = run.task.targets(folder, clips)
    features = run.read(clips, "read validation clips")
    kept = fitting(run, folder, clips, targets, Frames.of(run, features))
    return [features[index] for index in kept], [targets[index] for index in kept]


def _teacher(config: TrainConfig, run: Run) -> Run:
    teacher = load_run(config.teacher)
    wanted = run.method.teacher_method
    if teacher.labels != run.labels or teacher.config.method != wanted:
        raise UsageError(
            f"{config.teacher} is a run of method {teacher.config.method!r} with the classes "
            f"{', '.join(teacher.labels)}: give one of method {wanted!r} on the same data"
        )
    return teacher


def _fit(
    run: Run,
    state: TrainState,
    source: Source,
    order: Order,
    targets: Targets,
    out: Path,
    group: Processes,
) -> None:
    checkpoint = out / "checkpoint.safetensors"
    if checkpoint.exists():
        state.load(checkpoint)
    group.wait()  # before anyone writes a new one
    _train_mode(state.modules)
    run.dynamic.policy.gather = group.gather
    saved = time.monotonic()
    with (
        _masking(run),
        stop_signals() as stopped,
        progress(f"train {run.config.method}", state.total) as show,
    ):
        while state.step < state.total:
            rows, weight = group.share(order[state.step])
            with seeded(run.config.seed, state.step, group.rank, device=run.dynamic.device):
                batch = source.batch(rows, state.step)
                state.losses.append(
                    _one_step(run, state, batch, [targets[r] for r in rows], weight, group, rows)
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
    """Put the modules in training mode, but for batch norms, which stay at running statistics.

    Parakeet has such norms. Statistics of a batch would depend on its padding, and on how many
    processes share it.
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
    rows: list[int],
) -> float:
    """Take a step with this process's part of a batch, and return the loss of the whole."""
    config = run.config
    rng = np.random.default_rng([config.seed, state.step])
    whole = partial(group.mean, weight=weight)
    step = Step(state.step, state.total, rng, whole=whole, rows=rows)
    with autocast(config.precision, run.dynamic.device):
        loss = run.method.loss(run, run.task.inputs(batch, targets), targets, step)
        loss = weight * loss
    value = group.total(float(loss.detach()))
    if not math.isfinite(value):
        raise UsageError(f"the loss is {value} at step {state.step}: lower lr_encoder or lr_head")
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(loss).backward()
    group.add_gradients(state.modules.parameters())
    state.scaler.unscale_(state.optimizer)
    nn.utils.clip_grad_norm_(state.modules.parameters(), config.clip_norm)
    rate = _rate(state.step, state.total, config.lr_warmup)
    for parameters in state.optimizer.param_groups:
        parameters["lr"] = rate * parameters["peak_lr"]
    state.scaler.step(state.optimizer)
    state.scaler.update()
    return value


def _finish(run: Run, state: TrainState, out: Path) -> None:
    """Write the results; the model comes last, since its presence says that the run is finished."""
    lines = [f"{step},{loss!r}" for step, loss in enumerate(state.losses)]
    write_text(out / "log.csv", "\n".join(["step,loss", *lines]) + "\n")
    run.info |= {"steps": state.total}
    write_sealed_json(out / "run.json", {**run.info, "sha256": {CONFIG: sha256(out / CONFIG)}})
    companions = [part for part in (run.extractor, run.tokenizer) if part is not None]
    run.dynamic.save_pretrained(out / "model", companions=companions)
    (out / "checkpoint.safetensors").unlink(missing_ok=True)


def _rate(step: int, total: int, warmup: float) -> float:
    """Return the factor of the peak learning rate: linear warm-up, then decay to zero."""
    rising = max(1, round(total * warmup))
    if step < rising:
        return (step + 1) / rising
    return max(0.0, (total - step) / max(1, total - rising))
