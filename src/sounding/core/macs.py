"""Multiply-accumulates (MACs) of each part of a dynamic model, counted while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from .model import DynamicModel


@dataclass(frozen=True)
class Macs:
    """MACs of one input, by part. Elementwise work (norms, activations) is not counted."""

    front_end: int
    selector: int
    layers: tuple[int, ...]
    head: int

    @property
    def full(self) -> int:
        """At full depth, where the selector does not run."""
        return self.front_end + sum(self.layers) + self.head

    @property
    def selector_share(self) -> float:
        """The selector's MACs over those of the full model."""
        return self.selector / self.full

    def of(self, executed: Tensor, *, selector: bool = True) -> float:
        """Mean MACs per input of what ran. Shape: executed [batch, layers] or [layers], bool."""
        executed = executed.double().reshape(-1, len(self.layers))
        ran = float((executed @ torch.tensor(self.layers, dtype=torch.float64)).mean())
        return self.front_end + ran + self.head + (self.selector if selector else 0)


@torch.no_grad()
def count_macs(dynamic: DynamicModel, inputs: dict[str, Tensor] | None = None) -> Macs:
    """Count the MACs of one input (by default one second of noise) at full depth and by part.

    Args:
        inputs: of a batch of 1, as the model takes them.
    """
    if inputs is None:
        inputs = example_inputs(dynamic)
    was_training = dynamic.training
    dynamic.eval()
    marks: list[int] = []
    features: list[Tensor] = []
    counter = FlopCounterMode(display=False, custom_mapping=_SDPA)

    def before(module: Any, args: Any, kwargs: Any) -> None:
        features.append(args[0])
        marks.append(counter.get_total_flops())

    def after(module: Any, args: Any, out: Any) -> None:
        marks.append(counter.get_total_flops())

    handles = [layer.register_forward_hook(after) for layer in dynamic.stack.layers]
    first = dynamic.stack.layers[0]
    handles.append(first.register_forward_pre_hook(before, with_kwargs=True))
    try:
        with counter:
            dynamic(**inputs)
        selector = FlopCounterMode(display=False, custom_mapping=_SDPA)
        with selector:
            dynamic.selector(features[0], None, torch.ones(1, dtype=torch.long))
    finally:
        for handle in handles:
            handle.remove()
        dynamic.train(was_training)
    layers = [b - a for a, b in zip(marks, marks[1:], strict=False)]
    return Macs(
        front_end=marks[0] // 2,
        selector=selector.get_total_flops() // 2,
        layers=tuple(flops // 2 for flops in layers),
        head=(counter.get_total_flops() - marks[-1]) // 2,
    )


def example_inputs(dynamic: DynamicModel, seconds: float = 1.0) -> dict[str, Tensor]:
    """Random inputs of a batch of 1 that the whole model takes."""
    inputs = dynamic.backbone.example(dynamic.base, 1, seconds)
    device, dtype = dynamic.model.device, dynamic.model.dtype
    made = {name: value.to(device, dtype) for name, value in inputs.items()}
    if any(name.endswith("decoder") for name, _ in dynamic.model.named_modules()):
        made["decoder_input_ids"] = torch.zeros(1, 1, dtype=torch.long, device=device)
    return made


def _flash_attention_flops(
    query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    return sdpa_flop_count(query, key, value)


# The CPU's fused attention is not in torch's own table.
_SDPA = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _flash_attention_flops}
