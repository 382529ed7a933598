"""Plans: before each layer, which inputs run it.

A plan is called with the index of a layer, the state that would enter it and the frame mask, once
for each layer in order, and returns which inputs run the layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from ..policies.pooling import frame_mean
from .pooling import gumbel_like
from .selectors import Gates, GateSelector

# (index, state [batch, frames, width], frame mask) -> bool [batch] on the CPU, gate weight [batch]
Plan: TypeAlias = Callable[[int, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
Choose: TypeAlias = Callable[[Tensor, Tensor | None], Gates]
# (layers that ran, rows [n], state of these rows [n, frames, width]) -> logits
Readout: TypeAlias = Callable[[int, Tensor, Tensor], Tensor]
# (logits, frame mask) -> how sure each answer is, [batch]
Sure: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]


def check_mask(mask: Any, *, layers: int, batch: int) -> Tensor:
    """A mask that a caller gives, for each of the `batch` inputs.

    Shape: mask [layers] or [batch, layers], bool -> [batch, layers], on the CPU.

    Raises:
        ValueError: no such tensor, or one that keeps no layer of an input.
    """
    try:
        mask = torch.as_tensor(mask, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"a mask is a bool tensor, not {mask!r}") from None
    shapes = [[layers], [batch, layers]]
    if mask.dtype != torch.bool or list(mask.shape) not in shapes:
        raise ValueError(
            f"a mask is bool, {shapes[0]} or {shapes[1]}; got {mask.dtype} {list(mask.shape)}"
        )
    mask = mask.expand(batch, -1)
    if not bool(mask.any(-1).all()):
        raise ValueError("a mask must keep at least one layer of every input")
    return mask


class UpFront:
    """Chooses all layers at once, from the state after the first `after` layers, which all run.

    With `after=0` the choice reads what enters layer 0.

    Args:
        k: kept layers of each input, where some may keep fewer than `after`: their first k run.
            Shape: [batch] int.
    """

    def __init__(self, choose: Choose, after: int = 0, k: Tensor | None = None) -> None:
        self.choose, self.after, self.k = choose, after, k
        self.gates = Gates(torch.empty(0))

    def __call__(
        self, index: int, state: Tensor, frame_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if index < self.after:
            keep = torch.ones(state.shape[0], dtype=torch.bool)
            if self.k is not None:  # of one input, where the encoder runs again on a part
                keep &= (self.k if len(self.k) == len(keep) else self.k[:1]) > index
            return keep, None
        if index == self.after:
            gates = self.choose(state, frame_mask)
            self.gates = Gates(gates.mask.to("cpu"), gates.weight)
        weight = self.gates.weight
        return self.gates.mask[:, index], None if weight is None else weight[:, index]


class SampledGates:
    """Training of a `GateSelector`: every layer runs, and counts where its gate is open.

    Attributes:
        soft: the relaxed gates, [batch] for each layer, for the budget penalty.
    """

    def __init__(self, selector: GateSelector, temperature: float = 1.0) -> None:
        self.selector, self.temperature = selector, temperature
        self.soft: list[Tensor] = []
        self._all = torch.empty(0)

    def __call__(
        self, index: int, state: Tensor, frame_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if self.selector.scope == "local":
            logit = self.selector.logits(state, frame_mask, index)[:, 0]
        else:
            if index == 0:
                self._all = self.selector.logits(state, frame_mask)
            logit = self._all[:, index]
        noisy = logit + gumbel_like(logit) - gumbel_like(logit)
        soft = torch.sigmoid(noisy / self.temperature)
        self.soft.append(soft)
        weight = (noisy > 0).to(soft.dtype) + soft - soft.detach()
        return torch.ones(state.shape[0], dtype=torch.bool), weight


class LocalGates:
    """Layer by layer, by the gates of a "local" `GateSelector`.

    Args:
        k: kept layers of each input, or None to keep all gates above the threshold.
            Shape: [batch] int.
    """

    def __init__(self, selector: GateSelector, k: Tensor | None, threshold: float = 0.0) -> None:
        self.selector, self.k, self.threshold = selector, k, threshold
        self.used = torch.empty(0)

    def __call__(
        self, index: int, state: Tensor, frame_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if index == 0:
            self.used = torch.zeros(state.shape[0], dtype=torch.long)
        logit = self.selector.logits(state, frame_mask, index)[:, 0].to("cpu")
        left = self.selector.layers - index
        keep = logit > self.threshold
        if self.k is None:
            keep |= (self.used == 0) & (left == 1)  # at least one
        else:
            keep = (keep & (self.used < self.k)) | (self.k - self.used >= left)
        self.used = self.used + keep
        return keep, None


def gates_above(selector: GateSelector, threshold: float) -> Plan:
    """Keep the gates above a threshold, and the most open one at least."""
    if selector.scope == "local":
        return LocalGates(selector, None, threshold)

    def choose(features: Tensor, frame_mask: Tensor | None) -> Gates:
        logits = selector.logits(features, frame_mask)
        best = torch.zeros_like(logits, dtype=torch.bool)
        best.scatter_(1, logits.argmax(1, keepdim=True), True)
        return Gates((logits > threshold) | best)

    return UpFront(choose)


class Progressive:
    """Runs layer after layer until the answer is sure enough, input by input.

    Args:
        readout: the answer after some layers.
        threshold: an input stops once its answer is as sure as that.
        sure: how sure an answer is, such as `confidence`.
    """

    def __init__(self, readout: Readout, threshold: float, sure: Sure) -> None:
        self.readout, self.threshold, self.sure = readout, threshold, sure
        self.going = torch.empty(0, dtype=torch.bool)

    def __call__(
        self, index: int, state: Tensor, frame_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if index == 0:
            self.going = torch.ones(state.shape[0], dtype=torch.bool)
        elif bool(self.going.any()):
            rows = self.going.nonzero().squeeze(1)
            logits = self.readout(index, rows.to(state.device), state[rows])
            valid = None if frame_mask is None else frame_mask[rows.to(frame_mask.device)]
            sure = self.sure(logits, valid).to("cpu") >= self.threshold
            self.going = self.going.clone()
            self.going[rows[sure]] = False
        return self.going, None


def confidence(
    logits: Tensor, frame_mask: Tensor | None = None, *, several: bool = False
) -> Tensor:
    """Return the probability of the likeliest class; for an answer a frame, its mean over these.

    Args:
        several: whether an input may have several classes, each a yes or no by itself.

    Shape: [batch, labels], or [batch, frames, labels] with the frame mask or None -> [batch].
    """
    logits = logits.float()
    probabilities = logits.sigmoid() if several else logits.softmax(-1)
    return _over_frames(probabilities.amax(-1), frame_mask)


def certainty(logits: Tensor, frame_mask: Tensor | None = None, *, several: bool = False) -> Tensor:
    """Return minus the entropy of the answer, in nats; of several yes or no their mean.

    Args and shape: as `confidence`.
    """
    logits = logits.float()
    if several:
        yes, no = functional.logsigmoid(logits), functional.logsigmoid(-logits)
        return _over_frames((yes * yes.exp() + no * no.exp()).mean(-1), frame_mask)
    log_p = logits.log_softmax(-1)
    return _over_frames((log_p * log_p.exp()).sum(-1), frame_mask)


def _over_frames(values: Tensor, frame_mask: Tensor | None) -> Tensor:
    """Mean over the valid frames, if there are any. Shape: [batch] or [batch, frames]."""
    return values if values.ndim == 1 else frame_mean(values, frame_mask)
