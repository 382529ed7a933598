"""Exported models on a device: ONNX Runtime, NumPy and an audio reader, no torch.

>>> from sounding import runtime
>>> model = runtime.load("model.onnx")                  # doctest: +SKIP
>>> model.run("clip.wav", budget=3)                     # doctest: +SKIP
"""

from __future__ import annotations

from .answer import Answer, show
from .governor import Governed, Governor, Step
from .metadata import Metadata, ModelError
from .model import Model, OneFile, Split, is_exported, load, profile_path
from .profile import BudgetWarning, Profile
from .stream import Heard, Stream

__all__ = [
    "Answer",
    "BudgetWarning",
    "Governed",
    "Governor",
    "Heard",
    "Metadata",
    "Model",
    "ModelError",
    "OneFile",
    "Profile",
    "Split",
    "Step",
    "Stream",
    "is_exported",
    "load",
    "profile_path",
    "show",
]
