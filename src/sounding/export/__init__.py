"""Export: one ONNX file that still chooses its layers, a plain one of a mask, or its parts."""

from __future__ import annotations

from .build import Exported, export
from .parts import ExportError, Parts, export_parts

__all__ = ["ExportError", "Exported", "Parts", "export", "export_parts"]
