"""Exported models against PyTorch: every budget, every selector, every skip path."""

from __future__ import annotations

import errno
import json
import os
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile as sf
import torch
import transformers as t
from tiny_runs import CASES, LAYERS, RATE, STOPS, clip, close, make_run

import sounding
from sounding import runtime
from sounding.budget import Budget, threshold_for
from sounding.evaluation.classify import classify
from sounding.export import ExportError, build, export
from sounding.export.conv_as_matmul import SMALLEST, as_products
from sounding.export.parts import DYNAMIC, OPSET, export_policy
from sounding.export.quantize import _Feeds, quantize
from sounding.files import WriteError
from sounding.model.updates import add_updates
from sounding.policies import GateSelector, Policy, StaticScores


@pytest.fixture(params=CASES)
def exported(request, exports):
    """A run, its one-file export, and its split export."""
    made = exports(request.param)
    return made.run, made.one, made.split


@pytest.fixture
def whisper(exports):
    """A run whose parts are traced already."""
    return exports("whisper")


@torch.no_grad()
def pytorch(run, features, **asked):
    out = run.dynamic(**run.collate(list(features)), **asked)
    return out.logits.numpy(), out.executed_layers.numpy()


def test_every_budget_equals_pytorch_at_any_length(exported):
    run, *paths = exported
    for model in map(runtime.load, paths):
        kept = set()
        for seconds in (0.3, 0.62, 0.97):
            features = model.extract(clip(seconds))
            for k in range(1, LAYERS + 1):
                logits, executed = model.predict(features[None], k)
                expected, ran = pytorch(run, [features], budget=k)
                assert executed.tolist() == ran.tolist()
                assert executed.sum() == k
                close(logits, expected)
                kept.add(tuple(executed[0]))
        assert len(kept) >= LAYERS


def test_mean_budgets_stop_where_pytorch_stops(exported):
    run, *paths = exported
    if not run.dynamic.mean_budgets:
        pytest.skip("this case has no mean budgets")
    depths = set()
    for model in map(runtime.load, paths):
        for budget in ("mean:1.2", "mean:1.6", "mean:2.5", "mean:3.5", "mean:4"):
            for seed in range(4):
                features = model.extract(clip(0.5, seed))
                threshold = threshold_for(
                    Budget.parse(budget).mean_layers(layers=LAYERS), model.meta.mean_budgets
                )
                logits, executed = model.predict(features[None], LAYERS, threshold)
                expected, ran = pytorch(run, [features], budget=budget)
                assert executed.tolist() == ran.tolist()
                close(logits, expected)
                depths.add(int(executed.sum()))
    assert len(depths) > 1


def test_how_sure_an_answer_is_does_not_hang_on_what_gives_it(exported, tmp_path):
    """Of several classes each is a yes or no: 0.525 in torch was 0.953 in the runtime."""
    run, *paths = exported
    sf.write(tmp_path / "clip.wav", clip(0.5), RATE, subtype="FLOAT")
    for budget in (1, 2, LAYERS):
        (answer,) = classify(run, [tmp_path / "clip.wav"], budget)
        for model in map(runtime.load, paths):
            found = model.run(tmp_path / "clip.wav", budget)
            assert found.label == answer.label
            assert found.probability == pytest.approx(answer.probability, abs=1e-4)
        if run.info.get("task") == "tags":
            highest = torch.tensor(answer.logits.max()).sigmoid()
            assert answer.probability == pytest.approx(float(highest), abs=1e-5)


def test_a_mixed_batch_answers_as_each_clip_alone(exported):
    run, _, path = exported
    model = runtime.load(path)
    features = np.stack([model.extract(clip(0.4, seed)) for seed in range(6)])
    if model.largest == 1:
        pytest.skip(
            "the layers of WavLM share an input that no part of a batch can be taken out of"
        )
    budgets = [(2, None), (3, None)]
    if run.dynamic.mean_budgets:
        budgets.append((LAYERS, 0.35))
    for k, threshold in budgets:
        together, ran = model.predict(features, k, threshold)
        for row in range(len(features)):
            alone, ran_alone = model.predict(features[row : row + 1], k, threshold)
            assert ran[row].tolist() == ran_alone[0].tolist()
            close(together[row], alone[0])
    clips = [clip(0.4, 1), clip(0.3, 2), clip(0.4, 3)]
    for one, answer in zip(clips, model.run_many(clips, 2), strict=True):
        close(answer.logits, model.run(one, 2).logits)


def test_the_file_says_what_it_is(exported):
    run, path, _ = exported
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert model.opset_import[0].version >= 18
    meta = json.loads({p.key: p.value for p in model.metadata_props}["sounding"])
    assert meta["labels"] == run.labels
    assert meta["layers"] == LAYERS
    assert meta["selector"] == run.dynamic.policy.kind
    assert meta["licence"] == "MIT"
    assert meta["data"]["digest"] == "abc"
    assert meta["rate"] == RATE
    assert [tuple(pair) for pair in meta["mean_budgets"]] == run.dynamic.mean_budgets
    assert meta["opset"] == model.opset_import[0].version


def test_weights_are_in_the_main_graph_once(exported):
    run, path, _ = exported
    parameters = sum(p.numel() for p in run.dynamic.parameters())
    model = onnx.load(path)
    weights = sum(int(np.prod(one.dims)) for one in model.graph.initializer)
    assert weights < 1.3 * parameters
    for node in model.graph.node:
        for attribute in node.attribute:
            assert not attribute.g.initializer


def layers_in_profile(model, tmp_path, features, k):
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    loaded = runtime.load(model, options=options)
    _, executed = loaded.predict(features[None], k)
    events = json.loads(Path(loaded.session.end_profiling()).read_text())
    names = [event["name"] for event in events if event.get("cat") == "Node"]
    ran = [any(f"layer_{index}/" in name for name in names) for index in range(LAYERS)]
    heads = {name.split("/")[0] for name in names if name.startswith("head")}
    return ran, executed[0].tolist(), heads


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_layer_that_is_not_chosen_is_not_executed(exported, tmp_path, k):
    run, path, _ = exported
    features = runtime.load(path).extract(clip(0.5))
    ran, executed, heads = layers_in_profile(path, tmp_path, features, k)
    assert ran == executed
    assert sum(ran) == k
    assert heads == {f"head_{k}" if run.dynamic.exits is not None and k < LAYERS else "head"}


def test_the_split_export_loads_what_it_needs_and_no_more(whisper):
    model = runtime.load(whisper.split)
    assert not model.loaded
    answer = model.run(clip(0.5), 1)
    (only,) = answer.executed_layers
    layers = {name for name in model.loaded if name.startswith("layer_")}
    assert layers == {f"layer_{only}"}
    assert "head_1" in model.loaded
    assert "head" not in model.loaded
    full = runtime.load(whisper.split, unload=True)
    full.run(clip(0.5))
    assert "selector" not in full.loaded  # at full depth nothing is chosen
    assert sum(name.startswith("layer_") for name in full.loaded) == LAYERS
    full.run(clip(0.5), 1)
    assert {name for name in full.loaded if name.startswith("layer_")} == {f"layer_{only}"}


def test_a_fixed_mask_is_a_plain_graph_of_its_layers(whisper, tmp_path):
    mask = [True, False, True, False]
    path = tmp_path / "fixed.onnx"
    export(whisper.run, path, mask=mask, parts=whisper.parts)
    nodes = onnx.load(path).graph.node
    assert not any(node.op_type == "If" for node in nodes)
    assert not any(node.name.startswith(("layer_1", "layer_3", "selector")) for node in nodes)
    model = runtime.load(path)
    features = model.extract(clip(0.5))
    expected, _ = pytorch(whisper.run, [features], mask=torch.tensor(mask))
    answer = model.run(clip(0.5))
    close(answer.logits, expected[0])
    assert answer.executed_layers == [0, 2]
    assert model.run(clip(0.5), 2).kept_layers == 2
    with pytest.raises(ValueError, match="always runs the same 2 of 4 layers"):
        model.run(clip(0.5), 3)


def test_a_fixed_mask_has_the_updates_of_reduced_depths_and_all_depths_are_refused(tmp_path):
    run = make_run("wavlm", method="random")
    add_updates(run.dynamic, {"encoder": 4})
    with torch.no_grad():
        for parameter in run.dynamic.updates.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter))
    weights = {name: value.clone() for name, value in run.dynamic.model.state_dict().items()}
    with pytest.raises(ExportError, match="would need each layer twice"):
        export(run, tmp_path / "all.onnx")
    mask = [True, False, True, True]
    export(run, tmp_path / "one.onnx", mask=mask)
    after = run.dynamic.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in weights.items())
    model = runtime.load(tmp_path / "one.onnx")
    with torch.no_grad():
        expected, _ = pytorch(run, [model.extract(clip(0.5))], mask=torch.tensor(mask))
    close(model.run(clip(0.5)).logits, expected[0])


@pytest.mark.parametrize("name", ["int8.onnx", "int8"])
def test_int8_runs_in_the_branches_and_stays_close(whisper, tmp_path, name):
    run, path = whisper.run, tmp_path / name
    made = export(run, path, split="." not in name, int8=True, parts=whisper.parts)
    assert made.speed_up > 0
    assert any("int8" in line for line in made.lines())
    assert made.difference.other_layers <= len(STOPS) * 3  # only where a confidence decides
    model = runtime.load(path)
    assert model.meta.precision == "int8"
    features = model.extract(clip(0.5))
    for k in range(1, LAYERS + 1):
        logits, executed = model.predict(features[None], k)
        expected, ran = pytorch(run, [features], budget=k)
        assert executed.tolist() == ran.tolist()
        error = np.abs(logits - expected).max() / np.abs(expected).max()
        assert 0 < error < 0.1
    if name == "int8.onnx":
        graph = onnx.load(path).graph
        inside = [
            node.op_type
            for branch in graph.node
            if branch.op_type == "If" and branch.output[0] == "state_1"
            for attribute in branch.attribute
            for node in attribute.g.node
        ]
        assert inside.count("MatMulInteger") == 6


def test_int8_with_ranges_measured_on_clips(whisper, tmp_path):
    run, path = whisper.run, tmp_path / "static.onnx"
    reference = runtime.load(whisper.one)
    calibration = [reference.extract(clip(0.4, seed)) for seed in range(4)]
    export(run, path, int8=True, calibration=calibration, parts=whisper.parts)
    model = runtime.load(path)
    features = model.extract(clip(0.5))
    for k in range(1, LAYERS + 1):
        logits, executed = model.predict(features[None], k)
        expected, ran = pytorch(run, [features], budget=k)
        assert executed.tolist() == ran.tolist()
        assert 0 < np.abs(logits - expected).max() / np.abs(expected).max() < 0.1
    operators = {
        node.op_type
        for branch in onnx.load(path).graph.node
        for attribute in branch.attribute
        for node in attribute.g.node
    }
    assert "QuantizeLinear" in operators
    assert "DynamicQuantizeLinear" not in operators
    with pytest.raises(ExportError, match="calibration clips are for int8"):
        export(run, path, calibration=calibration, parts=whisper.parts)


def test_the_first_k_layers_without_heads_of_their_own(whisper, tmp_path):
    run = make_run("whisper", method="full")  # the weights of `whisper`
    run.dynamic = sounding.wrap(
        sounding.unwrap(run.dynamic), selector := StaticScores.first(LAYERS)
    ).eval()
    state = {"state": (torch.randn(2, 30, 32), {0: DYNAMIC, 1: DYNAMIC})}
    parts = replace(
        whisper.parts,
        selector=export_policy(selector, state),
        skips=[],
        heads={LAYERS: whisper.parts.own_head},
    )
    export(run, tmp_path / "m.onnx", parts=parts)
    model = runtime.load(tmp_path / "m.onnx")
    assert not model.meta.mean_budgets
    for k in range(1, LAYERS + 1):
        answer = model.run(clip(0.5), k)
        assert answer.executed_layers == list(range(k))
        close(answer.logits, pytorch(run, [model.extract(clip(0.5))], budget=k)[0][0])


class Mine(Policy):
    kind = "mine"


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(tmp_path):
    out = tmp_path / "m.onnx"
    local = make_run("wavlm")
    local.dynamic.policy = GateSelector(32, LAYERS, scope="local")
    with pytest.raises(ExportError, match="gates of scope"):
        export(local, out)
    run = make_run("whisper", method="random")
    with pytest.raises(ExportError, match="no selector"):
        export(run, out)
    with pytest.raises(ExportError, match="4 digits"):
        export(run, out, mask=[True])
    run = make_run("whisper")
    with pytest.raises(ExportError, match=r"ends in \.onnx"):
        export(run, tmp_path / "m")
    with pytest.raises(ExportError, match="not both"):
        export(run, out, split=True, mask=[True] * 4)
    run.extractor = t.SeamlessM4TFeatureExtractor()
    with pytest.raises(ExportError, match="no SeamlessM4TFeatureExtractor without torch"):
        export(run, out)
    run.dynamic.policy = Mine()
    with pytest.raises(ExportError, match="a policy 'mine' as this one has no export"):
        export(run, out)
    assert not list(tmp_path.iterdir())


def test_an_export_that_differs_from_pytorch_is_not_put_in_place(whisper, tmp_path):
    layers = whisper.parts.layers
    wrong = replace(whisper.parts, layers=[layers[0], *layers[:-1]])  # other weights
    (tmp_path / "m.onnx").write_text("before")
    with pytest.raises(ExportError, match="differs from PyTorch"):
        export(whisper.run, tmp_path / "m.onnx", parts=wrong)
    assert (tmp_path / "m.onnx").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(
    ("name", "where"),
    [("m.onnx", (build, "_speed_up")), ("m", (build, "_speed_up")), ("m", (_Feeds, "get_next"))],
)
def test_what_a_kill_in_an_export_left_is_removed_by_the_next(
    whisper, tmp_path, monkeypatch, name, where
):
    def export_to(path):
        examples = [runtime.load(whisper.one).extract(clip(0.4))]
        split = "." not in name
        export(whisper.run, path, split=split, int8=True, calibration=examples, parts=whisper.parts)

    export_to(tmp_path / "elsewhere" / name)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    child = os.fork()
    if not child:
        monkeypatch.setattr(*where, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        try:
            export_to(tmp_path / "out" / name)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    left = list((tmp_path / "out").iterdir())
    assert len(left) == (2 if where[0] is build else 1)
    assert sum(file.stat().st_size for path in left for file in path.rglob("*")) > 100_000
    assert not (tmp_path / "out" / name).exists()
    assert not list((tmp_path / "tmp").iterdir())  # nothing that nobody would find
    export_to(tmp_path / "out" / name)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


@pytest.mark.parametrize("options", [{}, {"split": True}, {"int8": True}], ids=str)
def test_an_export_to_a_full_disk_says_where_and_leaves_the_old_one(
    whisper, tmp_path, monkeypatch, options
):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / ("m" if "split" in options else "m.onnx")
    export(whisper.run, path, parts=whisper.parts, split="split" in options)
    before = runtime.load(path).digest()
    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(onnx, "save", full)
    with pytest.raises(WriteError, match=rf"{path.name} cannot be written .*make room"):
        export(whisper.run, path, parts=whisper.parts, **options)
    assert runtime.load(path).digest() == before
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "bias"),
    [(3, 1, [1, 1], True), (3, 2, [1, 1], True), (7, 3, [0, 0], False), (1, 1, [0, 0], True),
     (4, 5, [2, 0], False)],
)  # fmt: skip
def test_a_convolution_as_a_product_gives_the_same_at_any_length(kernel, stride, pads, bias):
    model = convolution(SMALLEST, kernel, stride, pads, bias=bias)
    made = as_products(model)
    assert "Conv" not in {node.op_type for node in made.graph.node}
    assert "weight" not in {one.name for one in made.graph.initializer}  # kept once
    one, other = (onnxruntime.InferenceSession(m.SerializeToString()) for m in (model, made))
    rng = np.random.default_rng(0)
    for batch, length in ((1, kernel), (2, kernel + 4), (1, 50), (3, 51), (1, 52)):
        x = rng.normal(size=(batch, SMALLEST, length)).astype(np.float32)
        (expected,), (got,) = one.run(None, {"x": x}), other.run(None, {"x": x})
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_convolutions_of_few_channels_groups_and_gaps_stay():
    for model in (
        convolution(1, 9, 4, [0, 0]),
        convolution(SMALLEST, 3, 1, [1, 1], group=SMALLEST),
        convolution(SMALLEST, 3, 1, [0, 0], dilations=[2]),
    ):
        assert [node.op_type for node in as_products(model).graph.node] == ["Conv"]


def test_a_product_of_the_front_end_that_would_spoil_its_state_stays_in_fp32(whisper):
    rng = np.random.default_rng(0)
    weight = rng.choice([-1, 1], size=(SMALLEST, 8)).astype(np.float32)
    weight[0] = 0  # the large channel says nothing
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, "t", width])
        for name, width in (("features", SMALLEST), ("state", 8))
    ]
    node = onnx.helper.make_node("MatMul", ["features", "w"], ["state"], name="product")
    graph = onnx.helper.make_graph(
        [node], "g", ends[:1], ends[1:], [onnx.numpy_helper.from_array(weight, "w")]
    )
    front = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=10
    )
    even = rng.choice([-1, 0, 1], size=(40, SMALLEST)).astype(np.float32)
    uneven = even * np.where(np.arange(SMALLEST) == 0, 1000, 1).astype(np.float32)
    parts = replace(whisper.parts, front=front, layers=[])
    for example, expected in ((even, "MatMulInteger"), (uneven, "MatMul")):
        made = quantize(parts, [example]).front
        assert expected in {one.op_type for one in made.graph.node}


def convolution(channels, kernel, stride, pads, *, bias=True, group=1, dilations=(1,)):
    """A model that is one convolution over time."""
    rng = np.random.default_rng(kernel)
    weight = rng.normal(size=(8 * group, channels // group, kernel)).astype(np.float32)
    values = {"weight": weight, "bias": rng.normal(size=len(weight)).astype(np.float32)}
    names = ["weight", "bias"] if bias else ["weight"]
    node = onnx.helper.make_node(
        "Conv", ["x", *names], ["y"], strides=[stride], pads=pads, group=group,
        dilations=list(dilations),
    )  # fmt: skip
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", ["b", channels, "t"]), ("y", ["b", len(weight), "n"]))
    ]
    graph = onnx.helper.make_graph(
        [node], "g", ends[:1], ends[1:],
        [onnx.numpy_helper.from_array(values[name], name) for name in names],
    )  # fmt: skip
    opset = [onnx.helper.make_opsetid("", OPSET)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
