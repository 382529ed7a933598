"""The front end and the layers in 8-bit integers.

Each is quantized by itself before it is joined with the others, so that it makes no difference
whether it will sit in a branch. The selector and the heads stay in float32: they are small, and
what they decide is worth more. The convolutions of the front end become products before.

Weights are int8 with a scale for each column. What enters a product is uint8, by its own range as
it comes (dynamic), or by a range measured on clips before (static).
"""

from __future__ import annotations

import logging
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from ..runtime import Split
from .conv_as_matmul import as_products
from .parts import Parts

Feed: TypeAlias = dict[str, np.ndarray]  # inputs of a part, by name
PRODUCTS = ["MatMul", "Gemm"]
FRONT_ERROR = 0.004  # that a product of the front end in int8 may make in its state


def quantize(
    parts: Parts,
    examples: Sequence[np.ndarray],
    feeds: Mapping[str, list[Feed]] | None = None,
    directory: Path | None = None,
) -> Parts:
    """Return the parts with front end and layers in int8.

    Args:
        examples: features of a few sounds, by which the products of the front end are judged.
        feeds: inputs of each part on real clips, by its name, for static ranges.
        directory: for temporary files; by default that of the system.

    Shape: examples [frames, bins] or [samples], one a sound.
    """
    feed: Mapping[str, list[Feed]] = {} if feeds is None else feeds
    with _quiet(), TemporaryDirectory(prefix="sounding-", dir=directory) as made:
        place = Path(made)
        front = _front(as_products(parts.front), examples, feed.get("front"), place)
        layers = [
            _quantized(layer, feed.get(f"layer_{index}"), place)
            for index, layer in enumerate(parts.layers)
        ]
    return replace(parts, front=front, layers=layers)


def _front(
    model: onnx.ModelProto, examples: Sequence[np.ndarray], feed: list[Feed] | None, place: Path
) -> onnx.ModelProto:
    """Return the front end with those products in int8 that leave its state nearly as it is.

    One whose input has channels far larger than the others (Moonshine's last convolution) would
    spoil the state by itself: it stays in float32.
    """
    constant = {one.name for one in model.graph.initializer}
    products = {
        node.name
        for node in model.graph.node
        if node.op_type in PRODUCTS and node.input[1] in constant
    }
    expected = _states(model, examples)
    spoiling = set()
    for name in sorted(products):
        alone = _quantized(model, feed, place, exclude=products - {name})
        if _apart(_states(alone, examples), expected) > FRONT_ERROR:
            spoiling.add(name)
    return _quantized(model, feed, place, exclude=spoiling) if products - spoiling else model


def _states(model: onnx.ModelProto, examples: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return what a front end makes of examples. Shape: -> [1, frames, width] each."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return [session.run(["state"], {"features": one[None]})[0] for one in examples]


def _apart(states: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Return the largest difference, over the size of what was expected."""
    norm = np.linalg.norm
    return float(max(norm(a - b) / norm(b) for a, b in zip(states, expected, strict=True)))


def _quantized(
    model: onnx.ModelProto, feed: list[Feed] | None, place: Path, exclude: Collection[str] = ()
) -> onnx.ModelProto:
    """Return a graph with its products in int8, but for those of some names."""
    source, target = place / "fp32.onnx", place / "int8.onnx"
    onnx.save(model, source)  # given the graph itself, the quantizer would change it
    if feed is None:
        _dynamic(source, target, list(exclude))
    else:
        with _temporaries_in(place):
            _static(source, target, feed, list(exclude))
    return onnx.load(target)


@contextmanager
def _temporaries_in(place: Path) -> Iterator[None]:
    """Let ONNX Runtime put its temporary files there, where they are found after a kill.

    It has no argument for that, and `tempfile.tempdir` would move those of other threads too.
    """
    module: Any = sys.modules[quantize_static.__module__]
    before = module.tempfile
    module.tempfile = SimpleNamespace(TemporaryDirectory=partial(TemporaryDirectory, dir=place))
    try:
        yield
    finally:
        module.tempfile = before


def part_feeds(model: Split, features: Sequence[np.ndarray]) -> dict[str, list[Feed]]:
    """Return what enters each part of an fp32 split export, at full depth and at half of it.

    Shape: features [frames, bins] or [samples], one a clip.
    """
    layers = model.meta.layers
    feeds: dict[str, list[Feed]] = defaultdict(list)
    run = model.run_part

    def record(name: str, feed: Feed) -> list[np.ndarray]:
        feeds[name].append(feed)
        return run(name, feed)

    model.run_part = record  # type: ignore[method-assign]
    for one in features:
        for k in {layers, max(1, layers // 2)}:
            model.predict(one[None], k)
    return feeds


def _dynamic(source: Path, target: Path, exclude: list[str]) -> None:
    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=PRODUCTS,
        per_channel=True,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=exclude,
    )


def _static(source: Path, target: Path, feeds: list[Feed], exclude: list[str]) -> None:
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
        nodes_to_exclude=exclude,
        extra_options=options,
    )


class _Feeds(CalibrationDataReader):
    """The feeds of a part, one after the other."""

    def __init__(self, feeds: list[Feed]) -> None:
        self.left = iter(feeds)

    def get_next(self) -> Any:
        """Return the next feed, or None after the last."""
        return next(self.left, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the advice of ONNX Runtime to fold constants first, which is done."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
