"""Changes of a model's weights that act only where layers are left out.

The model itself stays as it was pretrained: at full depth it runs its own weights, bit for bit. An
input that runs below full depth finds small changes added to them, of low rank for a matrix (LoRA,
arXiv 2106.09685) and whole for a vector. They are ours and not those of `peft`, whose adapters
act on all inputs of a batch alike.

A layer runs with them by a twin: a copy that shares everything with it but the changed weights, so
that threads which run at other depths do not see them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UsageError
from .call import Call, active_call
from .decoder import active_decoder
from .derive import Override, original_class
from .layer import uncompiled

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


class LowRank(nn.Module):
    """A change of a matrix: the product of a tall and a wide one, zero at the start.

    Args:
        shape: of the weight; what follows the first dimension counts as one.
    """

    def __init__(self, shape: torch.Size, rank: int) -> None:
        super().__init__()
        self.shape = shape
        rows, columns = shape[0], shape[1:].numel()
        rank = min(rank, rows, columns)
        self.up = nn.Parameter(torch.empty(rows, rank))
        self.down = nn.Parameter(torch.empty(rank, columns))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Make the change zero, ready to be trained anew."""
        self.up.zero_()
        self.down.normal_(std=self.down.shape[1] ** -0.5)

    def forward(self) -> Tensor:
        """Return the change. Shape: -> that of the weight."""
        return (self.up @ self.down).view(self.shape)


class Shift(nn.Module):
    """A change of a vector, zero at the start."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(shape))

    @torch.no_grad()
    def reset(self) -> None:
        """Make the change zero, ready to be trained anew."""
        self.shift.zero_()

    def forward(self) -> Tensor:
        """Return the change. Shape: -> that of the weight."""
        return self.shift


class ModuleUpdate(nn.Module):
    """The changes of all weights of one module: a layer, or a norm.

    Args:
        module: the changed one; it is not held.
        rank: of the changes of its matrices.
    """

    def __init__(self, module: nn.Module, rank: int) -> None:
        super().__init__()
        weights = dict(uncompiled(module).named_parameters())
        self.names = {name.replace(".", "-"): name for name in weights}
        self.changes = nn.ModuleDict(
            {
                key: LowRank(weights[name].shape, rank)
                if weights[name].dim() > 1
                else Shift(weights[name].shape)
                for key, name in self.names.items()
            }
        )
        self._twin: tuple[Any, nn.Module] | None = None  # of what, and the copy

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which makes a twin of its own."""
        return {**self.__dict__, "_twin": None}

    def twin(self, module: nn.Module) -> nn.Module:
        """Return a copy of the module with changed weights, ready to be called.

        Hooks of the module are also those of the copy. While gradients are wanted it is made anew
        each time; otherwise it is kept until a weight changes.

        Raises:
            UsageError: the module has lost weights that are changed, as by quantization.
        """
        module = uncompiled(module)
        weights = dict(module.named_parameters())
        lost = [name for name in self.names.values() if name not in weights]
        if lost:
            raise UsageError(
                f"the weight {lost[0]} is not there any more, which this model changes below full "
                "depth: quantize a model without updates"
            )
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
            twin = _copied(module, self._changed(weights))
            self._factor(twin, weights)
            return twin
        kept = _version(module, [*weights.values(), *self.parameters()])
        if self._twin is None or self._twin[0] != kept:
            with torch.no_grad():
                self._twin = kept, _copied(module, self._changed(weights))
        return self._twin[1]

    def _factor(self, twin: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Let the linear parts of a twin add their change to what comes out of the plain weight.

        So no gradient of the whole matrix is computed on the way to that of a change.
        """
        for key, name in self.names.items():
            owner, _, leaf = name.rpartition(".")
            part = twin.get_submodule(owner)
            if type(part) is nn.Linear and leaf == "weight":
                part.forward = partial(  # type: ignore[method-assign]
                    _linear, part, weights[name], self.changes[key]
                )

    def _changed(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: weights[name] + self.changes[key]().to(weights[name].dtype)
            for key, name in self.names.items()
        }


class Updates(nn.Module):
    """The changes of an encoder's layers, of a decoder's, and of the norms behind them.

    Args:
        stacks: the layers and the norm behind them (or None), by "encoder" and "decoder".
        ranks: of the changes, by the same names; 0 for none.
        own_length: whether they also act on all layers of an encoder that hears a clip at its own
            length, where it was pretrained on a fixed window (Whisper).
    """

    def __init__(
        self,
        stacks: dict[str, tuple[Sequence[nn.Module], nn.Module | None]],
        ranks: dict[str, int],
        *,
        own_length: bool = False,
    ) -> None:
        super().__init__()
        self.ranks = {name: rank for name, rank in ranks.items() if rank and name in stacks}
        self.own_length = own_length
        self.layers, self.norms = nn.ModuleDict(), nn.ModuleDict()
        for name, rank in self.ranks.items():
            layers, norm = stacks[name]
            self.layers[name] = nn.ModuleList([ModuleUpdate(layer, rank) for layer in layers])
            if norm is not None:
                self.norms[name] = ModuleUpdate(norm, rank)

    def reset(self) -> None:
        """Make all changes zero, ready to be trained anew."""
        for part in self.modules():
            if isinstance(part, LowRank | Shift):
                part.reset()

    def config(self) -> dict[str, Any]:
        """Return what `add_updates` needs to make them again, as JSON values."""
        return {"ranks": self.ranks, "own_length": self.own_length}

    def has(self, stack: str) -> bool:
        """Return whether layers of the "encoder" or the "decoder" are changed."""
        return stack in self.layers

    def layer(self, stack: str, index: int, layer: nn.Module) -> nn.Module:
        """Return a layer with its changed weights."""
        updates: Any = self.layers[stack]
        twin: nn.Module = updates[index].twin(layer)
        return twin

    def norm(self, stack: str, norm: nn.Module) -> nn.Module:
        """Return the norm behind the layers with its changed weights."""
        update: Any = self.norms[stack]
        twin: nn.Module = update.twin(norm)
        return twin


def begin_changes(call: Call, updates: Updates | None, whole: Tensor, positions: int) -> None:
    """Say in a call which of its inputs have their encoder's layers changed.

    Args:
        whole: the inputs that keep all layers. Shape: [batch] bool.
        positions: the length of the model's input.
    """
    call.updates, call.changed = updates, None
    if updates is not None and updates.has("encoder"):
        short = positions < (call.backbone.window(call.base) or 0)
        changed = torch.ones_like(whole) if short and updates.own_length else ~whole
        call.changed = changed if bool(changed.any()) else None


class EncoderNorm:
    """The norm behind an encoder's layers, by `Override`, with the changes of its call."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalize each input by its own weights. Shape: [batch, frames, width] -> the same."""
        itself: Any = self
        plain = original_class(itself).forward
        call = active_call()
        changed = None if call is None or call.norm is not itself else call.changed
        if call is None or changed is None or not bool(changed.any()):
            return plain(itself, hidden)  # type: ignore[no-any-return]
        other: Tensor = plain(call.updates.norm("encoder", itself), hidden)
        if bool(changed.all()):
            return other
        return torch.where(changed.to(hidden.device)[:, None, None], other, plain(itself, hidden))


class DecoderNorm:
    """The norm behind a decoder's layers, by `Override`, with the changes of what runs."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalize. Shape: [batch, tokens, width] -> the same."""
        itself: Any = self
        now = active_decoder()
        module = itself if now is None else now.norm_of(itself)
        return original_class(itself).forward(module, hidden)  # type: ignore[no-any-return]


def add_updates(dynamic: Any, ranks: dict[str, int], *, own_length: bool = False) -> Updates:
    """Give a `DynamicModel` changes of its weights, which are zero at first, and return them.

    Args:
        ranks, own_length: as of `Updates`.

    Raises:
        UsageError: it has some, a rank is not a whole number of 0 or more, or it has no such
            layers.
    """
    if dynamic.updates is not None:
        raise UsageError("the model has updates already: wrap it anew")
    owner = dynamic.backbone.owner(dynamic.base)
    stacks: dict[str, Any] = {
        "encoder": (dynamic.stack.layers, dynamic.backbone.output_norm(owner))
    }
    if dynamic.decoder_stack is not None:
        stacks["decoder"] = (dynamic.decoder_stack.layers, dynamic.decoder_norm)
    for name, rank in ranks.items():
        if name not in ("encoder", "decoder") or not isinstance(rank, int) or rank < 0:
            raise UsageError(f"ranks are whole numbers for encoder and decoder; got {ranks!r}")
        if rank and name not in stacks:
            raise UsageError(f"the model has no {name} that drops layers: leave its rank out")
    updates = Updates(stacks, ranks, own_length=own_length).to(dynamic.device)
    for name, mixin in (("encoder", EncoderNorm), ("decoder", DecoderNorm)):
        if name in updates.norms:
            dynamic._handles.append(Override(stacks[name][1], mixin))
    dynamic.updates = updates
    return updates


@contextmanager
def folded(dynamic: Any) -> Iterator[None]:
    """Add the updates of a model to the weights of its encoder, at all depths, in a `with` block.

    For what computes at one depth below full, and cannot have each layer twice.
    """
    updates = dynamic.updates
    if updates is None or not updates.has("encoder"):
        yield
        return
    norm = dynamic.backbone.output_norm(dynamic.backbone.owner(dynamic.base))
    owners = [*zip(updates.layers["encoder"], dynamic.stack.layers, strict=True)]
    if "encoder" in updates.norms:
        owners.append((updates.norms["encoder"], norm))
    plain = [
        (uncompiled(module).get_parameter(name), update.changes[key])
        for update, module in owners
        for key, name in update.names.items()
    ]
    before = [weight.data for weight, _ in plain]
    try:
        dynamic.updates = None
        with torch.no_grad():
            for weight, change in plain:
                weight.data = weight + change().to(weight.dtype)
        yield
    finally:
        for (weight, _), data in zip(plain, before, strict=True):
            weight.data = data
        dynamic.updates = updates


def _linear(part: nn.Linear, weight: Tensor, change: Any, inputs: Tensor) -> Tensor:
    """Return what a linear module with a changed weight makes of inputs."""
    low = functional.linear(inputs, change.down)
    return functional.linear(inputs, weight, part.bias) + functional.linear(low, change.up)


def _copied(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """Return a copy that shares all with a module but these weights, its hooks too."""
    parts = list(module.modules())
    shared: list[Any] = [*module.parameters(), *module.buffers()]
    shared += [part.config for part in parts if hasattr(part, "config")]
    shared += [getattr(part, hooks) for part in parts for hooks in HOOKS]
    memo = {id(one): one for one in shared}
    memo |= {id(c): None for part in parts if (c := getattr(part, "_compiled_call_impl", None))}
    twin = copy.deepcopy(module, memo)
    for name, value in weights.items():
        owner, _, leaf = name.rpartition(".")
        twin.get_submodule(owner)._parameters[leaf] = value  # type: ignore[assignment]
    return twin


def _version(module: nn.Module, weights: list[Tensor]) -> Any:
    """Return what changes as soon as a module or one of the weights does."""
    changes = [
        (id(one), one.data_ptr(), one.dtype, 0 if one.is_inference() else one._version)
        for one in weights
    ]
    return id(module), module.training, changes
