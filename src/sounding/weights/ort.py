"""The weights and nodes of a model of ONNX Runtime (.ort), read as data."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .ctranslate2 import Arrays
from .packages import WeightsError

ORT_VERSION = "6"
DTYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8"}
# The fields of a table have numbers; these are those of the schema (ort.fbs of ONNX Runtime).
SESSION_VERSION, SESSION_MODEL = 0, 1
MODEL_GRAPH = 7
GRAPH_INITIALIZERS, GRAPH_NODES = 0, 2
TENSOR_NAME, TENSOR_DIMS, TENSOR_TYPE, TENSOR_DATA = 0, 2, 3, 4
MOST_AXES = 16
NODE_NAME, NODE_OPERATOR, NODE_INPUTS, NODE_OUTPUTS, NODE_ATTRIBUTES = 0, 5, 8, 9, 10
ATTRIBUTE_GRAPH = 7


@dataclass(frozen=True)
class Node:
    """An operation of the graph, with the names of what goes in and comes out."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_ort(data: bytes) -> tuple[Arrays, list[Node]]:
    """Read a model of ONNX Runtime, format version 6.

    The file is a FlatBuffer: little-endian tables, whose fields are found by offsets.

    Returns:
        The constants of the graph by name, as views of `data`; its nodes, each followed by those of
        its branches, if it has any.

    Raises:
        WeightsError: another format or version, a truncated file, or one that contradicts itself.
    """
    if data[4:8] != b"ORTM":
        raise WeightsError(
            f"the model file has {data[4:8]!r} as bytes 4 to 7, expected 'ORTM', a model of ONNX "
            "Runtime in the ORT format: use another file"
        )
    try:
        session = _Table(_Bytes(data), _uint(data, 0))
        version = session.text(SESSION_VERSION)
        if version != ORT_VERSION:
            raise WeightsError(
                f"the model file has the ORT format version {version!r}, expected {ORT_VERSION!r}: "
                "use another file"
            )
        graph = session.table(SESSION_MODEL).table(MODEL_GRAPH)
        arrays = dict(_array(tensor) for tensor in graph.tables(GRAPH_INITIALIZERS))
        return arrays, list(_nodes(graph))
    except WeightsError:
        raise
    except (struct.error, IndexError, ValueError, RecursionError) as error:
        raise _damaged(str(error)) from None


def _array(tensor: _Table) -> tuple[str, np.ndarray]:
    name, kind = tensor.text(TENSOR_NAME), tensor.number(TENSOR_TYPE, "<i")
    sizes = [size for (size,) in struct.iter_unpack("<q", tensor.vector(TENSOR_DIMS, 8))]
    if len(sizes) > MOST_AXES:
        raise _damaged(f"{name} has {len(sizes)} axes")
    raw = tensor.vector(TENSOR_DATA, 1)
    if kind not in DTYPES:
        raise _damaged(f"{name} has the type {kind}, which is not among {DTYPES}")
    dtype = np.dtype(DTYPES[kind])
    if min(sizes, default=0) < 0 or len(raw) != math.prod(sizes) * dtype.itemsize:
        raise _damaged(f"{name} has {len(raw)} bytes for the shape {sizes} of {dtype}")
    values = np.frombuffer(raw, dtype) if len(raw) else np.empty(0, dtype)
    return name, values.reshape(sizes)


def _nodes(graph: _Table) -> Iterator[Node]:
    for node in graph.tables(GRAPH_NODES):
        yield Node(
            node.text(NODE_OPERATOR),
            node.text(NODE_NAME),
            tuple(node.texts(NODE_INPUTS)),
            tuple(node.texts(NODE_OUTPUTS)),
        )
        for attribute in node.tables(NODE_ATTRIBUTES):
            if attribute.field(ATTRIBUTE_GRAPH):
                yield from _nodes(attribute.table(ATTRIBUTE_GRAPH))


class _Bytes(bytes):
    """A file, and how much of it may still be read.

    Offsets may lead to the same bytes again and again, so that a small file stands for any amount;
    a real one is read about once.
    """

    left = 0

    def __new__(cls, data: bytes) -> _Bytes:
        made = super().__new__(cls, data)
        made.left = 4 * len(data) + 4096
        return made

    def take(self, size: int) -> None:
        """Count bytes that are read.

        Raises:
            ValueError: they are too many for a file of this length.
        """
        self.left -= size
        if self.left < 0:
            raise ValueError("its parts refer to the same bytes too often")


class _Table:
    """A table of a FlatBuffer. A field that is not there reads as empty or 0."""

    def __init__(self, data: _Bytes, start: int) -> None:
        data.take(4)
        self.data, self.start = data, start
        self.layout = start - _unpack(data, start, "<i")
        self.layout_size = _unpack(data, self.layout, "<H")

    def field(self, number: int) -> int:
        """Return where a field is, or 0."""
        entry = 4 + 2 * number
        if entry + 2 > self.layout_size:
            return 0
        offset = _unpack(self.data, self.layout + entry, "<H")
        return self.start + offset if offset else 0

    def number(self, number: int, kind: str) -> int:
        at = self.field(number)
        return _unpack(self.data, at, kind) if at else 0

    def table(self, number: int) -> _Table:
        at = self.field(number)
        if not at:
            raise IndexError(f"the table at byte {self.start} lacks its field {number}")
        return _Table(self.data, at + _uint(self.data, at))

    def vector(self, number: int, size: int) -> memoryview:
        """Return the bytes of a vector with elements of `size` bytes."""
        at = self.field(number)
        return _vector(self.data, at, size) if at else memoryview(b"")

    def text(self, number: int) -> str:
        return str(self.vector(number, 1), "utf-8")

    def texts(self, number: int) -> list[str]:
        return [str(_vector(self.data, at, 1), "utf-8") for at in self._elements(number)]

    def tables(self, number: int) -> list[_Table]:
        return [_Table(self.data, at + _uint(self.data, at)) for at in self._elements(number)]

    def _elements(self, number: int) -> range:
        """Return where the elements of a vector of offsets are."""
        at = self.field(number)
        if not at:
            return range(0)
        size = len(_vector(self.data, at, 4))
        first = at + _uint(self.data, at) + 4
        return range(first, first + size, 4)


def _vector(data: _Bytes, at: int, size: int) -> memoryview:
    """Return the bytes of the vector that the offset at `at` leads to."""
    start = at + _uint(data, at)
    first, count = start + 4, _uint(data, start)
    if first + count * size > len(data):
        raise IndexError(f"it ends at byte {len(data)}, within {count} elements from byte {first}")
    data.take(count * size)
    return memoryview(data)[first : first + count * size]


def _uint(data: bytes, at: int) -> int:
    return _unpack(data, at, "<I")


def _unpack(data: bytes, at: int, kind: str) -> Any:
    if at < 0:
        raise IndexError(f"an offset leads to byte {at}")
    return struct.unpack_from(kind, data, at)[0]


def _damaged(problem: str) -> WeightsError:
    return WeightsError(f"the model file is damaged: {problem}: get it again")
