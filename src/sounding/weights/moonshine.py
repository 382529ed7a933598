"""Turns a Moonshine of ONNX Runtime into the one of `transformers`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .ctranslate2 import Arrays
from .moonshine_tokens import moonshine_tokenizer
from .ort import Node, read_ort
from .packages import WeightsError, conversion
from .state import state_problem

# Modules whose names differ from those of `transformers`.
MODULES = {"dense": "o_proj", "up_proj": "fc1", "down_proj": "fc2"}
# What the files do not say; of the published configuration.
HEADS = 8
MAX_TOKENS = 194
ROPE_THETA = 10000.0
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
FREQUENCIES = "/rotary_emb/Cast_1_output_0"


@conversion("Moonshine")
def convert_moonshine(files: Mapping[str, bytes], directory: Path) -> None:
    """Write Moonshine as ONNX Runtime has it to `directory` as `transformers` has it.

    Quantized weights become what they stand for, in float32.

    Args:
        files: encoder.ort, decoder.ort, tokenizer.bin and LICENSE.

    Raises:
        WeightsError: a damaged file, or one that is not exactly a Moonshine model.
    """
    from safetensors.numpy import save_file
    from transformers import GenerationConfig, MoonshineConfig, Wav2Vec2FeatureExtractor

    arrays, nodes = read_ort(files["encoder.ort"])
    state = onnx_state(arrays, nodes, "model.encoder.") | onnx_state(
        *read_ort(files["decoder.ort"]), ""
    )
    config = MoonshineConfig(
        **_sizes(state),
        **TOKENS,
        encoder_num_attention_heads=HEADS,
        decoder_num_attention_heads=HEADS,
        max_position_embeddings=MAX_TOKENS,
        rope_parameters=_rope(state, arrays),
        architectures=["MoonshineForConditionalGeneration"],
        dtype="float32",
    )
    _check_state(state, config)
    tokenizer = moonshine_tokenizer(files["tokenizer.bin"], config.vocab_size)
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    GenerationConfig(**TOKENS, max_length=MAX_TOKENS).save_pretrained(directory)
    extractor = Wav2Vec2FeatureExtractor(
        sampling_rate=16000, do_normalize=False, return_attention_mask=True
    )
    extractor.save_pretrained(directory)
    (directory / "LICENSE").write_bytes(files["LICENSE"])


def onnx_state(arrays: Mapping[str, np.ndarray], nodes: Sequence[Node], prefix: str) -> Arrays:
    """Return the weights of the modules, found by the names of the nodes that use them.

    A node is named after the module that it was exported from: /layers.0/mlp/fc1/MatMul.

    Args:
        arrays: constants of the graph by name.
        prefix: of the names in the result.
    """
    made = {output: node for node in nodes for output in node.outputs}
    state: Arrays = {}
    for node in nodes:
        path, _, last = node.name.rpartition("/")
        *parents, module = path.removeprefix("/").split("/")
        if last != node.operator:  # a second one in the module: /layers.0/self_attn/Mul_4
            continue
        name = prefix + ".".join([*parents, MODULES.get(module, module)])
        found: dict[str, np.ndarray | None] = {}
        match node.operator, node.inputs:
            case "Conv", (_, weight, *bias):
                found = {"weight": _constant(weight, arrays, made)}
                found |= {"bias": arrays.get(bias[0])} if bias else {}
            case "MatMul", (_, weight):
                matrix = _constant(weight, arrays, made)
                found = {"weight": matrix if matrix is None else matrix.T}
            case "Gather", (weight, _):
                found = {"weight": _constant(weight, arrays, made)}
            case (("Mul" | "Add"), inputs):  # a norm, a bias; the group norm's have an axis more
                vectors = [arrays[i].reshape(-1) for i in inputs if i in arrays]
                found = {"weight" if last == "Mul" else "bias": v for v in vectors if len(v) > 1}
        for tensor, value in found.items():
            if value is None or value.dtype.kind != "f":
                continue
            key, value = f"{name}.{tensor}", np.ascontiguousarray(value, np.float32)
            if not np.array_equal(state.setdefault(key, value), value):  # in another branch
                raise _not_moonshine(f"{key} has two values")
    return state


def _constant(
    name: str, arrays: Mapping[str, np.ndarray], made: Mapping[str, Node]
) -> np.ndarray | None:
    """Return the value of a constant, or of nodes that turn 8-bit weights into float.

    It is None for anything else.

    Such nodes compute weight = Add(Mul(Cast(quantized), scale), zero_point).
    """
    if name in arrays:
        return arrays[name]
    node = made.get(name)
    if node is None or node.operator not in ("Cast", "Mul", "Add"):
        return None
    values = [_constant(value, arrays, made) for value in node.inputs]
    match node.operator, values:
        case "Cast", [np.ndarray() as value]:
            return value.astype(np.float32)
        case (("Mul" | "Add"), [np.ndarray() as value, np.ndarray() as other]):
            made_of = (value.shape, other.shape)
            if np.broadcast_shapes(*made_of) not in made_of:
                raise _not_moonshine(f"{name} is larger than the weights that it is made of")
            return value * other if node.operator == "Mul" else value + other
    return None


def _sizes(state: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return the values of `MoonshineConfig` that follow from the shapes of the tensors."""

    def size(name: str, axis: int) -> int:
        if name not in state:
            raise _not_moonshine(f"{name} is missing")
        return int(state[name].shape[axis])

    def layers(side: str) -> int:
        found = (re.match(rf"model\.{side}\.layers\.(\d+)\.", name) for name in state)
        return len({match[1] for match in found if match})

    return {
        "vocab_size": size("model.decoder.embed_tokens.weight", 0),
        "hidden_size": size("model.encoder.conv1.weight", 0),
        "intermediate_size": size("model.encoder.layers.0.mlp.fc1.weight", 0),
        "encoder_num_hidden_layers": layers("encoder"),
        "decoder_num_hidden_layers": layers("decoder"),
    }


def _rope(state: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the rotary positions: the share of a head that turns, by the encoder's frequencies."""
    found = arrays.get(FREQUENCIES, np.empty(0)).reshape(-1)
    width = len(state["model.encoder.conv1.weight"]) // HEADS
    wanted = ROPE_THETA ** -(np.arange(len(found)) / max(len(found), 1))
    if not len(found) or not np.allclose(found, wanted, rtol=1e-5):
        raise _not_moonshine(f"its rotary frequencies {found} are not {wanted}")
    share = math.ceil(100 * 2 * len(found) / width) / 100
    return {"rope_type": "default", "rope_theta": ROPE_THETA, "partial_rotary_factor": share}


def _check_state(state: Mapping[str, np.ndarray], config: Any) -> None:
    """Check that `state` has all tensors of the model, no other, and in their shapes."""
    import torch
    from transformers import MoonshineForConditionalGeneration

    with torch.device("meta"):
        model = MoonshineForConditionalGeneration(config)
    problem = state_problem(state, model, tied=("proj_out.weight",))
    if problem:
        raise _not_moonshine(problem)


def _not_moonshine(problem: str) -> WeightsError:
    return WeightsError(f"the model file does not hold a Moonshine model: {problem}: use another")
