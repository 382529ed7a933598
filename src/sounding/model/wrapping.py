"""`wrap` and `unwrap`: a dynamic model of a `transformers` model, and that model back."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import UsageError
from ..policies import Policy, new_policy
from .backbones import find_backbone
from .dynamic import DynamicModel
from .executor import LayerStack
from .exits import new_exits
from .layer import uncompiled
from .settings import set_layerdrop
from .signature import dynamic_class, takes_from
from .skip import SkipPath


def wrap(
    model: Any,
    policy: str | Policy = "input",
    *,
    skip: str = "identity",
    exits: bool = False,
) -> DynamicModel:
    """Make a `transformers` speech model choose its own layers; `unwrap` undoes it.

    The dynamic model is in training or evaluation mode as `model` is.

    Args:
        model: any supported model, with or without a task head.
        policy: what chooses the layers: "input" (IDLD-style: reads what enters layer 0), "first"
            (the first k layers), the kind of another registered policy, or a `Policy`.
        skip: "identity"; "norm": a skipped layer still applies its final norm (LDASR), for
            backbones whose layers end in one; or "adapter": a small learned map in its place.

        exits: give a classifier or a CTC model a new head for each number of kept layers below
            full depth, as early exit has; to be trained.

    Raises:
        ValueError: an unsupported model (the text lists the supported ones), one that is wrapped
            already, a skip path that its layers do not have, or exits for another kind of model.
    """
    if isinstance(model, DynamicModel) or _has_stack(model):
        raise UsageError("the model is wrapped already: unwrap it first")
    if isinstance(model, torch._dynamo.OptimizedModule):
        raise UsageError(
            "wrap the model first and compile its layers after: "
            "for layer in dynamic.stack.layers: layer.compile()"
        )
    backbone, found = find_backbone(model)
    base: Any = found
    layers: Any = backbone.owner(base).layers
    width = base.config.hidden_size
    passing = SkipPath(skip, backbone, [uncompiled(layer) for layer in layers], width)
    if isinstance(policy, str):
        policy = new_policy(policy, width=width, layers=len(layers))
    elif not isinstance(policy, Policy):
        raise UsageError(f"policy is a name or a sounding.Policy, not a {type(policy).__name__}")
    needed = exits and len(layers) > 1  # one layer has no budget below full depth
    heads = new_exits(model, len(layers), width) if needed else None
    device = next(model.parameters()).device
    for part in (policy, passing, heads):
        if part is not None:
            part.to(device)
    made = dynamic_class(DynamicModel, takes_from(model))
    dynamic: DynamicModel = made(model, policy, backbone, base, passing, heads)
    return dynamic


def unwrap(dynamic: DynamicModel) -> Any:
    """Return the original model as it was before `wrap`; the dynamic one is of no more use."""
    if not isinstance(dynamic, DynamicModel):
        raise TypeError(f"unwrap takes a DynamicModel, not {type(dynamic).__name__}")
    owner = dynamic.backbone.owner(dynamic.base)
    if not isinstance(owner.layers, LayerStack):
        raise UsageError("this model is unwrapped already")
    for handle in reversed(dynamic._handles):
        handle.remove()
    owner.layers = dynamic._plain_layers[0]
    if dynamic.decoder_stack is not None:
        dynamic._decoder.layers = dynamic._plain_layers[1]
    set_layerdrop(owner, dynamic._layerdrop)
    dynamic._not_predicted.remove()
    return dynamic.model


def _has_stack(model: nn.Module) -> bool:
    return any(isinstance(module, LayerStack) for module in model.modules())
