"""`sounding distill`: reduced depths learn from the full one, which stays as it is."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import tiny
import torch
from interrupt import train_until
from safetensors.torch import load_file, save_file

import sounding
from sounding.cli.app import main
from sounding.data.folder import DataError
from sounding.data.unlabelled import unlabelled
from sounding.errors import UsageError
from sounding.methods import teaching
from sounding.methods.distill import _depths, _late_scores
from sounding.policies import StaticScores
from sounding.progress import Interrupted
from sounding.runs.config import TrainConfig
from sounding.runs.run import load_run
from sounding.training import steps
from sounding.training.loop import train

RATE = 16000
SETTINGS = {"method": "distill", "rank": 4, "precision": "fp32", "epochs": 1.0, "batch_size": 4}


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """Audio files without a word about them, in two directories."""
    root = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    for index in range(12):
        path = root / ("a", "b")[index % 2] / f"{index}.wav"
        path.parent.mkdir(exist_ok=True)
        noise = rng.normal(0, 0.1, int(rng.uniform(0.3, 0.6) * RATE))
        sf.write(path, noise, RATE)
    return root


@pytest.fixture(scope="module")
def distilled(audio, speaker, tmp_path_factory):
    """A distilled run."""
    out = tmp_path_factory.mktemp("run") / "run"
    settings = {**SETTINGS, "backbone": str(speaker), "task": "decoder", "epochs": 20.0}
    train(TrainConfig(**settings), unlabelled([audio]), out)
    return out


def test_full_depth_stays_bit_for_bit_and_reduced_depths_come_closer(distilled, speaker):
    dynamic = load_run(distilled).dynamic
    plain = type(dynamic.model).from_pretrained(speaker).eval()
    batch = tiny.inputs(plain)
    with torch.no_grad():
        assert torch.equal(dynamic(**batch).logits, plain(**batch).logits)
    losses = np.loadtxt(distilled / "log.csv", delimiter=",", skiprows=1)[:, 1]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    assert dynamic.trained
    assert dynamic.decoder_trained


def test_both_the_encoder_and_the_decoder_answer_otherwise_below_full_depth(distilled, speaker):
    dynamic = load_run(distilled).dynamic
    assert set(dynamic.updates.ranks) == {"encoder", "decoder"}
    moved = {
        stack: max(float(p.abs().max()) for n, p in part.named_parameters() if "up" in n)
        for stack, part in dynamic.updates.layers.items()
    }
    assert min(moved.values()) > 0


@pytest.fixture
def encoder_runs(monkeypatch):
    """How many layers of the encoder ran in each step."""
    ran = []
    step = steps.one_step

    def counted(run, *rest):
        seen = []
        layers = run.dynamic.stack.layers
        handles = [layer.register_forward_hook(lambda *_: seen.append(0)) for layer in layers]
        try:
            return step(run, *rest)
        finally:
            ran.append(len(seen))
            for handle in handles:
                handle.remove()

    monkeypatch.setattr(steps, "one_step", counted)
    return ran


def test_a_decoder_alone_learns_from_the_teacher_where_the_encoder_was_not_distilled(
    audio, speaker, tmp_path, encoder_runs
):
    settings = {**SETTINGS, "backbone": str(speaker), "task": "decoder", "distilled": "decoder"}
    train(TrainConfig(**settings), unlabelled([audio]), tmp_path / "run")
    assert set(encoder_runs) == {0}


def test_a_decoder_alone_goes_on_from_a_distilled_run_and_hears_its_encoder_in_half_of_the_steps(
    distilled, audio, tmp_path, encoder_runs
):
    first = load_run(distilled).dynamic
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "teacher").symlink_to(distilled / "teacher")
    command = ["distill", str(distilled), "--data", str(audio), "--out", str(tmp_path / "run")]
    assert (
        main([*command, "--epochs", "10", "--batch-size", "4", "--set", "distilled=decoder"]) == 0
    )
    assert set(encoder_runs) == {0, 2, 3, 4}  # of 4 layers, from half of them on
    assert 0.2 < np.mean([count == 0 for count in encoder_runs]) < 0.8
    second = load_run(tmp_path / "run").dynamic
    before, after = (dict(one.updates.named_parameters()) for one in (first, second))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(".decoder." in name for name in moved)
    assert torch.equal(first.decoder_policy.layer_scores, second.decoder_policy.layer_scores)
    losses = np.loadtxt(tmp_path / "run" / "log.csv", delimiter=",", skiprows=1)[:, 1]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_a_stopped_distillation_goes_on_to_the_same_weights(audio, speaker, tmp_path, monkeypatch):
    settings = {**SETTINGS, "backbone": str(speaker), "task": "decoder"}
    config = TrainConfig(**settings, checkpoint_seconds=0.0)
    folder = unlabelled([audio])
    train(config, folder, tmp_path / "whole")
    train_until(1, config, folder, tmp_path / "parts")
    heard = []
    teach = teaching._teach
    monkeypatch.setattr(teaching, "_teach", lambda *a: heard.append(1) or teach(*a))
    train(config, folder, tmp_path / "parts")
    assert not heard  # what the teacher said is not asked for again
    for name in ("updates", "selector", "decoder_selector"):
        one, other = (
            load_file(tmp_path / r / f"model/{name}.safetensors") for r in ("whole", "parts")
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name


def test_the_teacher_is_asked_once_a_clip_and_a_damaged_answer_is_named(
    audio, speaker, tmp_path, monkeypatch
):
    config = TrainConfig(**SETTINGS, backbone=str(speaker), task="decoder")
    folder = unlabelled([audio])
    outputs = tmp_path / "run" / "teacher"
    train(config, folder, tmp_path / "run")
    files = sorted(outputs.iterdir())
    assert len(files) == len(folder.split("train"))
    saved = {key: value.clone() for key, value in load_file(files[0]).items()}
    assert saved["states"].dtype == torch.float16
    assert saved["values"].shape == saved["labels"].shape
    other = tmp_path / "other"
    other.mkdir()
    (other / "teacher").symlink_to(outputs)
    files[0].write_bytes(b"no tensors")
    with pytest.raises(UsageError, match=r"is damaged .* remove it, and start again"):
        train(config, folder, other)
    files[0].unlink()
    train(config, folder, other)
    again = load_file(files[0])
    assert torch.equal(saved["ids"], again["ids"])
    torch.testing.assert_close(saved["states"], again["states"], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("case", ["ctc", "classes"])
def test_a_finished_run_is_distilled_from_its_own_full_depth(
    case, tones, whisper, audio, tmp_path, capsys
):
    if case == "ctc":
        rows = (tones / "metadata.csv").read_text().replace("label", "text", 1)
        (tmp_path / "data").mkdir()
        for path in tones.glob("*.wav"):
            shutil.copy(path, tmp_path / "data")
        (tmp_path / "data" / "metadata.csv").write_text(rows)
    data = tones if case == "classes" else tmp_path / "data"
    first = [*("train", "--method", "full", "--backbone", str(whisper), "--data", str(data))]
    first += ["--out", str(tmp_path / "full"), "--epochs", "1", "--set", "precision=fp32"]
    first += ["--set", "task=ctc"] if case == "ctc" else []
    assert main(first) == 0, capsys.readouterr().err
    out = tmp_path / "run"
    command = ["distill", str(tmp_path / "full"), "--data", str(audio), "--out", str(out)]
    assert main([*command, "--set", "rank=4", "--set", "precision=fp32"]) == 0
    full, run = load_run(tmp_path / "full"), load_run(out)
    assert run.labels == full.labels
    assert type(run.task) is type(full.task)
    batch = {"input_features": torch.randn(2, 16, 100)}
    with torch.no_grad():
        assert torch.equal(run.dynamic(**batch).logits, full.dynamic(**batch).logits)
    assert main(["sweep", str(out), "--data", str(data)]) == 0


def test_the_command_line_distils_a_directory_and_transcribes_with_it(
    audio, speaker, tmp_path, capsys
):
    out = tmp_path / "run"
    command = ["distill", str(speaker), "--data", str(audio / "a"), "--out", str(out)]
    command += ["--replay", f"{audio / 'b'}:0.4", "--set", "rank=2", "--batch-size", "3"]
    assert main(command) == 0
    assert f"--model {out}/model --budget" in capsys.readouterr().out
    info = json.loads((out / "run.json").read_text())
    assert info["task"] == "text"
    keys = {path.name for path in (out / "teacher").iterdir()}
    assert len(keys) == 6 + 4  # 4 of the other directory are 0.4 of 10


def test_a_directory_without_metadata_is_clips_and_a_corpus_keeps_its_test_clips_out(audio, tones):
    bare = unlabelled([audio])
    assert [clip.split for clip in bare.clips] == ["train"] * 12  # too few to hold some out
    corpus = unlabelled([tones])
    assert {clip.split for clip in corpus.clips} == {"train", "validation"}
    assert {clip.target for clip in corpus.clips} == {""}
    both = unlabelled([audio, tones])
    assert len(both.clips) == len(bare.clips) + len(corpus.clips)
    assert len({bare.digest, corpus.digest, both.digest}) == 3


def test_replay_has_its_share_whatever_the_sizes(audio, tones):
    for share in (0.25, 0.5, 0.9):
        clips = unlabelled([audio], {str(tones): share}).split("train")
        replayed = sum(clip.path.parent == tones for clip in clips)
        assert abs(replayed / len(clips) - share) < 0.03
    first = unlabelled([audio], {str(tones): 0.5}).split("train")
    assert first == unlabelled([audio], {str(tones): 0.5}).split("train")


def test_what_cannot_be_distilled_is_refused(audio, tmp_path, capsys):
    for replay in ({str(audio): 1.0}, {str(audio): 0.0}, {"x": 0.6, "y": 0.5}):
        with pytest.raises(UsageError, match="shares of replay"):
            unlabelled([audio], replay)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no audio in it"):
        unlabelled([tmp_path / "empty"])
    with pytest.raises(DataError):
        unlabelled([tmp_path / "nowhere"])
    command = ["distill", "whisper-base", "--data", str(audio), "--out", str(tmp_path / "out")]
    for wrong in ("speech", "speech:half", ":0.5"):
        assert main([*command, "--replay", wrong]) == 2
        assert "--replay takes DIR:SHARE" in capsys.readouterr().err


def test_depths_go_from_the_least_share_to_all():
    assert _depths(6, 0.5) == [3, 4, 5, 6]
    assert _depths(6, 1 / 3) == [2, 3, 4, 5, 6]
    assert _depths(2, 0.9) == [1, 2]  # some depth below full, whatever the share


def test_a_decoder_keeps_its_last_layers_and_its_first():
    policy = StaticScores(_late_scores(6))
    masks = [policy.fixed_mask(k).nonzero().flatten().tolist() for k in (1, 2, 3, 4, 6)]
    assert masks == [[5], [0, 5], [0, 4, 5], [0, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert StaticScores(_late_scores(1)).fixed_mask(1).tolist() == [True]


def test_the_benchmark_of_decoder_layers_trains_each_choice(
    distilled, audio, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    benchmark = importlib.import_module("decoder_layers")
    out = tmp_path / "found.json"
    choices = ["--keep", "0", "1", "--steps", "20", "--out", str(out)]
    given = [str(distilled), "--data", str(audio), *choices]
    monkeypatch.setattr(sys, "argv", ["decoder_layers.py", *given])
    assert benchmark.main() == 0
    found = json.loads(out.read_text())["choices"]
    assert [one["layers"] for one in found] == [[0], [1]]
    assert all(one["after"] < 0.9 * one["before"] for one in found)


def test_a_model_of_one_layer_has_nothing_to_distil(audio, speaker, tmp_path):
    tiny.save_speaker(tmp_path / "one")
    tiny.make("whisper-generation", encoder_layers=1).save_pretrained(tmp_path / "one")
    config = TrainConfig(**SETTINGS, backbone=str(tmp_path / "one"), task="decoder")
    with pytest.raises(UsageError, match="no depth below full to distill"):
        train(config, unlabelled([audio]), tmp_path / "run")


def test_an_interrupt_while_the_teacher_answers_keeps_what_is_there(
    audio, speaker, tmp_path, monkeypatch
):
    config = TrainConfig(**SETTINGS, backbone=str(speaker), task="decoder")
    monkeypatch.setattr(teaching, "BATCH", 2)

    class Stopped:
        def __enter__(self):
            return lambda: True

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(teaching, "stop_signals", Stopped)
    with pytest.raises(Interrupted, match="the same command goes on"):
        train(config, unlabelled([audio]), tmp_path / "run")
    assert len(list((tmp_path / "run" / "teacher").iterdir())) == 2


def test_parts_are_saved_without_the_model_and_fit_only_it(distilled, speaker, tmp_path):
    from sounding.model.loading import load_parts
    from sounding.model.saving import save_parts

    dynamic = load_run(distilled).dynamic
    save_parts(dynamic, tmp_path / "parts")
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    plain = type(dynamic.model).from_pretrained(speaker).eval()
    with_parts = load_parts(plain, tmp_path / "parts").eval()
    batch = tiny.inputs(dynamic.model)
    with torch.no_grad():
        for k in range(1, dynamic.num_layers + 1):
            one, other = dynamic(**batch, budget=k).logits, with_parts(**batch, budget=k).logits
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)  # in half precision
    other = type(dynamic.model).from_pretrained(speaker)
    with torch.no_grad():
        other.model.encoder.layers[0].fc1.weight.add_(0.1)
    with pytest.raises(UsageError, match="trained beside other weights"):
        load_parts(other, tmp_path / "parts")
    saved = load_file(tmp_path / "parts" / "updates.safetensors")
    save_file({**saved, "more": torch.zeros(1)}, tmp_path / "parts" / "updates.safetensors")
    with pytest.raises(UsageError, match="sha256 differs"):
        load_parts(type(dynamic.model).from_pretrained(speaker), tmp_path / "parts")
    with pytest.raises(UsageError, match="holds a whole model"):
        load_parts(plain, distilled / "model")
    assert sounding.load(distilled / "model").updates is not None
