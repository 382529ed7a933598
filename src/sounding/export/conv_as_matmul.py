"""Convolutions over time as products of matrices, which ONNX Runtime computes well in 8 bits.

Its convolutions are slower on integers that are quantized on the fly than in float32, and in a
model with few kept layers the convolutions of the front end are most of the work.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

SMALLEST = 64  # width of a window; below it (raw samples, one channel) there is nothing to gain


def as_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph whose convolutions over time are products; other ones stay.

    A convolution with kernel k and stride s is one product: the k frames of each window, side by
    side, times the kernel as a matrix [k * channels, outputs].
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    kernels = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        kernel = kernels.get(node.input[1]) if node.op_type == "Conv" else None
        if kernel is None or not _fits(node, kernel):
            nodes.append(node)
        else:
            nodes += _product(graph, node, kernel)
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph)
    return made


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def _fits(node: onnx.NodeProto, kernel: np.ndarray) -> bool:
    """Return whether a convolution is over time, of all channels at once, and wide enough."""
    has = _attributes(node)
    simple = has.get("group", 1) == 1 and set(has.get("dilations", [1])) == {1}
    padded = has.get("auto_pad", b"NOTSET") == b"NOTSET"
    return kernel.ndim == 3 and simple and padded and kernel.shape[1] >= SMALLEST


def _product(
    graph: onnx.GraphProto, node: onnx.NodeProto, kernel: np.ndarray
) -> list[onnx.NodeProto]:
    """Return what takes the place of a convolution. Shape: kernel [outputs, channels, k]."""
    outputs, channels, k = kernel.shape
    has, scope = _attributes(node), node.output[0]
    stride, pads = has.get("strides", [1])[0], has.get("pads", [0, 0])
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, value: Any) -> str:
        array = np.asarray(value, np.float32 if name == "matrix" else np.int64)
        graph.initializer.append(numpy_helper.from_array(array, f"{scope}/{name}"))
        return f"{scope}/{name}"

    def add(operation: str, inputs: list[str], name: str, **settings: Any) -> str:
        output = f"{scope}/{name}" if name else scope
        nodes.append(helper.make_node(operation, inputs, [output], name=output, **settings))
        return output

    frames = add("Transpose", [node.input[0]], "frames", perm=[0, 2, 1])  # [batch, time, channels]
    if any(pads):
        frames = add("Pad", [frames, constant("pads", [0, pads[0], 0, 0, pads[1], 0])], "padded")
    step, axis = constant("stride", [stride]), constant("axis", [1])
    rest = add("Sub", [add("Shape", [frames], "time", start=1, end=2), constant("k", [k])], "rest")
    last = add("Mul", [add("Div", [rest, step], "windows"), step], "last")  # window's first frame
    taps = []
    for tap in range(k):
        end = add("Add", [last, constant(f"past_{tap}", [tap + 1])], f"end_{tap}")
        start = constant(f"start_{tap}", [tap])
        taps.append(add("Slice", [frames, start, end, axis, step], f"tap_{tap}"))
    window = add("Concat", taps, "window", axis=2)
    matrix = constant("matrix", kernel.transpose(2, 1, 0).reshape(k * channels, outputs))
    made = add("MatMul", [window, matrix], "product")
    if len(node.input) > 2:
        made = add("Add", [made, node.input[2]], "biased")
    add("Transpose", [made], "", perm=[0, 2, 1])
    return nodes


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove the kernels that are matrices now."""
    used = {name for node in graph.node for name in node.input}
    kept = [one for one in graph.initializer if one.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
