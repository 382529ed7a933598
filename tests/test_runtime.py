"""The runtime: features as in transformers, no torch, clear errors."""

from __future__ import annotations

import csv
import json
import os
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
from sounding.cli import main
from sounding.data.audio import AudioError, read_audio
from sounding.data.features import extract
from sounding.evaluation.classify import classify
from sounding.export import build
from sounding.export.build import feature_settings
from sounding.files import write_json
from sounding.runtime import ModelError
from sounding.runtime.features import extractor
from sounding.runtime.metadata import CHECKSUM, UNSET, sealed
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


@pytest.mark.parametrize("budget", [None, 1, 0.5, "75%", "mean:2"])
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
