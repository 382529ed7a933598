"""Turns a Whisper as its makers publish it on the hub into what the package index gives.

The hub has the weights in float32, the packages in float16. Those of `NAMED` are float16 numbers in
either form (the very file of the hub can be made of the packages: tests/test_weights.py), so that
nothing is lost, and both ways end in the same directory.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..files import open_regular
from ..typed import read_json
from .ctranslate2 import Arrays
from .packages import WeightsError, conversion
from .whisper import write_whisper

PUBLISHED = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")
TIED = {"proj_out.weight": "model.decoder.embed_tokens.weight"}


@conversion("Whisper")
def convert_published_whisper(files: Path, directory: Path) -> None:
    """Write a Whisper of the hub to `directory`, in float16.

    Args:
        files: a directory with the files `PUBLISHED`.

    Raises:
        WeightsError: a damaged file, one that is not exactly a Whisper model, or weights that
            float16 does not hold.
    """
    config = read_json(files / "config.json", dict, error=WeightsError)
    generation = read_json(files / "generation_config.json", dict, error=WeightsError)
    with open_regular(files / "tokenizer.json") as file:
        tokenizer = file.read()
    write_whisper(
        _state(files / "model.safetensors"),
        directory,
        heads={side: int(config[f"{side}_attention_heads"]) for side in ("encoder", "decoder")},
        extra={
            "alignment_heads": generation["alignment_heads"],
            "suppress_ids": generation["suppress_tokens"],
            "suppress_ids_begin": generation["begin_suppress_tokens"],
        },
        tokenizer=tokenizer,
    )


def _state(path: Path) -> Arrays:
    """Return the tensors in float16, without those that are others too."""
    from safetensors import safe_open

    state: Arrays = {}
    with safe_open(path, "numpy") as file:
        for name in file.keys():  # noqa: SIM118 (it is no mapping)
            state[name] = _half(name, file.get_tensor(name))
    for name, same in TIED.items():
        value = state.pop(name, None)
        if value is not None and not np.array_equal(value, state.setdefault(same, value)):
            raise WeightsError(f"{name} differs from {same}, which it should equal")
    return state


def _half(name: str, value: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = value.astype(np.float16)
    if value.dtype.kind != "f" or not np.array_equal(half.astype(value.dtype), value):
        raise WeightsError(f"{name} has numbers that float16 does not hold")
    return half
