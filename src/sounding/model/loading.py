"""`load`: a dynamic model out of the directory that `save_pretrained` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from ..errors import UsageError
from ..policies import policy_from_config
from .backbones import find_backbone
from .dynamic import DynamicModel
from .hub import local_directory
from .io import (
    CONFIG,
    DECODER_POLICY,
    EXITS,
    POLICY,
    SKIP,
    UPDATES,
    Description,
    load_part,
    model_class_named,
    read_description,
)
from .saving import rounded_digest
from .updates import add_updates
from .wrapping import wrap


def load(
    directory: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    **kwargs: Any,
) -> DynamicModel:
    """Load what `save_pretrained` saved or `push_to_hub` pushed.

    No code of the directory is run, and nothing in it is unpickled.

    Args:
        directory: a local one, or else as a text the id of a model on the hub, ORGANIZATION/NAME.
        revision: branch, tag or commit on the hub.
        token: of the hub.
        kwargs: of the model's `from_pretrained`.

    Raises:
        ValueError: not such a directory, a truncated or changed file, or an unknown model class.
    """
    directory = local_directory(directory, [CONFIG], revision=revision, token=token)
    description = read_description(directory)
    model_class: Any = model_class_named(description.model)
    known = isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)
    if not known:
        raise UsageError(f"{directory / CONFIG}: {description.model!r} is not a transformers model")
    settings = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    try:
        model, info = model_class.from_pretrained(directory, **{**kwargs, **settings})
        dynamic = _with_parts(model, description, directory)
    except Exception as error:  # transformers has a class for each reason and no common one
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{directory} cannot be loaded: {reason}") from error
    if info["missing_keys"] or dynamic.num_layers != description.layers:
        raise UsageError(
            f"{directory}: config.json does not fit the weights: it is damaged or was changed"
        )
    return dynamic


def load_parts(model: Any, directory: str | Path) -> DynamicModel:
    """Wrap a pretrained model with parts that `save_parts` saved without it.

    Raises:
        UsageError: not such a directory, a damaged one, or parts of other weights.
    """
    directory = Path(directory)
    description = read_description(directory)
    if description.weights is None:
        raise UsageError(f"{directory} holds a whole model: load it with sounding.load")
    if description.weights != rounded_digest(model):
        raise UsageError(
            f"{directory} was trained beside other weights than those of this "
            f"{type(model).__name__}: load them with the model that they were made for"
        )
    try:
        return _with_parts(model, description, directory)
    except Exception as error:  # as above
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{directory} cannot be loaded: {reason}") from error


def _with_parts(model: Any, description: Description, directory: Path) -> DynamicModel:
    """Give the plain model of a directory its parts."""
    said, base = description, find_backbone(model)[1]
    width: Any = base.config.hidden_size  # type: ignore[union-attr]
    policy = policy_from_config(said.selector, width=width, layers=said.layers)
    load_part(policy, directory, POLICY)
    dynamic = wrap(model, policy, skip=said.skip, exits=said.exits is not None).eval()
    if dynamic.exits is not None:
        load_part(dynamic.exits, directory, EXITS)
    if dynamic.skip.state_dict():
        load_part(dynamic.skip, directory, SKIP)
    if said.decoder_selector is not None:
        stack = dynamic.decoder_stack
        if stack is None:
            raise UsageError("it has a selector of decoder layers, but no decoder that drops some")
        chooser = policy_from_config(said.decoder_selector, width=width, layers=len(stack))
        load_part(chooser, directory, DECODER_POLICY)
        dynamic.decoder_policy = chooser.to(model.device).eval()
    if said.updates is not None:
        load_part(add_updates(dynamic, **said.updates).requires_grad_(False), directory, UPDATES)
    dynamic.mean_budgets = list(said.mean_budgets)
    if dynamic.several and said.trained is None:
        dynamic.mean_budgets = []  # of before, by a softmax over classes that may hold together
    dynamic.trained = said.trained is not False  # unknown of directories of before
    dynamic.decoder_trained = bool(said.decoder_trained)
    return dynamic
