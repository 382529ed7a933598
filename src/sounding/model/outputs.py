"""Outputs of `transformers` that also say which layers ran."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

from transformers.utils import ModelOutput

FIELDS = ("executed_layers", "executed_decoder_layers", "passes", "accepted")


def add_layers(out: Any, **layers: Any) -> None:
    """Give an output of a model further entries of `FIELDS`.

    It becomes an instance of a subclass of its own class that knows these fields, and so a node of
    torch's pytree: DistributedDataParallel, vmap and accelerate find every tensor in it. What is
    no dictionary is left as it is.

    Args:
        layers: by name; None is left out.
    """
    if isinstance(out, ModelOutput):
        kind: type = type(out)
        out.__class__ = output_class(kind)
    if isinstance(out, dict):
        for name, value in layers.items():
            if value is not None:
                out[name] = value


@cache
def output_class(kind: type) -> Any:
    """Return the class of an output with the `FIELDS`, which are None by default."""
    if hasattr(kind, "_kind"):
        return kind
    body = {"__module__": __name__, "__reduce__": _reduce, "_kind": kind}
    fields = [(name, Any, dataclasses.field(default=None)) for name in FIELDS]
    return dataclasses.make_dataclass(
        f"Dynamic{kind.__name__}", fields, bases=(kind,), namespace=body
    )


def _reduce(out: Any) -> Any:
    """Reduce an output for pickle, which finds the class of `transformers` by its name.

    Ours is made again from it.
    """
    return _restored, (out._kind, dict(out))


def _restored(kind: type, entries: dict[str, Any]) -> Any:
    return output_class(kind)(**entries)
