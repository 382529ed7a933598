"""The decoder of an encoder-decoder model: which of its layers run.

A layer that is not kept is not executed. Its place in the cache of keys and values holds one number
per position, so that the lengths, positions and beams that `transformers` reads from the cache stay
right.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..budget import Budget
from ..errors import UsageError
from ..policies.plans import check_mask


@dataclass
class _Running:
    """The layers of a decoder that are to run, and those that did.

    Attributes:
        updates: the `Updates` of the model, or None.
        norm: what stands behind the layers.

    Shape: mask [layers] bool: the layers to run; ran [layers] bool: those that did.
    """

    stack: DecoderStack
    mask: list[bool]
    ran: Tensor
    updates: Any = None
    norm: Any = None
    twins: dict[int | None, Any] = field(default_factory=dict)  # found once a text; None: the norm

    @property
    def changed(self) -> bool:
        """Whether the layers run with their updates: where some are left out."""
        has_some = self.updates is not None and self.updates.has("decoder")
        return has_some and not all(self.mask)

    def __iter__(self) -> Iterator[Any]:
        for index, layer in enumerate(self.stack.layers):
            if self.mask[index]:
                self.ran[index] = True
                yield self._twin(index, layer) if self.changed else layer
            else:
                yield partial(_pass, index)

    def norm_of(self, norm: nn.Module) -> nn.Module:
        """Return what stands behind the layers, with its changes where some are left out."""
        changed = self.changed and self.norm is norm
        return self._twin(None, norm) if changed else norm

    def _twin(self, index: int | None, module: nn.Module) -> Any:
        if index not in self.twins:
            self.twins[index] = (
                self.updates.norm("decoder", module)
                if index is None
                else self.updates.layer("decoder", index, module)
            )
        return self.twins[index]


_running: ContextVar[_Running | None] = ContextVar("sounding_decoder", default=None)


def active_decoder() -> _Running | None:
    """Return what runs of a decoder in this thread or task, if `running` says so."""
    return _running.get()


class DecoderStack(nn.ModuleList):
    """The decoder's own layers under their own names; within `running` only some of them run."""

    def __iter__(self) -> Iterator[Any]:
        now = _running.get()
        return iter(now) if now is not None and now.stack is self else super().__iter__()

    @property
    def layers(self) -> list[nn.Module]:
        """The layers, also while some of them run."""
        return list(self._modules.values())


def find_decoder(model: nn.Module, name: str | None) -> Any:
    """Return the part of `model` that is a decoder of the class `name`, or None."""
    for module in model.modules():
        if name in {cls.__name__ for cls in type(module).__mro__}:
            return module
    return None


@contextmanager
def running(
    stack: DecoderStack, mask: Tensor, updates: Any = None, norm: Any = None
) -> Iterator[Tensor]:
    """Run only the layers of `mask` in a `with` block of this thread or task.

    Yield what has really run so far.

    Args:
        updates: the `Updates` of the model, which act where a layer is left out.
        norm: what stands behind the layers, and is changed too.

    Shape: mask [layers] bool -> the same.
    """
    ran = torch.zeros(len(stack), dtype=torch.bool)
    now = _Running(stack, mask.tolist(), ran, updates, norm)
    token = _running.set(now)
    try:
        yield now.ran
    finally:
        _running.reset(token)


def _pass(index: int, hidden: Tensor, mask: Any, encoder_states: Tensor, **kwargs: Any) -> Tensor:
    """Stand in for the decoder layer `index` of Whisper or Moonshine.

    Shape: hidden [batch, tokens, width] -> the same; encoder_states [batch, frames, width].
    """
    cache = kwargs.get("cache", kwargs.get("past_key_values"))  # as in transformers 5.20
    if cache is not None:
        place = hidden[:, None, :, :1]  # as keys of one head of width 1
        cache.self_attention_cache.update(place, place, index)
        if not cache.is_updated.get(index):
            place = encoder_states[:, None, :, :1]
            cache.cross_attention_cache.update(place, place, index)
            cache.is_updated[index] = True
    return hidden


def asked_layers(budget: Any, mask: Tensor | None, *, layers: int, batch: int) -> Tensor:
    """Return the decoder layers that a mask names, or the first k that a budget asks for.

    Shape: -> [batch, layers] bool.

    Raises:
        ValueError: a budget or a mask that is not allowed.
    """
    if mask is not None and budget is not None:
        raise UsageError("give a decoder_budget or a decoder_mask, not both")
    try:
        if mask is not None:
            return check_mask(mask, layers=layers, batch=batch)
        k = torch.tensor(Budget.parse(budget).kept_layers(layers=layers, batch=batch))
    except ValueError as error:
        raise UsageError(f"of the decoder: {error}") from None
    return torch.arange(layers) < k[:, None]
