"""How a module of somebody else's gets another `forward`: by its class, never by a closure.

A function that is put on an instance holds that instance: a deep copy then computes with the
weights of the original, and pickle refuses it. `Override` gives the module a class that is derived
from its own instead, as `torch.nn.utils.parametrize` and FSDP2 do, so that deepcopy, pickle,
spawned workers and averaged copies (EMA) see a module like any other.
"""

from __future__ import annotations

import copyreg
from collections.abc import Iterator
from functools import cache, wraps
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized


class Override:
    """Puts the methods of a class before those of one module, until `remove()`.

    Args:
        module: whose class is replaced by one derived from it, of the same name.
        mixin: a class at the top level of its file, whose methods call `super()`.
    """

    def __init__(self, module: nn.Module, mixin: type) -> None:
        self.module, self.before = module, (original_class(module), _mixins(module))
        module.__class__ = derived(original_class(module), (mixin, *_mixins(module)))

    def remove(self) -> None:
        """Give the module its former class back."""
        original, mixins = self.before
        self.module.__class__ = derived(original, mixins) if mixins else original


def original_class(module: Any) -> Any:
    """Return the class of a module as it was before any `Override`."""
    return getattr(type(module), "_sounding_original", type(module))


def _mixins(module: Any) -> tuple[type, ...]:
    return getattr(type(module), "_sounding_mixins", ())


@cache
def derived(original: type, mixins: tuple[type, ...]) -> Any:
    """Return a class with the methods of `mixins` before those of `original`.

    It has the name of `original`.
    """
    body = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "__reduce_ex__": reduce_derived,
        "_sounding_original": original,
        "_sounding_mixins": mixins,
    }
    made: Any = type(original.__name__, (*mixins, original), body)

    # After the class is made, since layers of transformers wrap its `forward` as they see it, in
    # a gradient checkpoint that would leave the methods of `mixins` out of the first pass.
    @wraps(original.forward)  # type: ignore[attr-defined]
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return super(made, self).forward(*args, **kwargs)

    made.forward = forward
    return made


def reduce_derived(module: Any, protocol: int) -> Any:
    """Reduce an instance of a class made at run time, as `__reduce_ex__`.

    Pickle finds the parts of such a class by name, and not the class itself.
    """
    made = super(type(module), module).__reduce_ex__(max(2, protocol))
    if made[0] is not copyreg.__newobj__ or made[1] != (type(module),):  # type: ignore[attr-defined]
        return made  # its class says by itself how it is copied
    return new_derived, (module._sounding_original, module._sounding_mixins), *made[2:]


def new_derived(original: type, mixins: tuple[type, ...]) -> Any:
    """Make an empty instance, whose state pickle fills in."""
    made = derived(original, mixins)
    return made.__new__(made)


def why_unpicklable(module: nn.Module) -> str:
    """Say what of others keeps pickle from a module; "" where nothing is known to."""
    for name, part in module.named_modules():
        if is_parametrized(part):
            return f"torch pickles no weight norm ({name})"
        if any("<locals>" in getattr(hook, "__qualname__", "") for hook in _hooks(part)):
            return f"{name or 'it'} has a hook that is a local function"
    return ""


def _hooks(module: Any) -> Iterator[Any]:
    for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        yield from getattr(module, kind).values()
