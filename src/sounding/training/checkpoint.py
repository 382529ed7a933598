"""All that changes in a training, and the checkpoints that it goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import UsageError
from ..files import (
    SEAL,
    UNSET,
    atomic_path,
    file_seal_holds,
    open_regular,
    seal_file,
)
from ..runs.precision import precision_on
from ..runs.run import Run
from ..runs.validations import Validation, best_of, waited
from .average import Average
from .decay import matrices


class TrainState:
    """All that changes in a training: the parameters, the optimizer, the step, the log."""

    def __init__(self, run: Run, total: int) -> None:
        self.modules = nn.ModuleDict({"dynamic": run.dynamic})
        _freeze(run)
        self.total = total
        self.step = 0
        self.losses: list[float] = []
        self.optimizer = torch.optim.AdamW(_groups(run, self.modules), foreach=True)
        device = run.dynamic.device
        scaled = precision_on(device, run.config.precision) == "fp16"
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self.validations: list[Validation] = []
        self.enough = False  # whether the validation clips say so
        self.average = Average(dict(self._trained()), run.config.ema)
        self.patience = run.config.patience

    @property
    def ended(self) -> bool:
        """Whether no step is left, or none is wanted."""
        return self.enough or self.step >= self.total

    @property
    def best(self) -> Validation | None:
        """The best measurement of the validation clips, the first of equals; None before one."""
        return best_of(self.validations) if self.validations else None

    @property
    def waited(self) -> int:
        """How many measurements there were since the best one."""
        return waited(self.validations)

    def settle(self, best: Path) -> None:
        """Put the weights that are to be kept in their place, after the last step.

        Args:
            best: the file of `save_weights`, where validation clips were measured.

        Raises:
            UsageError: it is damaged.
        """
        if not self.validations:
            self.average.exchange()
            return
        changing = self._changing()
        try:
            kept = load_file(best)
            for name, value in changing.items():
                value.copy_(kept[name])
        except (SafetensorError, OSError, KeyError, RuntimeError) as error:
            raise UsageError(
                f"{best} is damaged ({error}): remove the run, and start anew"
            ) from None

    def save_weights(self, path: Path) -> None:
        """Write the weights of now, all or nothing."""
        tensors = {name: value.cpu().contiguous() for name, value in self._changing().items()}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary)

    def save(self, path: Path) -> None:
        """Write a checkpoint, all or nothing."""
        tensors = {f"model.{k}": v.cpu().contiguous() for k, v in self._changing().items()}
        for name, parameter in self._trained():
            values = self.optimizer.state.get(parameter, {})
            tensors |= {
                f"optimizer.{name}.{k}": torch.as_tensor(v).cpu() for k, v in values.items()
            }
        scale = self.scaler.state_dict()
        tensors |= {f"scaler.{k}": torch.tensor(float(v)) for k, v in scale.items()}
        tensors |= {f"average.{k}": v.cpu().contiguous() for k, v in self.average.values.items()}
        if self.validations:
            tensors["validations"] = torch.tensor(self.validations, dtype=torch.float64)
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
                raise UsageError("its sha256 differs: it is damaged or was changed")
            self._restore(int(says["step"]), tensors)
        except (
            SafetensorError,
            OSError,
            LookupError,
            ValueError,
            TypeError,
            RuntimeError,
        ) as error:
            raise UsageError(
                f"{path} is not a checkpoint of this training ({error}): remove it to start anew"
            ) from None

    def _restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Take the tensors of a checkpoint, if all of them fit, whatever their order."""
        losses, changing = tensors.pop("losses"), self._changing()
        measured = tensors.pop("validations", torch.zeros(0, 3)).tolist()
        means = {k: tensors.pop(k) for k in list(tensors) if k.startswith("average.")}
        scale = {k: tensors.pop(k) for k in list(tensors) if k.startswith("scaler.")}
        if not 0 <= step <= self.total or losses.shape != (step,):
            raise UsageError(f"step {step} of {self.total} with losses {list(losses.shape)}")
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
                raise UsageError(f"{name} is {list(saved.shape)}, expected {list(own.shape)}")
        for name, value in changing.items():
            value.copy_(tensors[f"model.{name}"])
        for name, value in self.average.values.items():
            value.copy_(means[f"average.{name}"])
        self.validations = [Validation(int(at), error, loss) for at, error, loss in measured]
        self.enough = bool(self.patience) and self.waited >= self.patience
        self.losses, self.step = losses.tolist(), step
        if scale and self.scaler.is_enabled():  # else it went on another device
            kinds = self.scaler.state_dict()
            self.scaler.load_state_dict(
                {key: type(now)(scale[f"scaler.{key}"]) for key, now in kinds.items()}
            )
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})

    def _grouped(self) -> list[Tensor]:
        """Return the parameters in the order in which the optimizer numbers them."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.modules.named_parameters() if p.requires_grad]

    @torch.no_grad()
    def _changing(self) -> dict[str, Tensor]:
        """Return trained parameters and all buffers, by name."""
        trained = {name: parameter.data for name, parameter in self._trained()}
        return trained | dict(self.modules.named_buffers())


def _freeze(run: Run) -> None:
    trained = run.method.parameters(run)
    if trained is not None:
        run.dynamic.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        return
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
    """Make the parameter groups: encoder, selector and head, each with and without weight decay."""
    encoder = {id(p) for p in run.task.pretrained(run.dynamic).parameters()}
    selector = {id(p) for p in run.dynamic.policy.parameters()}
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
    config = run.config
    rates = {
        "encoder": config.lr_encoder,
        "selector": config.lr_selector,
        "head": run.task.head_rate if config.lr_head is None else config.lr_head,
    }
    return [
        {
            "params": parameters,
            "peak_lr": rates[part],
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (part, decays), parameters in groups.items()
    ]
