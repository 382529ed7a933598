"""Layers in 8-bit integers.

Each layer is quantized by itself before it is joined with the others, so that it makes no
difference whether it will sit in a branch. The front end, the selector and the heads stay in
float32: the same layers are chosen as without, and the convolutions of ONNX Runtime are slower on
integers that are quantized on the fly.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from .parts import Parts


def quantize(parts: Parts) -> Parts:
    """The parts with layers whose weights are int8, a scale for each column.

    What enters a product is quantized while it runs, by its own range, a scale for each tensor.
    """
    with TemporaryDirectory(prefix="sounding-") as directory, _quiet():
        path = Path(directory) / "layer.onnx"
        return replace(parts, layers=[_quantized(layer, path) for layer in parts.layers])


def _quantized(layer: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    quantize_dynamic(
        layer,
        path,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QInt8,
    )
    return onnx.load(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without its advice to fold constants first, which is done."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
