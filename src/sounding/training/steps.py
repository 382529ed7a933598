"""The steps of a training: each taken, shown, validated and saved."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..data.audio import AudioError, Seconds
from ..data.features import FeatureSet
from ..errors import UsageError
from ..methods.base import Step
from ..policies.noise import whole_batch
from ..progress import Advance, Interrupted, progress, stop_signals
from ..runs.config import TrainConfig
from ..runs.precision import autocast
from ..runs.randomness import seeded
from ..runs.run import Run
from ..runs.validation import validate
from ..tasks.base import Targets
from .checkpoint import TrainState
from .claim import BEST, CHECKPOINT
from .distributed import Processes
from .loader import Order, Part, parts
from .source import Source
from .speed import as_set
from .tracking import Track, tracking


class Steps:
    """The steps of one training, from the one that its checkpoint names to the last.

    Args:
        held_out: the validation clips and their targets.
        out: the directory of the run.
    """

    def __init__(
        self,
        run: Run,
        state: TrainState,
        order: Order,
        targets: Targets,
        held_out: tuple[FeatureSet, Targets] | None,
        out: Path,
        group: Processes,
    ) -> None:
        self.run, self.state, self.order, self.targets = run, state, order, targets
        self.held_out, self.out, self.group = held_out, out, group
        self.validated = order.validated(run.config.validate_epochs)
        self.began = self.saved = 0.0  # when
        self.heard: Seconds = 0.0  # of audio, since it began
        self.track: Track = lambda step, values: None

    def take(self, source: Source) -> None:
        """Take the steps that are left, until the validation clips say that it is enough.

        Raises:
            AudioError: a clip can no longer be read; there is a checkpoint to go on from.
            Interrupted: a signal asked to stop; likewise.
        """
        run, state, group = self.run, self.state, self.group
        if (self.out / CHECKPOINT).exists():
            state.load(self.out / CHECKPOINT)
        group.wait()  # before anyone writes a new one
        _train_mode(state.modules)
        run.dynamic.policy.gather = group.gather
        made = parts(source, self.order, group.share, state.step, run.dynamic.device)
        with (
            closing(made),
            as_set(run),
            _masking(run),
            tracking(self._tracked(), self.out, state.step) as self.track,
            stop_signals() as stopped,
            progress(f"train {run.config.method}", state.total) as show,
        ):
            self.began = self.saved = time.monotonic()
            try:
                while not state.ended:
                    self._take(next(made))
                    self._tell(show)
                    self._validate()
                    self._keep(group.total(float(stopped())) > 0)
            except AudioError:
                if state.step:
                    self._save()
                raise
        state.modules.eval()

    def _tracked(self) -> TrainConfig:
        """Return the settings by which one process of several shows the losses."""
        config = self.run.config
        return config if self.group.first else replace(config, log_to="")

    def _take(self, made: list[Part]) -> None:
        state, device, seed = self.state, self.run.dynamic.device, self.run.config.seed
        rows = self.order[state.step]
        with seeded(seed, state.step, self.group.rank, device=device):
            state.losses.append(one_step(self.run, state, made, self.targets, self.group, rows))
        self.heard += float(sum(self.order.seconds[row] for row in rows))
        rate = state.optimizer.param_groups[0]["lr"]
        self.track(state.step, {"train/loss": state.losses[-1], "train/lr": rate})
        state.step += 1
        state.average.update(state.step)

    def _tell(self, show: Advance) -> None:
        """Show how far it is, the loss, and how much audio goes through."""
        speed = self.heard / (time.monotonic() - self.began)
        said = f"loss {np.mean(self.state.losses[-20:]):.3f}, {speed:.0f} s of audio/s"
        if self.state.validations:
            said += f", validation {self.state.validations[-1].error:.1%}"
        show(self.state.step, said)

    def _validate(self) -> None:
        """Measure the validation clips where it is time, and keep the best weights."""
        state, group = self.state, self.group
        if state.step not in self.validated:
            return
        assert self.held_out is not None
        part = (group.rank, group.count)
        with state.average.in_place():
            found = validate(
                self.run, *self.held_out, step=state.step, part=part, total=group.total_of
            )
            state.validations.append(found)
            if state.best is found and group.first:
                state.save_weights(self.out / BEST)
        shown = {"validation/error": found.error, "validation/loss": found.loss}
        self.track(state.step - 1, shown)
        _train_mode(state.modules)
        self._save()
        state.enough = bool(state.patience) and state.waited >= state.patience

    def _keep(self, asked: bool) -> None:
        """Write a checkpoint where it is time, and stop where that was asked for."""
        state = self.state
        if state.ended:
            return
        due = time.monotonic() - self.saved > self.run.config.checkpoint_seconds
        if due or asked:
            self._save()
        if asked:
            raise Interrupted(
                f"stopped at step {state.step} of {state.total}; the same command goes on"
            )

    def _save(self) -> None:
        if self.group.first:
            self.state.save(self.out / CHECKPOINT)
            self.saved = time.monotonic()


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


def one_step(
    run: Run,
    state: TrainState,
    made: Sequence[Part],
    targets: Targets,
    group: Processes,
    rows: list[int],
) -> float:
    """Take a step with what this process computes of a batch, and return the loss of the whole.

    Args:
        targets: of all clips.
        rows: the clips of the whole batch, in all processes.
    """
    state.optimizer.zero_grad(set_to_none=True)
    value = group.total(sum(_add_gradient(run, state, part, targets, group, rows) for part in made))
    if not math.isfinite(value):
        raise UsageError(f"the loss is {value} at step {state.step}: lower lr_encoder or lr_head")
    group.add_gradients(state.modules.parameters())
    state.scaler.unscale_(state.optimizer)
    nn.utils.clip_grad_norm_(state.modules.parameters(), run.config.clip_norm)
    rate = _rate(state.step, state.total, run.config.lr_warmup)
    for parameters in state.optimizer.param_groups:
        parameters["lr"] = rate * parameters["peak_lr"]
    state.scaler.step(state.optimizer)
    state.scaler.update()
    return value


def _add_gradient(
    run: Run, state: TrainState, part: Part, targets: Targets, group: Processes, rows: list[int]
) -> float:
    """Add the gradient of a part of a batch to those that are there, and return its loss."""
    config = run.config
    some = [targets[row] for row in part.rows]
    places = [rows.index(row) for row in part.rows]
    rng = np.random.default_rng([config.seed, state.step])  # all parts draw the same masks
    whole = partial(group.mean, weight=part.weight)
    step = Step(state.step, state.total, rng, whole=whole, rows=part.rows)
    with whole_batch((config.seed, state.step, 2), len(rows), places):
        with autocast(config.precision, run.dynamic.device):
            loss = run.method.loss(run, run.task.inputs(part.batch, some), some, step)
            loss = part.weight * loss
        state.scaler.scale(loss).backward()
    return float(loss.detach())


def _rate(step: int, total: int, warmup: float) -> float:
    """Return the factor of the peak learning rate: linear warm-up, then decay to zero."""
    rising = max(1, round(total * warmup))
    if step < rising:
        return (step + 1) / rising
    return max(0.0, (total - step) / max(1, total - rising))
