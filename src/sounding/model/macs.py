"""Multiply-accumulates (MACs) of each part of a dynamic model, counted while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from .dynamic import DynamicModel


@dataclass(frozen=True)
class Macs:
    """MACs of one input, by part. Elementwise work (norms, activations) is not counted.

    Attributes:
        skip: of what stands in for one skipped layer.
        exit: of an answer by the head of a budget below full depth; 0 where there is none.
    """

    front_end: int
    selector: int
    layers: tuple[int, ...]
    head: int
    skip: int = 0
    exit: int = 0

    @property
    def full(self) -> int:
        """At full depth, where the selector does not run."""
        return self.front_end + sum(self.layers) + self.head

    @property
    def selector_share(self) -> float:
        """The selector's MACs over those of the full model."""
        return self.selector / self.full

    def of(self, executed: Tensor, *, selector: bool = True) -> float:
        """Return the mean MACs per input of what ran.

        Shape: executed [batch, layers] or [layers], bool.
        """
        executed = executed.double().reshape(-1, len(self.layers))
        ran = float((executed @ torch.tensor(self.layers, dtype=torch.float64)).mean())
        left = (1 - executed).sum(1)
        rest = float((self.skip * left + self.exit * (left > 0)).mean())
        return self.front_end + ran + rest + self.head + (self.selector if selector else 0)


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
            one = torch.ones(1, dtype=torch.long, device=features[0].device)
            dynamic.policy.compute_choice(features[0], one)
    finally:
        for handle in handles:
            handle.remove()
        dynamic.train(was_training)
    layers = [b - a for a, b in pairwise(marks)]
    return Macs(
        front_end=marks[0] // 2,
        selector=selector.get_total_flops() // 2 * dynamic.policy.reads,
        layers=tuple(flops // 2 for flops in layers),
        head=(counter.get_total_flops() - marks[-1]) // 2,
        skip=dynamic.skip.macs(features[0].shape[1]),
        exit=0 if dynamic.exits is None else dynamic.exits.macs(features[0].shape[1]),
    )


def summary(dynamic: DynamicModel, seconds: float = 1.0) -> str:
    """Return layers, parameters and MACs by part, as text for people.

    Args:
        seconds: length of the clip whose MACs are counted.
    """
    macs = count_macs(dynamic, example_inputs(dynamic, seconds))
    layers = dynamic.stack.layers
    rest = sum(p.numel() for p in dynamic.model.parameters())
    in_layers = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    selector = sum(p.numel() for p in dynamic.policy.parameters())
    lines = [
        f"{type(dynamic.model).__name__} ({dynamic.backbone.name}), {len(layers)} layers, "
        f"a clip of {seconds:g} s",
        f"{'part':<12}{'parameters':>14}{'MACs':>18}{'of full':>10}",
    ]
    parts = [("front end", rest - sum(in_layers), macs.front_end)]
    parts += [
        (f"layer {i}", n, m) for i, (n, m) in enumerate(zip(in_layers, macs.layers, strict=True))
    ]
    parts += [("head", 0, macs.head), ("selector", selector, macs.selector)]
    if macs.skip:
        adapters = sum(p.numel() for p in dynamic.skip.parameters()) // len(layers)
        parts.append(("a skip", adapters, macs.skip))
    if dynamic.exits is not None:
        heads = sum(p.numel() for p in dynamic.exits.parameters())
        parts.append(("exits", heads, macs.exit))
    for name, parameters, cost in parts:
        count = "above" if name == "head" else f"{parameters:,}"
        lines.append(f"{name:<12}{count:>14}{cost:>18,}{100 * cost / macs.full:>9.3f} %")
    lines.append(f"{'full depth':<12}{rest:>14,}{macs.full:>18,}{100:>9.3f} %")
    return "\n".join(lines)


def example_inputs(dynamic: DynamicModel, seconds: float = 1.0) -> dict[str, Tensor]:
    """Return random inputs of a batch of 1 that the whole model takes."""
    inputs = dynamic.backbone.example(dynamic.base, 1, seconds)
    device, dtype = dynamic.model.device, dynamic.model.dtype
    made = {name: value.to(device, dtype) for name, value in inputs.items()}
    if dynamic.has_decoder:
        made["decoder_input_ids"] = torch.zeros(1, 1, dtype=torch.long, device=device)
    return made


def _flash_attention_flops(
    query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    flops: int = sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]
    return flops


# The CPU's fused attention is not in torch's own table.
_SDPA = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _flash_attention_flops}
