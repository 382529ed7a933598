"""Turns a Whisper of CTranslate2 into the one of `transformers`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_json
from ..typed import check, parse_json
from .ctranslate2 import Arrays, read_ctranslate2
from .packages import WeightsError, conversion
from .state import state_problem

# Modules of CTranslate2's WhisperSpec, revision 3, and the modules of `transformers` that they hold
# (several: stacked along the outputs).
WHISPER_MODULES = {
    "conv1": ["conv1"],
    "conv2": ["conv2"],
    "embeddings": ["embed_tokens"],
    "position_encodings": ["embed_positions"],
    "layer_norm": ["layer_norm"],
    "self_attention/layer_norm": ["self_attn_layer_norm"],
    "self_attention/linear_0": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "self_attention/linear_1": ["self_attn.out_proj"],
    "attention/layer_norm": ["encoder_attn_layer_norm"],
    "attention/linear_0": ["encoder_attn.q_proj"],
    "attention/linear_1": ["encoder_attn.k_proj", "encoder_attn.v_proj"],
    "attention/linear_2": ["encoder_attn.out_proj"],
    "ffn/layer_norm": ["final_layer_norm"],
    "ffn/linear_0": ["fc1"],
    "ffn/linear_1": ["fc2"],
}
WHISPER_TENSORS = {
    "weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "encodings": "weight",
}  # fmt: skip
WHISPER_NAME = re.compile(r"(encoder|decoder)/(?:layer_(\d+)/)?(.+)/(\w+)")
# Settings, with the value that stands for what `WhisperConfig` always does (None: any value).
WHISPER_SETTINGS = {
    "encoder/num_heads": None,
    "decoder/num_heads": None,
    "decoder/activation": 3,  # GELU
    "decoder/pre_norm": 1,
    "decoder/scale_embeddings": 0,
    "decoder/start_from_zero_embedding": 0,
    "decoder/alibi": 0,
    "decoder/alibi_use_positive_positions": None,  # without alibi, no matter
    "decoder/scale_alibi": None,
    "decoder/alignment_heads": None,  # config.json has them in full
    "decoder/alignment_layer": None,
}
MULTILINGUAL_TOKENS = 51865  # a vocabulary of this size or more: not English only
TIMESTAMP_STEP = 0.02  # seconds


@conversion("Whisper")
def convert_whisper(files: Mapping[str, bytes], directory: Path) -> None:
    """Write Whisper as CTranslate2 has it to `directory` as `transformers` has it.

    The weights keep their values and their type.

    Args:
        files: model.bin, config.json and tokenizer.json.

    Raises:
        WeightsError: a damaged model.bin, or one that is not exactly a Whisper model.
    """
    spec, variables = read_ctranslate2(files["model.bin"])
    if spec != "WhisperSpec 3":
        raise WeightsError(f"the model file holds a {spec}, expected a WhisperSpec 3: use another")
    says: Any = {"error": WeightsError, "what": "is damaged", "advice": "get it again"}
    write_whisper(
        whisper_state(variables),
        directory,
        heads={side: _heads(variables, side) for side in ("encoder", "decoder")},
        extra=parse_json(files["config.json"], dict[str, Any], "config.json", **says),
        tokenizer=files["tokenizer.json"],
    )


def write_whisper(
    state: Arrays,
    directory: Path,
    *,
    heads: Mapping[str, int],
    extra: Mapping[str, Any],
    tokenizer: bytes,
) -> None:
    """Write what `transformers` loads as a Whisper.

    Args:
        state: all tensors of one type, without the tied `proj_out.weight`.
        heads: of the attention, for "encoder" and "decoder".
        extra: the values of `_Extra`, beside other things.
        tokenizer: a tokenizer.json, which is completed.

    Raises:
        WeightsError: no Whisper, or no tokenizer of one.
    """
    from safetensors.numpy import save_file
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor

    extra, words = _extra(extra), _tokenizer(tokenizer)
    tokens = {token["content"]: token["id"] for token in words["added_tokens"]}
    common = _token_ids(tokens, extra)
    config = WhisperConfig(
        **_sizes(state),
        **common,
        encoder_attention_heads=heads["encoder"],
        decoder_attention_heads=heads["decoder"],
        architectures=["WhisperForConditionalGeneration"],
        dtype=str(state["model.encoder.conv1.weight"].dtype),
    )
    _check_state(state, config)
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(directory)
    multilingual = config.vocab_size >= MULTILINGUAL_TOKENS
    generation = common | _generation(tokens, extra, multilingual, config.max_target_positions)
    GenerationConfig(**generation).save_pretrained(directory)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(directory)
    _complete_tokenizer(words, config.vocab_size)
    write_json(directory / "tokenizer.json", words)
    write_json(directory / "tokenizer_config.json", _tokenizer_config(tokens))


@dataclass(frozen=True)
class _Extra:
    """The values of config.json that are needed; there are others beside them."""

    alignment_heads: list[list[int]]
    suppress_ids: list[int]
    suppress_ids_begin: list[int]


def _extra(read: Mapping[str, Any]) -> dict[str, Any]:
    says: Any = {"error": WeightsError, "what": "is damaged", "advice": "get it again"}
    known = {name: read[name] for name in _Extra.__dataclass_fields__ if name in read}
    return asdict(check(known, _Extra, "config.json", **says))


def _tokenizer(data: bytes) -> dict[str, Any]:
    """Read a tokenizer.json, of which the parts that the conversion changes have their types."""
    says: Any = {"error": WeightsError, "what": "is damaged", "advice": "get it again"}
    name = "tokenizer.json"
    read: dict[str, Any] = parse_json(data, dict[str, Any], name, **says)
    for token in check(read.get("added_tokens"), list[dict[str, Any]], name, **says):
        check(token.get("id"), int, f"{name}: id", **says)
        check(token.get("content"), str, f"{name}: content", **says)
    model = check(read.get("model"), dict[str, Any], name, **says)
    check(model.get("vocab"), dict[str, int], f"{name}: vocab", **says)
    pairs: Any = list[str] | list[tuple[str, str]]
    check(model.get("merges"), pairs, f"{name}: merges", **says)
    return read


def whisper_state(variables: Mapping[str, np.ndarray]) -> Arrays:
    """Return the state dict of `WhisperForConditionalGeneration`.

    The tied `proj_out.weight` is left out.

    Args:
        variables: of CTranslate2's WhisperSpec, revision 3, by name.

    Raises:
        WeightsError: a variable that has no place in the model, or that is quantized.
    """
    state: Arrays = {}
    for name, value in variables.items():
        if name in WHISPER_SETTINGS:
            _check_setting(name, value)
        elif name == "decoder/projection/weight":
            if not np.array_equal(value, variables.get("decoder/embeddings/weight", np.empty(0))):
                raise _not_whisper(f"{name} differs from the embeddings, which it should equal")
        else:
            state.update(_tensors(name, value))
    return state


def _check_setting(name: str, value: np.ndarray) -> None:
    wanted = WHISPER_SETTINGS[name]
    if value.ndim or wanted not in (None, value.item()):
        raise _not_whisper(f"{name} is {value}, not {wanted}")


def _tensors(name: str, value: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the names and values that a variable of CTranslate2 stands for in `transformers`."""
    match = WHISPER_NAME.fullmatch(name)
    modules = WHISPER_MODULES.get(match[3]) if match else None
    if match is None or modules is None or match[4] not in WHISPER_TENSORS:
        raise _not_whisper(f"{name} is not one of its tensors")
    if value.dtype.kind != "f":
        raise _not_whisper(f"{name} is quantized to {value.dtype}, not float16 or float32")
    if value.ndim == 0 or len(value) % len(modules):
        raise _not_whisper(f"{name} of shape {list(value.shape)} is not {len(modules)} in one")
    layer = f"layers.{int(match[2])}." if match[2] else ""
    tensor = WHISPER_TENSORS[match[4]]
    for module, part in zip(modules, np.split(value, len(modules)), strict=True):
        if module.endswith("k_proj") and tensor == "bias":  # the keys have none
            if part.any():
                raise _not_whisper(f"{name} has a bias for the keys that is not zero")
            continue
        yield f"model.{match[1]}.{layer}{module}.{tensor}", part


def _heads(variables: Mapping[str, np.ndarray], side: str) -> int:
    heads = int(variables.get(f"{side}/num_heads", np.zeros(())))
    if heads < 1:
        raise _not_whisper(f"{side}/num_heads is {heads} or missing")
    return heads


def _sizes(state: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return the values of `WhisperConfig` that follow from the shapes of the tensors."""

    def size(name: str, axis: int) -> int:
        shape = state[f"model.{name}.weight"].shape if f"model.{name}.weight" in state else ()
        if axis >= len(shape):
            raise _not_whisper(f"{name}.weight of shape {list(shape)} has no axis {axis}")
        return int(shape[axis])

    def layers(side: str) -> int:
        found = (re.match(rf"model\.{side}\.layers\.(\d+)\.", name) for name in state)
        return len({match[1] for match in found if match})

    return {
        "d_model": size("encoder.conv1", 0),
        "num_mel_bins": size("encoder.conv1", 1),
        "vocab_size": size("decoder.embed_tokens", 0),
        "max_source_positions": size("encoder.embed_positions", 0),
        "max_target_positions": size("decoder.embed_positions", 0),
        "encoder_layers": layers("encoder"),
        "decoder_layers": layers("decoder"),
        "encoder_ffn_dim": size("encoder.layers.0.fc1", 0),
        "decoder_ffn_dim": size("decoder.layers.0.fc1", 0),
    }


def _check_state(state: Mapping[str, np.ndarray], config: Any) -> None:
    """Check that `state` has all tensors of the model, no other, and in their shapes."""
    import torch
    from transformers import WhisperForConditionalGeneration

    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    problem = state_problem(state, model, tied=("proj_out.weight",))
    if problem:
        raise _not_whisper(problem)


def _not_whisper(problem: str) -> WeightsError:
    return WeightsError(f"the model file does not hold a Whisper model: {problem}: use another")


def _token_ids(tokens: Mapping[str, int], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return the token ids that the configurations of model and generation share."""
    end = tokens["<|endoftext|>"]
    return {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": tokens["<|startoftranscript|>"],
        "suppress_tokens": extra["suppress_ids"],
        "begin_suppress_tokens": extra["suppress_ids_begin"],
    }


def _generation(
    tokens: Mapping[str, int], extra: Mapping[str, Any], multilingual: bool, max_length: int
) -> dict[str, Any]:
    """Return what `generate` needs besides, in OpenAI's values.

    The package does not name them.
    """
    values = {
        "alignment_heads": extra["alignment_heads"],
        "is_multilingual": multilingual,
        "max_initial_timestamp_index": 50,  # the first timestamp is at most 1 s
        "max_length": max_length,
        "no_timestamps_token_id": tokens["<|notimestamps|>"],
        "prev_sot_token_id": tokens["<|startofprev|>"],
        "return_timestamps": False,
    }
    if multilingual:
        tasks = {task: tokens[f"<|{task}|>"] for task in ("transcribe", "translate")}
        # the languages stand between the start and the tasks
        first, last = tokens["<|startoftranscript|>"] + 1, min(tasks.values()) - 1
        values["lang_to_id"] = {t: index for t, index in tokens.items() if first <= index <= last}
        values["task_to_id"] = tasks
        values["task"] = "transcribe"  # without it, no task is set where the language is detected
    return values


def _complete_tokenizer(tokenizer: dict[str, Any], vocab_size: int) -> None:
    """Add in place what old exports of Whisper's tokenizer lack: a merge, and the timestamps.

    Without its first merge, the multilingual tokenizer reads " the" as " " and "the".
    """
    vocabulary, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    pairs = merges and not isinstance(merges[0], str)
    first = ["Ġ", "t"] if pairs else "Ġ t"
    if vocabulary.get("Ġt") == 256 and first not in merges:  # 0 to 255 are the bytes
        merges.insert(0, first)
    added = tokenizer["added_tokens"]
    start = max(token["id"] for token in added) + 1
    for index in range(vocab_size - start):
        text = f"<|{index * TIMESTAMP_STEP:.2f}|>"
        added.append({**added[0], "id": start + index, "content": text, "special": False})


def _tokenizer_config(tokens: Mapping[str, int]) -> dict[str, Any]:
    end = "<|endoftext|>"
    return {
        "tokenizer_class": "WhisperTokenizer",
        "processor_class": "WhisperProcessor",
        "add_prefix_space": False,
        "bos_token": end,
        "eos_token": end,
        "pad_token": end,
        "unk_token": end,
        "extra_special_tokens": [t for t in tokens if not re.fullmatch(r"<\|\d+\.\d+\|>", t)],
    }
