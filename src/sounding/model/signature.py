"""The class of each dynamic model: it says what its model takes, and can be copied and pickled."""

from __future__ import annotations

import copy
import inspect
from functools import cache
from typing import Any

from .derive import original_class, why_unpicklable


class Copied:
    """Deepcopy and pickle for `DynamicModel`, whose class is made at run time."""

    model: Any

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Copy the model and what chooses its layers."""
        twin = memo[id(self)] = new_dynamic(self.plain_class(), takes_from(self.model))
        twin.__setstate__(copy.deepcopy(vars(self), memo))
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Reduce the model for pickle, which does not find a class made at run time by its name."""
        if reason := why_unpicklable(self):  # type: ignore[arg-type]
            raise TypeError(
                f"this dynamic model cannot be pickled: {reason}. Use save_pretrained, and "
                "sounding.load where it is needed; copy.deepcopy works"
            )
        return new_dynamic, (self.plain_class(), takes_from(self.model)), vars(self)

    def _replicate_for_data_parallel(self) -> Any:
        raise TypeError(
            "nn.DataParallel copies a model in a way in which its replicas would run the layers of "
            "the original: use DistributedDataParallel, or transformers.Trainer with torchrun"
        )

    @classmethod
    def plain_class(cls) -> Any:
        """Return the class that a class of `dynamic_class` was made from."""
        return cls.__dict__.get("_made_from", cls)


def takes_from(model: Any) -> Any:
    """Return the class whose `forward` says what a model takes.

    PEFT wraps a model in a class of its own; that of the model is looked for within.
    """
    inner = getattr(model, "get_base_model", None)
    return original_class(inner() if callable(inner) else model)


@cache
def dynamic_class(base: type, owner: type) -> Any:
    """Derive from `base` a class whose `forward` says what that of `owner` takes, too.

    `transformers.Trainer` finds the columns of a data set, and the labels, by these names, of the
    instance and of its class.

    Args:
        base: `DynamicModel`.
        owner: the class of the wrapped model.
    """
    common: Any = base
    theirs = inspect.signature(owner.forward)  # type: ignore[attr-defined]
    ours = inspect.signature(common.forward).parameters
    own = [ours["budget"], ours["mask"]]
    kept = [one for name, one in theirs.parameters.items() if name not in ("budget", "mask")]
    last = len(kept) - bool(kept and kept[-1].kind is inspect.Parameter.VAR_KEYWORD)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return common.forward(self, *args, **kwargs)

    forward.__doc__ = common.forward.__doc__
    forward.__signature__ = theirs.replace(  # type: ignore[attr-defined]
        parameters=[*kept[:last], *own, *kept[last:]], return_annotation=inspect.Signature.empty
    )
    body = {
        "__module__": base.__module__,
        "__doc__": base.__doc__,
        "forward": forward,
        "_made_from": base,
    }
    return type(base.__name__, (base,), body)


def new_dynamic(base: type, owner: type) -> Any:
    """Make an empty instance, whose state pickle fills in."""
    made = dynamic_class(base, owner)
    return made.__new__(made)
