"""Training: resumable at any step, and the same weights whether it was interrupted or not."""

from __future__ import annotations

from pathlib import Path

from ..data.features import FeatureSet
from ..data.folder import AudioFolder, Clip
from ..errors import UsageError
from ..files import (
    sha256,
    write_sealed_json,
    write_text,
)
from ..methods.base import Method
from ..registry import METHODS
from ..runs.config import TrainConfig
from ..runs.device import find_device
from ..runs.precision import precision_on
from ..runs.randomness import seeded
from ..runs.run import CONFIG, Run, load_run, provenance
from ..runs.validations import write_validations
from ..tasks.base import Target
from .checkpoint import TrainState
from .claim import BEST, FEATURES, claimed, release
from .distributed import Processes, processes
from .fitting import check_words, fitting, uncut
from .loader import Order
from .source import Source
from .steps import Steps


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
    if config.validate_epochs and not _has_held_out(method, folder):
        raise UsageError(
            "validate_epochs measures validation clips with labels or texts, and there are none: "
            "leave it out" + ("" if method.labelled else f", as for any method {method.name!r}")
        )
    data = {"digest": folder.digest, "name": folder.root.name}
    info = {"data": data, "task": folder.task, **provenance()}
    run = group.in_turn(lambda: method.start(config, folder, info, out))  # writes a tokenizer
    device = find_device(config.device)
    run.dynamic.to(device)
    if method.needs_teacher:
        run.teacher = _teacher(config, run)
        run.teacher.dynamic.to(device)
    clips, given, source = _training(run, folder, out, group)
    held_out = _held_out(run, folder, out, group)
    targets = group.in_turn(lambda: method.prepare(run, clips, given, out))
    order = Order(source.seconds, config)
    state = TrainState(run, order.total)
    run.info |= {"device": device.type, "precision": precision_on(device, config.precision)}
    Steps(run, state, order, targets, held_out, out, group).take(source)
    if group.first:
        state.settle(out / BEST)
        if held_out is not None:
            run.method.finish(run, *held_out)
        run.dynamic.cpu()
        _finish(run, state, out)
    group.wait()
    return run if group.first else load_run(out)


def _training(
    run: Run, folder: AudioFolder, out: Path, group: Processes
) -> tuple[list[Clip], list[Target], Source]:
    """Return the training clips that fit the model, their targets and their audio."""
    clips = uncut(run.config, folder, "train")
    source = Source(run, clips, out / FEATURES, group=group)
    if not run.method.labelled:
        source.frames(run).check(folder, clips)
        return clips, [Target((), "", clip.speaker) for clip in clips], source
    targets = run.task.targets(folder, clips)
    kept = fitting(run, folder, clips, targets, source.frames(run))
    source.keep(kept)
    return [clips[index] for index in kept], [targets[index] for index in kept], source


def _has_held_out(method: Method, folder: AudioFolder) -> bool:
    """Return whether there are validation clips from whose targets a method is judged."""
    return method.labelled and any(clip.split == "validation" for clip in folder.clips)


def _held_out(
    run: Run, folder: AudioFolder, out: Path, group: Processes
) -> tuple[FeatureSet, list[Target]] | None:
    """Return the validation clips that fit; None without any.

    They are read before the training, lest one of them stops its end.
    """
    if not _has_held_out(run.method, folder):
        return None
    clips = uncut(run.config, folder, "validation")
    targets = run.task.targets(folder, clips)
    kept = out / FEATURES / "validation"
    source = Source(run, clips, kept, title="validation clips", group=group)
    rows = fitting(run, folder, clips, targets, source.frames(run))
    source.keep(rows)
    return source.features(), [targets[row] for row in rows]


def _teacher(config: TrainConfig, run: Run) -> Run:
    teacher = load_run(config.teacher)
    wanted = run.method.teacher_method
    if teacher.labels != run.labels or teacher.config.method != wanted:
        raise UsageError(
            f"{config.teacher} is a run of method {teacher.config.method!r} with the classes "
            f"{', '.join(teacher.labels)}: give one of method {wanted!r} on the same data"
        )
    return teacher


def _finish(run: Run, state: TrainState, out: Path) -> None:
    """Write the results; the model comes last, since its presence says that the run is finished."""
    lines = [f"{step},{loss!r}" for step, loss in enumerate(state.losses)]
    write_text(out / "log.csv", "\n".join(["step,loss", *lines]) + "\n")
    if state.validations:
        write_validations(out, state.validations)
    run.info |= {"steps": state.step if state.best is None else state.best.step}
    write_sealed_json(out / "run.json", {**run.info, "sha256": {CONFIG: sha256(out / CONFIG)}})
    run.dynamic.save_pretrained(out / "model", companions=run.companions)
    release(out)
