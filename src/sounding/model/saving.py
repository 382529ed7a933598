"""`save_pretrained` of a dynamic model: what `transformers` saves, and our parts beside it."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UsageError
from ..files import atomic_directory
from ..registry import POLICIES
from .derive import original_class
from .io import DECODER_POLICY, EXITS, POLICY, SKIP, UPDATES, model_class_named, write_parts
from .settings import set_layerdrop


def save(dynamic: Any, directory: Path, companions: Sequence[Any] = ()) -> None:
    """Save a `DynamicModel`; see its `save_pretrained`."""
    with atomic_directory(directory, keep_others=True) as temporary:
        parts, description = _described(dynamic)
        with _settings_restored(dynamic):
            dynamic.model.save_pretrained(temporary)
        for companion in companions:
            companion.save_pretrained(temporary)
        write_parts(temporary, parts, **description)


def save_parts(dynamic: Any, directory: Path | str) -> None:
    """Save what was trained beside a pretrained model, without that model, for `load_parts`.

    Floating-point numbers are written in half precision.

    Raises:
        UsageError: a policy that `load_parts` could not build again.
    """
    with atomic_directory(Path(directory), keep_others=True) as temporary:
        parts, description = _described(dynamic)
        halves = {name: copy.deepcopy(part).half() for name, part in parts.items() if part}
        write_parts(temporary, halves, weights=rounded_digest(dynamic.model), **description)


def rounded_digest(model: nn.Module) -> str:
    """Return a digest of the weights of a model, rounded to half precision.

    Published weights are the same in single and in half precision then.
    """
    made = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_floating_point():
            rounded = tensor.detach().half().cpu().contiguous()
            made.update(f"{name} {list(tensor.shape)}".encode())
            made.update(rounded.view(-1).view(torch.uint8).numpy().tobytes())
    return made.hexdigest()


def _described(dynamic: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parts of a model, and what `sounding.json` says of it."""
    kind = original_class(dynamic.model)
    if model_class_named(kind.__name__) is not kind:
        raise UsageError(
            f"load cannot build a {kind.__name__} again, as transformers has none: "
            "save dynamic.model by its own means, and the state_dict of dynamic.policy"
        )
    policy, decoder_policy = dynamic.policy, dynamic.decoder_policy
    for one in (policy, decoder_policy):
        if one is not None and POLICIES.get(getattr(one, "kind", "")) is not type(one):
            raise UsageError(
                f"load cannot build a {type(one).__name__} again: register it "
                "(sounding.register_policy), or save the parts with "
                "dynamic.model.save_pretrained(...) and the state_dict of the policies"
            )
    exits, updates = dynamic.exits, dynamic.updates
    parts = {POLICY: policy, SKIP: dynamic.skip, EXITS: exits, DECODER_POLICY: decoder_policy}
    parts[UPDATES] = updates
    description = {
        "model": kind.__name__,
        "selector": policy.config(),
        "skip": dynamic.skip.kind,
        "exits": None if exits is None else exits.config(),
        "decoder_selector": None if decoder_policy is None else decoder_policy.config(),
        "updates": None if updates is None else updates.config(),
        "mean_budgets": list(dynamic.mean_budgets),
        "layers": dynamic.num_layers,
        "trained": dynamic.trained,
        "decoder_trained": dynamic.decoder_trained,
    }
    return parts, description


@contextmanager
def _settings_restored(dynamic: Any) -> Iterator[None]:
    """Put back what was changed of the model's configuration, for the time of a save."""
    owner = dynamic.backbone.owner(dynamic.base)
    set_layerdrop(owner, dynamic._layerdrop)
    dynamic._not_predicted.remove()
    try:
        yield
    finally:
        dynamic._not_predicted.put()
        set_layerdrop(owner, 0.0)
