"""The format of CTranslate2's model.bin, read as data."""

from __future__ import annotations

import math
import struct
from typing import TypeAlias

import numpy as np

from .packages import WeightsError

Arrays: TypeAlias = dict[str, np.ndarray]


CTRANSLATE2_VERSION = 6
DTYPES = ("<f4", "<i1", "<i2", "<i4", "<f2")  # by their number in the file
MOST_AXES = 8


def read_ctranslate2(data: bytes) -> tuple[str, Arrays]:
    """Read CTranslate2's `model.bin`, binary version 6.

    All numbers are little-endian; a text is a 16-bit length and that many bytes, the last one 0.
    The file: version (32 bits), name of the specification (text), its revision (32 bits), number of
    variables (32 bits) and the variables, number of aliases (32 bits) and the aliases. A variable:
    name (text), rank (8 bits), sizes (32 bits each), type (8 bits), number of bytes (32 bits),
    data. An alias: its name (text), name of the variable that it stands for (text).

    Returns:
        Name and revision of the specification, as "WhisperSpec 3"; the variables by name, with the
        aliases among them, as views of `data`.

    Raises:
        WeightsError: another format or version, a truncated file, or one that contradicts itself.
    """
    cursor = _Cursor(data)
    version = cursor.number("I", "the version")
    if version != CTRANSLATE2_VERSION:
        raise WeightsError(
            f"the model file starts with {data[:4]!r} (version {version}), expected a model.bin of "
            f"CTranslate2, binary version {CTRANSLATE2_VERSION}: convert it with a current "
            "CTranslate2, or use another file"
        )
    spec = f"{cursor.text('the specification')} {cursor.number('I', 'the revision')}"
    variables: Arrays = {}
    for index in range(cursor.number("I", "the number of variables")):
        name = cursor.text(f"the name of variable {index}")
        if name in variables:
            raise _damaged(f"holds {name!r} twice")
        variables[name] = _variable(cursor, name)
    for index in range(cursor.number("I", "the number of aliases")):
        alias, target = (cursor.text(f"alias {index}") for _ in range(2))
        if target not in variables or alias in variables:
            raise _damaged(f"holds the alias {alias!r} of {target!r}, which is wrong")
        variables[alias] = variables[target]
    if cursor.offset != len(data):
        raise _damaged(f"goes on after its end, for {len(data) - cursor.offset} bytes")
    return spec, variables


def _variable(cursor: _Cursor, name: str) -> np.ndarray:
    sizes = [cursor.number("I", f"the shape of {name}") for _ in range(cursor.number("B", name))]
    dtype = cursor.number("B", f"the type of {name}")
    count = cursor.number("I", f"the size of {name}")
    if dtype >= len(DTYPES):
        raise _damaged(f"gives {name} the type {dtype}, which is not among {DTYPES}")
    if len(sizes) > MOST_AXES or 0 in sizes:
        raise _damaged(f"gives {name} the shape {sizes[:MOST_AXES]}, of {len(sizes)} axes")
    if count != math.prod(sizes) * np.dtype(DTYPES[dtype]).itemsize:
        raise _damaged(f"gives {name} {count} bytes for the shape {sizes} of {DTYPES[dtype]}")
    return np.frombuffer(cursor.take(count, name), DTYPES[dtype]).reshape(sizes)


class _Cursor:
    """Reads bytes from start to end, and never past it."""

    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)
        self.offset = 0

    def take(self, count: int, what: str) -> memoryview:
        end = self.offset + count
        if end > len(self.data):
            raise _damaged(f"ends at byte {len(self.data)}, within {what} (up to byte {end})")
        taken = self.data[self.offset : end]
        self.offset = end
        return taken

    def number(self, code: str, what: str) -> int:
        return int(struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))[0])

    def text(self, what: str) -> str:
        taken = bytes(self.take(self.number("H", what), what))
        try:
            text = taken.decode("utf-8")
        except UnicodeDecodeError:
            text = ""
        if not text.endswith("\0"):
            raise _damaged(f"has no text where {what} should be, before byte {self.offset}")
        return text[:-1]


def _damaged(problem: str) -> WeightsError:
    return WeightsError(
        f"the model file {problem}, expected an intact model.bin of CTranslate2: get it again"
    )
