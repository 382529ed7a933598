"""The runtime: features as in transformers, no torch, clear errors."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile as sf
import tiny
import transformers as t
from onnx import helper
from tiny_runs import LABELS, LAYERS, RATE, clip, close

from sounding import runtime
from sounding.cli.app import main
from sounding.data.audio import AudioError, read_audio
from sounding.data.features import extract
from sounding.evaluation.classify import classify
from sounding.export import build
from sounding.export.build import feature_settings
from sounding.files import UNSET, sha256, write_json, write_sealed_json
from sounding.runtime import ModelError
from sounding.runtime.features import extractor
from sounding.runtime.metadata import CHECKSUM, sealed
from sounding.runtime.model import SPINNING

DATA = Path(os.environ.get("SOUNDING_DATA") or Path(__file__).parents[2] / "shared" / "data")
EXTRACTORS = {
    "whisper": t.WhisperFeatureExtractor(),
    "whisper-128": t.WhisperFeatureExtractor(feature_size=128),
    "normalized": t.Wav2Vec2FeatureExtractor(do_normalize=True),
    "raw": t.Wav2Vec2FeatureExtractor(do_normalize=False),
    "ast": t.ASTFeatureExtractor(),
    "ast-plain": t.ASTFeatureExtractor(max_length=64, num_mel_bins=32, do_normalize=False),
}
HEAVY = ("torch", "transformers", "onnx", "onnxscript", "yaml", "rich", "scipy", "matplotlib")


@pytest.fixture
def model(exports):
    return runtime.load(exports("whisper").one)


@pytest.fixture
def wav(tmp_path):
    path = tmp_path / "clip.wav"
    sf.write(path, clip(0.6), RATE)
    return path


@pytest.mark.parametrize("name", EXTRACTORS)
def test_features_equal_those_of_transformers(name):
    ours = extractor(feature_settings(EXTRACTORS[name]))
    for samples in (clip(0.3), clip(0.51237), clip(3.2), 0 * clip(1.0), 1e-3 * clip(1.0)):
        got, expected = ours(samples), extract(samples, EXTRACTORS[name])
        assert got.dtype == expected.dtype == np.float32
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() < 1e-4


def test_the_length_of_audio_is_known_from_its_features(exports):
    for case, seconds in (
        ("whisper", 0.6),
        ("wav2vec2", 0.6),
        ("ast", tiny.AST["max_length"] / 100),
    ):
        model = runtime.load(exports(case).one)
        assert model.seconds(model.features(clip(0.6))) == pytest.approx(seconds)


@pytest.mark.data
@pytest.mark.parametrize("folder", ["wakewords", "ravdess", "speechocean762"])
def test_features_equal_those_of_transformers_on_real_clips(folder):
    root = DATA / folder
    if not root.is_dir():
        pytest.skip(f"no folder {root}: set SOUNDING_DATA to the directory of the data sets")
    names = [row["file_name"] for row in csv.DictReader((root / "metadata.csv").open())]
    for name in names[:: len(names) // 12]:
        samples = read_audio(root / name)
        for one in ("whisper", "normalized", "ast"):
            ours = extractor(feature_settings(EXTRACTORS[one]))
            assert np.abs(ours(samples) - extract(samples, EXTRACTORS[one])).max() < 1e-4


@pytest.mark.parametrize("budget", [None, 1, "50%", "75%", "mean:2"])
def test_an_answer_is_that_of_the_run(exports, model, wav, budget):
    run = exports("whisper").run
    (expected,) = classify(run, [wav], budget)
    answer = model.run(wav, budget)
    assert answer.label == expected.label
    assert answer.kept_layers == expected.kept_layers
    assert answer.executed_layers == expected.executed_layers
    assert answer.probability == pytest.approx(expected.probability, rel=1e-3)
    close(answer.logits, expected.logits)
    assert answer.milliseconds > 0
    assert answer.to_json().keys() == expected.to_json().keys()


@pytest.mark.parametrize("budget", [1, 3, "mean:2", None])
def test_a_text_is_that_of_the_run(exports, wav, budget):
    made = exports("ctc")
    for path in (made.one, made.split):
        answer = runtime.load(path).run(wav, budget)
        (expected,) = classify(made.run, [wav], budget)
        assert answer.label == expected.label
        assert answer.executed_layers == expected.executed_layers
        assert answer.probability == pytest.approx(expected.probability, rel=1e-3)
        assert answer.logits.ndim == 2


def test_any_rate_and_channels_and_samples_themselves(model, wav, tmp_path):
    samples = clip(0.6)
    sf.write(tmp_path / "stereo.flac", np.stack([samples, samples], 1), RATE)
    expected = model.run(wav, 2)
    assert expected.file == str(wav)
    for audio in (tmp_path / "stereo.flac", samples):
        assert np.abs(model.run(audio, 2).logits - expected.logits).max() < 1e-2  # 16 bits
    sf.write(tmp_path / "8k.wav", samples[::2], 8000)
    assert model.run(tmp_path / "8k.wav", 2).label in LABELS


def test_bad_audio_and_bad_budgets_are_refused(exports, model, wav, tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    for audio, reason in (
        (tmp_path / "none.wav", "no such file"),
        (tmp_path / "empty.wav", "empty file"),
        (np.full(8000, np.nan, np.float32), "NaN"),
        (np.zeros((2, 8000), np.float32), "one channel"),
        (np.zeros(10, np.float32), "at least"),
        (clip(1.5), "expected at most 1.2 s"),
    ):
        with pytest.raises(AudioError, match=reason):
            model.run(audio)
    assert model.run(clip(1.5), max_seconds=1.0).label in LABELS
    assert model.run(np.zeros(8000, np.float32)).label in LABELS
    for budget in (0, LAYERS + 1, "9", "mean:9", 1.5):
        with pytest.raises(ValueError, match="not allowed"):
            model.run(wav, budget)
    with pytest.raises(ValueError, match="no mean budgets"):
        runtime.load(exports("wav2vec2").one).run(wav, "mean:2")


def test_no_thread_spins_unless_options_say_so(exports, wav):
    """Which would be in the way of other programs, and of the other parts of a split export."""
    made = exports("whisper")
    ours, own = None, onnxruntime.SessionOptions()
    own.add_session_config_entry(SPINNING, "1")
    for path in (made.one, made.split):
        for options, expected in ((ours, "0"), (own, "1")):
            model = runtime.load(path, options=options)
            model.run(wav, 2)
            for session in getattr(model, "loaded", {"": getattr(model, "session", None)}).values():
                found = session.get_session_options().get_session_config_entry(SPINNING)
                assert found == expected


def damaged(path, how):
    content = path.read_bytes()
    if how == "empty":
        return b""
    if how == "truncated":
        return content[: len(content) // 2]
    if how == "text":
        return b"not a model\n" * 100
    if how == "a flipped bit":  # in the weights, which ONNX Runtime takes as they are
        weights = (one.raw_data for one in onnx.load(path).graph.initializer)
        place = content.index(max(weights, key=len)) + 1
        return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    model = onnx.load(path)
    values = {one.key: one.value for one in model.metadata_props}
    meta = json.loads(values["sounding"])
    changes = {
        "foreign": {},
        "no json": {"sounding": "{"},
        "newer": {"sounding": json.dumps(meta | {"format": 99})},
        "no labels": {"sounding": json.dumps(meta | {"labels": []})},
        "other features": {"sounding": json.dumps(meta | {"features": {"kind": "wavelets"}})},
    }
    del model.metadata_props[:]
    if not changes[how]:
        return model.SerializeToString()
    helper.set_model_props(model, {**changes[how], CHECKSUM: UNSET})
    return sealed(model.SerializeToString())


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("empty", "damaged or no ONNX model"),
        ("truncated", "damaged or no ONNX model"),
        ("text", "damaged or no ONNX model"),
        ("a flipped bit", "sha256 differs"),
        ("foreign", "not made by `sounding export`"),
        ("no json", "metadata are damaged"),
        ("newer", "format 99"),
        ("no labels", "metadata are damaged"),
        ("other features", "unknown features 'wavelets'"),
    ],
)
def test_a_damaged_or_foreign_file_gets_one_clear_line(exports, tmp_path, wav, capsys, how, reason):
    path = tmp_path / "bad.onnx"
    path.write_bytes(damaged(exports("whisper").one, how))
    with pytest.raises(ModelError, match=reason):
        runtime.load(path)
    assert main(["run", str(path), str(wav)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(path) in error


def test_a_damaged_split_export_gets_one_clear_line(exports, tmp_path, wav):
    source = exports("whisper").split

    def copy(name, **changes):
        root = tmp_path / name
        root.mkdir()
        for file in source.iterdir():
            content = changes.get(file.name.replace(".", "_"), file.read_bytes())
            if content is not None:
                (root / file.name).write_bytes(content)
        return root

    front = (source / "front.onnx").read_bytes()
    flipped = front[:-100] + bytes([front[-100] ^ 1]) + front[-99:]
    for name, changes, reason in (
        ("missing", {"front_onnx": None}, "front.onnx is missing"),
        ("cut", {"front_onnx": front[:-9]}, "sha256 differs"),
        ("flipped", {"front_onnx": flipped}, "sha256 differs"),
        ("manifest", {"model_json": b"{"}, "model.json is damaged"),
        ("none", {"model_json": None}, "has no model.json"),
        ("list", {"model_json": b'{"model": {}}'}, "metadata are damaged"),
    ):
        root = copy(name, **changes)
        with pytest.raises(ModelError, match=reason):
            runtime.load(root).run(wav)
    with pytest.raises(ModelError, match="no such file"):
        runtime.load(tmp_path / "nowhere.onnx")


def resealed(source, path, **changes):
    """A copy of an exported file whose metadata were changed, with a checksum that fits."""
    model = onnx.load(source)
    meta = json.loads({one.key: one.value for one in model.metadata_props}["sounding"])
    text = changes.pop("text", None) or json.dumps(meta | changes)
    del model.metadata_props[:]
    helper.set_model_props(model, {"sounding": text, CHECKSUM: UNSET})
    path.write_bytes(sealed(model.SerializeToString()))
    return path


def resplit(source, path, **changes):
    """A copy of a split export whose manifest was changed, with a seal that fits."""
    shutil.copytree(source, path)
    manifest = json.loads((path / "model.json").read_text())
    del manifest["seal"]
    model = {name[6:]: changes.pop(name) for name in list(changes) if name.startswith("model_")}
    manifest["model"] |= model
    write_sealed_json(path / "model.json", manifest | changes)
    return path


LOG_MEL = {"kind": "log-mel", "mels": 16, "n_fft": 400, "hop": 160, "rate": RATE}
METADATA = [
    {"layers": "4"}, {"layers": 4.0}, {"layers": True}, {"layers": 10**9}, {"layers": -1},
    {"layers": 10**400}, {"labels": [1, 2, 3, 4, 5]}, {"labels": "abcde"}, {"labels": {"a": 1}},
    {"labels": [None] * 5}, {"rate": 1}, {"rate": 10**12}, {"rate": "16000"}, {"rate": 8000},
    {"limit_seconds": float("inf")}, {"limit_seconds": float("nan")}, {"limit_seconds": -1},
    {"limit_seconds": "1"}, {"limit_seconds": 1e300}, {"max_seconds": 0}, {"max_seconds": []},
    {"mean_budgets": [[1, float("nan")]]}, {"mean_budgets": [[2, 0.1], [1, 0.2]]},
    {"mean_budgets": [[1, 0.1], [1, 0.2]]}, {"mean_budgets": [[1]]}, {"mean_budgets": [[9, 0.5]]},
    {"mean_budgets": "1"}, {"macs": "1"}, {"macs": []}, {"macs": [[1, 2]]},
    {"macs": [["1", 2, 3]]}, {"macs": [[1, -2, 3]]}, {"macs": [[2, 1, 1], [1, 1, 1]]},
    {"mask": [True]}, {"mask": [0, 1, 0, 1]}, {"mask": [False] * 4}, {"mask": "1111"},
    {"task": "singing"}, {"task": ["text"]}, {"features": []}, {"features": {}},
    {"features": {"kind": ["log-mel"]}}, {"features": {**LOG_MEL, "mels": 10**9}},
    {"features": {**LOG_MEL, "mels": -1}}, {"features": {**LOG_MEL, "n_fft": 10**9}},
    {"features": {**LOG_MEL, "hop": 0}}, {"features": {**LOG_MEL, "hop": 1.5}},
    {"features": {**LOG_MEL, "hop": "160"}}, {"features": {**LOG_MEL, "loud": 1}},
    {"features": {**LOG_MEL, "rate": 8000}}, {"features": {"kind": "waveform"}},
    {"features": {"kind": "waveform", "normalize": "no"}},
    {"features": {"kind": "filter-bank", "mels": 32, "frames": 10**9, "hop": 160, "rate": RATE,
                  "mean": None, "deviation": None}},
    {"features": {"kind": "filter-bank", "mels": 32, "frames": 64, "hop": 160, "rate": RATE,
                  "mean": 0.0, "deviation": 0.0}},
    {"selector": None}, {"versions": []}, {"opset": "20"}, {"data": None}, {"more": 1},
    {"text": "[]"}, {"text": "null"}, {"text": 99_999 * "["}, {"text": '{"format": 1}'},
    {"text": 400 * '{"format":' + "1" + 400 * "}"},
]  # fmt: skip


@pytest.mark.parametrize("changes", METADATA, ids=lambda value: str(value)[:40])
def test_metadata_of_wrong_types_or_sizes_get_one_clear_line(exports, tmp_path, changes):
    path = resealed(exports("whisper").one, tmp_path / "bad.onnx", **changes)
    with pytest.raises(ModelError, match=r"damaged|unknown features") as error:
        runtime.load(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "changes",
    [
        {"after": "0"}, {"after": None}, {"after": -1}, {"after": 4},
        {"per_input": [1]}, {"per_input": None}, {"batches": "no"},
        {"files": []}, {"files": {"front": 1}}, {"model": []}, {"model": None}, {"more": 1},
        {"model_layers": 10**9}, {"model_labels": [1]},
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_of_wrong_types_gets_one_clear_line(exports, tmp_path, changes):
    path = resplit(exports("whisper").split, tmp_path / "s", **changes)
    with pytest.raises(ModelError, match="damaged") as error:
        runtime.load(path)
    assert str(error.value).startswith(str(path))


def test_a_changed_bit_of_the_manifest_is_refused(exports, tmp_path):
    """As in the one file: a rate or a letter of a label would be another answer."""
    path = tmp_path / "s"
    shutil.copytree(exports("whisper").split, path)
    content = (path / "model.json").read_bytes()
    for before, after in ((b"16000", b"12000"), (b'"a"', b'"A"'), (b'"seal"', b'"sea|"')):
        assert before in content
        (path / "model.json").write_bytes(content.replace(before, after, 1))
        with pytest.raises(ModelError, match=r"model\.json is not the file .* export it again"):
            runtime.load(path)
    manifest = json.loads(content)
    del manifest["seal"]  # one of before there were seals
    write_json(path / "model.json", manifest)
    assert runtime.load(path).run(clip(0.5), 2).label in LABELS


def test_parts_that_do_not_belong_together_are_refused(exports, tmp_path):
    source, other = exports("whisper").split, exports("moonshine").split
    files = json.loads((source / "model.json").read_text())["files"]
    for name, foreign in (
        ("front", source / "head.onnx"),
        ("front", other / "front.onnx"),
        ("selector", source / "head_1.onnx"),
        ("layer_1", source / "head.onnx"),
        ("head", other / "layer_0.onnx"),
        ("head", source / "front.onnx"),
    ):
        path = tmp_path / f"{name}-{foreign.stem}-{foreign.parent.name}"
        resplit(source, path, files=files | {name: sha256(foreign)})
        shutil.copy(foreign, path / f"{name}.onnx")
        model = runtime.load(path)
        with pytest.raises(ModelError) as error:
            [model.run(clip(0.5), k) for k in (None, 1, 3)]
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_graph_that_does_not_fit_its_description_is_refused(exports, tmp_path):
    source = exports("whisper").one
    told = {
        "labels": ({"labels": [*LABELS, "f"]}, "answers with logits"),
        "budgets": ({"mean_budgets": []}, "has a graph of features"),
        "mask": ({"mask": [True] * LAYERS}, "has a graph of features"),
        "layers": ({"layers": LAYERS + 1}, "answers with logits"),
        "text": ({"task": "text"}, "answers with logits"),
    }
    for name, (changes, reason) in told.items():
        path = resealed(source, tmp_path / f"{name}.onnx", **changes)
        with pytest.raises(ModelError, match=reason):
            runtime.load(path).run(clip(0.5))
    model = onnx.load(source)
    model.graph.output[0].name = "answer"
    model.graph.node.append(helper.make_node("Identity", ["logits"], ["answer"]))
    onnx.save(model, tmp_path / "renamed.onnx")
    path = resealed(tmp_path / "renamed.onnx", tmp_path / "other.onnx")
    with pytest.raises(ModelError, match="not of logits"):
        runtime.load(path)


def test_what_onnx_runtime_refuses_is_one_clear_line(exports, tmp_path):
    """Features of another width than the graph takes."""
    features = {**LOG_MEL, "mels": 12}
    for path in (
        resealed(exports("whisper").one, tmp_path / "m.onnx", features=features),
        resplit(exports("whisper").split, tmp_path / "s", model_features=features),
    ):
        with pytest.raises(ModelError, match="cannot answer") as error:
            runtime.load(path).run(clip(0.5))
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_split_export_that_a_kill_left_aside_is_taken_back(exports, tmp_path):
    shutil.copytree(exports("whisper").split, tmp_path / ".s.old")
    assert runtime.load(tmp_path / "s").run(clip(0.5), 1).label in LABELS
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in directories")
def test_a_pipe_is_an_error_and_no_wait(exports, tmp_path):
    os.mkfifo(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="no such file"):
        runtime.load(tmp_path / "m.onnx")
    for name in ("model.json", "front.onnx"):
        path = tmp_path / name.replace(".", "_")
        shutil.copytree(exports("whisper").split, path)
        (path / name).unlink()
        os.mkfifo(path / name)
        with pytest.raises(ModelError, match=name):
            runtime.load(path).run(clip(0.5))


LIGHT = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
from sounding.cli import main
sys.exit(main(sys.argv[1:]))
"""


def light(*arguments):
    return subprocess.run(
        [sys.executable, "-c", LIGHT, *map(str, arguments)], capture_output=True, text=True
    )


def test_a_device_needs_no_torch(exports, model, wav, tmp_path):
    for path in (exports("whisper").one, exports("whisper").split):
        done = light("run", path, wav, "--budget", "3", "--json")
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert answer["executed_layers"] == model.run(wav, 3).executed_layers
        assert answer["file"] == str(wav)
    done = light("train", "--backbone", "b", "--data", tmp_path, "--out", tmp_path / "r")
    assert done.returncode == 2
    assert "pip install 'sounding[train]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_export_and_run_on_the_command_line(exports, wav, tmp_path, monkeypatch, capsys):
    made = exports("whisper")
    root = tmp_path / "run"
    made.run.dynamic.save_pretrained(root / "model", companions=[made.run.extractor])
    write_json(root / "run.json", made.run.info)
    (root / "config.yaml").write_text(made.run.config.to_yaml())
    monkeypatch.setattr(build, "export_parts", lambda dynamic: made.parts)  # traced already
    out = tmp_path / "out.onnx"
    assert main(["export", str(root), "--out", str(out)]) == 0
    assert "relative error" in capsys.readouterr().out
    assert main(["run", str(out), str(wav), str(wav), "--budget", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "2 of 4" in lines[0]
    assert main(["export", str(root), "--out", str(out), "--layers", "0,2"]) == 0
    assert runtime.load(out).meta.mask == [True, False, True, False]
    assert main(["export", str(root), "--out", str(out), "--mask", "0110"]) == 0
    assert runtime.load(out).meta.mask == [False, True, True, False]
    for wrong in (["--mask", "11"], ["--layers", "0,9"], ["--layers", "a"]):
        assert main(["export", str(root), "--out", str(out), *wrong]) == 2
    assert runtime.load(out).meta.mask == [False, True, True, False]
