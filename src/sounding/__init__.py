"""Pretrained speech models that choose their own depth, by input-driven layer dropping.

>>> import sounding
>>> dynamic = sounding.wrap(model)              # doctest: +SKIP
>>> out = dynamic(**batch, budget=3)            # doctest: +SKIP
>>> out.logits, out.executed_layers             # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .budget import Budget
    from .errors import SoundingError
    from .methods import Method, register_method
    from .model.backbones import Backbone, register_backbone
    from .model.dynamic import DynamicModel
    from .model.loading import load
    from .model.macs import summary
    from .model.wrapping import unwrap, wrap
    from .policies import Policy, register_policy
    from .tasks import register_task
    from .tasks.base import Task

__all__ = [
    "Backbone",
    "Budget",
    "DynamicModel",
    "Method",
    "Policy",
    "SoundingError",
    "Task",
    "__version__",
    "load",
    "register_backbone",
    "register_method",
    "register_policy",
    "register_task",
    "summary",
    "unwrap",
    "wrap",
]
__version__ = "0.1.0"

_HOME = {
    "Backbone": "model.backbones",
    "Budget": "budget",
    "DynamicModel": "model.dynamic",
    "Method": "methods",
    "Policy": "policies",
    "SoundingError": "errors",
    "Task": "tasks.base",
    "load": "model.loading",
    "register_backbone": "model.backbones",
    "register_method": "methods",
    "register_policy": "policies",
    "register_task": "tasks",
    "summary": "model.macs",
    "unwrap": "model.wrapping",
    "wrap": "model.wrapping",
}


def __getattr__(name: str) -> Any:
    """Load torch and transformers only when they are needed: `sounding --help` is not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        module = import_module(f".{_HOME[name]}", __name__)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(explain_missing(error), name=error.name) from None
    return getattr(module, name)


def explain_missing(error: ModuleNotFoundError) -> str:
    """Say which extra brings the module that is missing: a light install has `runtime` only."""
    extra = {"matplotlib": "demo", "espeakng_loader": "demo"}
    extra |= dict.fromkeys(("onnx", "onnxscript"), "export")
    extra |= dict.fromkeys(("torch", "transformers", "safetensors", "yaml", "rich"), "train")
    name = (error.name or "").split(".")[0]
    if name not in extra:
        return str(error)
    return f"this needs {name}, which is not installed: pip install 'sounding[{extra[name]}]'"
