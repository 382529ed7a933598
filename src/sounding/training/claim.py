"""The directory of a run belongs to one training: claimed, gone on with, or refused."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..data.folder import AudioFolder
from ..errors import UsageError
from ..files import (
    LOCK,
    locked,
    remove_dead,
    remove_leftovers,
    write_text,
)
from ..methods import OUTPUTS
from ..runs.config import TrainConfig
from ..runs.run import CONFIG
from .distributed import Processes

FREE = ("device", "workers", "cache_gb", "log_to")  # what may be another when a training goes on
CHECKPOINT = "checkpoint.safetensors"  # what to go on from
BEST = "best.safetensors"  # the weights that were best on the validation clips
FEATURES = "features"  # what was decoded of the clips


@contextmanager
def claimed(
    out: Path, config: TrainConfig, folder: AudioFolder, group: Processes
) -> Iterator[None]:
    """Make `out` the directory of this training alone, or say why it cannot be."""
    if not group.first:  # the first process keeps it for all of them
        yield
        return
    refuse_others(out)
    if (out / "model").is_dir():  # finished: nothing will be written
        _claim(out, config, folder)
        yield
        return
    with locked(out):
        _claim(out, config, folder)
        yield


def refuse_others(out: Path) -> None:
    """Refuse a directory that holds what is no run.

    Raises:
        UsageError: it does, or it is a file.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: give a directory for the run")
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    ours = {
        name
        for name in names
        if name in (LOCK, OUTPUTS, FEATURES) or (name[0] == "." and name[-4:] == ".tmp")
    }
    if CONFIG not in names and names - ours:
        raise UsageError(f"{out} holds other files: choose another directory for the run")


def _claim(out: Path, config: TrainConfig, folder: AudioFolder) -> None:
    """Begin a run in `out`, or go on with it if it is the same."""
    mark = f"# data {folder.digest}\n"
    path = out / CONFIG
    remove_dead(out)
    for name in (CONFIG, "run.json", "log.csv", CHECKPOINT, BEST, "model", "tokenizer"):
        remove_leftovers(out / name)
    begun = (out / CHECKPOINT).exists() or (out / "model").is_dir()
    if not path.exists():
        write_text(path, config.to_yaml() + mark)
        return
    before = TrainConfig.from_yaml(path)
    changed = [
        f"{field.name} {getattr(before, field.name)!r} -> {getattr(config, field.name)!r}"
        for field in dataclasses.fields(config)
        if field.name not in FREE and getattr(before, field.name) != getattr(config, field.name)
    ]
    if not changed and mark not in path.read_text(encoding="utf-8"):
        changed = ["the data"]
    if changed and not begun:  # it was refused or stopped before there was anything to keep
        for name in ("tokenizer", FEATURES):
            shutil.rmtree(out / name, ignore_errors=True)
        write_text(path, config.to_yaml() + mark)
    elif changed:
        raise UsageError(
            f"{out} holds a run with other settings ({', '.join(changed)}): choose another "
            "directory, or remove it"
        )


def release(out: Path) -> None:
    """Remove what a run has only while its training goes on."""
    for name in (CHECKPOINT, BEST):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / FEATURES, ignore_errors=True)
