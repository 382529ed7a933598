"""`save_pretrained` of a dynamic model: what `transformers` saves, and our parts beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import atomic_directory
from ..registry import POLICIES
from .derive import original_class
from .io import DECODER_POLICY, EXITS, POLICY, SKIP, UPDATES, model_class_named, write_parts
from .settings import set_layerdrop


def save(dynamic: Any, directory: Path, companions: Sequence[Any] = ()) -> None:
    """Save a `DynamicModel`; see its `save_pretrained`."""
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
    with atomic_directory(directory, keep_others=True) as temporary:
        with _settings_restored(dynamic):
            dynamic.model.save_pretrained(temporary)
        for companion in companions:
            companion.save_pretrained(temporary)
        write_parts(
            temporary,
            parts,
            model=kind.__name__,
            selector=policy.config(),
            skip=dynamic.skip.kind,
            exits=None if exits is None else exits.config(),
            decoder_selector=None if decoder_policy is None else decoder_policy.config(),
            updates=None if updates is None else updates.config(),
            mean_budgets=list(dynamic.mean_budgets),
            layers=dynamic.num_layers,
            trained=dynamic.trained,
            decoder_trained=dynamic.decoder_trained,
        )


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
