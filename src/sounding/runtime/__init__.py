"""Exported models on a device: ONNX Runtime, NumPy and an audio reader, no torch.

>>> from sounding import runtime
>>> model = runtime.load("model.onnx")                  # doctest: +SKIP
>>> model.run("clip.wav", budget=3)                     # doctest: +SKIP
"""

from __future__ import annotations

from .answer import Answer, show
from .metadata import Metadata, ModelError
from .model import Model, OneFile, Split, is_exported, load

__all__ = [
    "Answer",
    "Metadata",
    "Model",
    "ModelError",
    "OneFile",
    "Split",
    "is_exported",
    "load",
    "show",
]
