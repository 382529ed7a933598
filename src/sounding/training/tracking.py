"""Where the losses of a training are shown while it lasts: TensorBoard, or Weights & Biases."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import UsageError
from ..runs.config import TrainConfig

Track: TypeAlias = Callable[[int, Mapping[str, float]], None]


@contextmanager
def tracking(config: TrainConfig, out: Path, first_step: int) -> Iterator[Track]:
    """Yield a function that is called with a step and its values by name.

    Args:
        first_step: of this start: TensorBoard replaces what an interrupted one has shown from
            here on; Weights & Biases begin a new run.

    Raises:
        UsageError: the library that `log_to` names is not installed.
    """
    opened = {"": _nowhere, "tensorboard": _tensorboard, "wandb": _wandb}[config.log_to]
    with opened(config, out, first_step) as track:
        yield track


@contextmanager
def _nowhere(config: TrainConfig, out: Path, first_step: int) -> Iterator[Track]:
    yield lambda step, values: None


@contextmanager
def _tensorboard(config: TrainConfig, out: Path, first_step: int) -> Iterator[Track]:
    module = _needed("torch.utils.tensorboard", "tensorboard")
    with module.SummaryWriter(str(out / "tensorboard"), purge_step=first_step) as writer:

        def track(step: int, values: Mapping[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        yield track


@contextmanager
def _wandb(config: TrainConfig, out: Path, first_step: int) -> Iterator[Track]:
    wandb = _needed("wandb", "wandb")
    settings = dataclasses.asdict(config)
    with wandb.init(project="sounding", name=out.name, dir=str(out), config=settings) as run:
        yield lambda step, values: run.log(dict(values), step=step)


def _needed(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise UsageError(f"log_to {package!r} needs that library: pip install {package}") from None
