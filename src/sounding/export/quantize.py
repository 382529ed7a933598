"""Layers in 8-bit integers.

Each layer is quantized by itself before it is joined with the others, so that it makes no
difference whether it will sit in a branch. The front end, the selector and the heads stay in
float32: the same layers are chosen as without, and the convolutions of ONNX Runtime are slower on
integers that are quantized on the fly.

Weights are int8 with a scale for each column. What enters a product is uint8, by its own range as
it comes (dynamic), or by a range measured on clips before (static).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from ..runtime import Split
from .parts import Parts

Feed: TypeAlias = dict[str, np.ndarray]  # inputs of a layer, by name
PRODUCTS = ["MatMul", "Gemm"]


def quantize(parts: Parts, feeds: Sequence[list[Feed]] | None = None) -> Parts:
    """The parts with layers in int8.

    Args:
        feeds: inputs of each layer on real clips, for static ranges.
    """
    with TemporaryDirectory(prefix="sounding-") as directory, _quiet():
        source, target = Path(directory) / "fp32.onnx", Path(directory) / "int8.onnx"
        layers = []
        for index, layer in enumerate(parts.layers):
            onnx.save(layer, source)  # given the graph itself, the quantizer would change it
            if feeds is None:
                _dynamic(source, target)
            else:
                _static(source, target, feeds[index])
            layers.append(onnx.load(target))
    return replace(parts, layers=layers)


def layer_feeds(model: Split, features: Sequence[np.ndarray]) -> list[list[Feed]]:
    """What enters each layer of an fp32 split export, at full depth and at half of it.

    Shape: features [frames, bins] or [samples], one a clip.
    """
    layers = model.meta.layers
    feeds: list[list[Feed]] = [[] for _ in range(layers)]
    run = model.run_part

    def record(name: str, feed: Feed) -> list[np.ndarray]:
        if name.startswith("layer_"):
            feeds[int(name.removeprefix("layer_"))].append(feed)
        return run(name, feed)

    model.run_part = record  # type: ignore[method-assign]
    for one in features:
        for k in {layers, max(1, layers // 2)}:
            model.predict(one[None], k)
    return feeds


def _dynamic(source: Path, target: Path) -> None:
    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=PRODUCTS,
        per_channel=True,
        weight_type=QuantType.QInt8,
    )


def _static(source: Path, target: Path, feeds: list[Feed]) -> None:
    options = {
        "MatMulConstBOnly": True,  # products of two states stay in fp32, as with dynamic ranges
        "OpTypesToExcludeOutputQuantization": PRODUCTS,
    }
    quantize_static(
        source,
        target,
        _Feeds(feeds),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=PRODUCTS,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options=options,
    )


class _Feeds(CalibrationDataReader):
    """One feed after another."""

    def __init__(self, feeds: list[Feed]) -> None:
        self.left = iter(feeds)

    def get_next(self) -> Any:
        """The next, or None after the last."""
        return next(self.left, None)


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
