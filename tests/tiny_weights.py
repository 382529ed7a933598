"""A small Whisper with weights that differ from one another, and the same as CTranslate2 has it."""

from __future__ import annotations

import json
import struct

import numpy as np
import torch
import transformers as t
from tiny import WHISPER

SPECIAL = [
    "endoftext", "startoftranscript", "en", "haw", "translate", "transcribe", "startoflm",
    "startofprev", "nospeech", "notimestamps",
]  # fmt: skip
FIRST_SPECIAL = WHISPER["vocab_size"] - len(SPECIAL) - 3  # the last 3 are timestamps
IDS = {name: FIRST_SPECIAL + index for index, name in enumerate(SPECIAL)}
LETTERS = ["Ġ", *"abcdefghijklmnopqrstuvwxyz"]


def small_whisper() -> t.WhisperForConditionalGeneration:
    torch.manual_seed(0)
    model = t.WhisperForConditionalGeneration(t.WhisperConfig(**WHISPER)).eval()
    for parameter in model.parameters():  # no zeros, no ones: a mix-up must show
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def variables_of(model: torch.nn.Module, dtype: str) -> dict[str, np.ndarray]:
    """The variables of CTranslate2's WhisperSpec, written down apart from the module's tables."""
    state = {name: value.numpy().astype(dtype) for name, value in model.state_dict().items()}
    out: dict[str, np.ndarray] = {}

    def copy(name, *sources):
        for tensor, of_norm in (("weight", "gamma"), ("bias", "beta")):
            parts = [
                state.get(f"{source}.{tensor}", np.zeros(len(state[f"{source}.weight"]), dtype))
                for source in sources
            ]
            out[f"{name}/{of_norm if 'norm' in name else tensor}"] = np.concatenate(parts)

    for side in ("encoder", "decoder"):
        copy(f"{side}/layer_norm", f"model.{side}.layer_norm")
        out[f"{side}/position_encodings/encodings"] = state[f"model.{side}.embed_positions.weight"]
        out[f"{side}/num_heads"] = np.int16(WHISPER[f"{side}_attention_heads"])
        for index in range(WHISPER[f"{side}_layers"]):
            ours, theirs = f"model.{side}.layers.{index}", f"{side}/layer_{index}"
            own = f"{ours}.self_attn"
            copy(f"{theirs}/self_attention/layer_norm", f"{own}_layer_norm")
            copy(f"{theirs}/self_attention/linear_0", *(f"{own}.{x}_proj" for x in "qkv"))
            copy(f"{theirs}/self_attention/linear_1", f"{own}.out_proj")
            copy(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")
            copy(f"{theirs}/ffn/linear_0", f"{ours}.fc1")
            copy(f"{theirs}/ffn/linear_1", f"{ours}.fc2")
            if side == "decoder":
                cross = f"{ours}.encoder_attn"
                copy(f"{theirs}/attention/layer_norm", f"{cross}_layer_norm")
                copy(f"{theirs}/attention/linear_0", f"{cross}.q_proj")
                copy(f"{theirs}/attention/linear_1", f"{cross}.k_proj", f"{cross}.v_proj")
                copy(f"{theirs}/attention/linear_2", f"{cross}.out_proj")
    copy("encoder/conv1", "model.encoder.conv1")
    copy("encoder/conv2", "model.encoder.conv2")
    out["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]
    out["decoder/activation"] = np.int8(3)
    out["decoder/pre_norm"] = np.int8(1)
    out["decoder/alignment_layer"] = np.int16(-1)
    return out


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def variable(name: str, value: np.ndarray) -> bytes:
    code = ["float32", "int8", "int16", "int32", "float16"].index(str(value.dtype))
    sizes = struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
    return text(name) + sizes + struct.pack("<BI", code, value.nbytes) + value.tobytes()


TIED = (("decoder/projection/weight", "decoder/embeddings/weight"),)


def ctranslate2(variables, aliases=TIED, spec="WhisperSpec", revision=3, binary=6) -> bytes:
    head = struct.pack("<I", binary) + text(spec) + struct.pack("<II", revision, len(variables))
    body = b"".join(variable(name, value) for name, value in sorted(variables.items()))
    tail = b"".join(text(part) for alias in aliases for part in alias)
    return head + body + struct.pack("<I", len(aliases)) + tail


def tokenizer(merges: list | None = None) -> bytes:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": i, "content": f"<|{n}|>", **plain, "special": True} for n, i in IDS.items()]
    vocabulary = {letter: index for index, letter in enumerate(LETTERS)}
    if merges is not None:
        vocabulary |= {"Ġt": 256, "he": 257}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return json.dumps(
        {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
            "normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level,
            "model": {"type": "BPE", "vocab": vocabulary, "merges": merges or []},
        }
    ).encode()  # fmt: skip


EXTRA = {"alignment_heads": [[0, 1]], "suppress_ids": [1, 2], "suppress_ids_begin": [0, 3]}
