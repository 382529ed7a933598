"""`sounding train --texts-by`: what a pretrained recognizer writes is what another learns."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile as sf
import torch
from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

from sounding.cli.app import main
from sounding.data.features import load_features
from sounding.data.unlabelled import unlabelled
from sounding.errors import UsageError
from sounding.methods import teaching
from sounding.runs.config import TrainConfig
from sounding.runs.run import load_run
from sounding.tasks.written import pad_with_silence
from sounding.training.texts import with_texts

RATE = 16000


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """Two directories of audio, and nothing said about them."""
    root = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    for index in range(10):
        path = root / ("a", "b")[index % 2] / f"{index}.wav"
        path.parent.mkdir(exist_ok=True)
        time = np.arange(int(rng.uniform(0.5, 1.1) * RATE)) / RATE
        tone = 0.3 * np.sin(2 * np.pi * 200 * 1.5**index * time)
        sf.write(path, tone + rng.normal(0, 0.01, len(time)), RATE)
    return root


@pytest.fixture(scope="module")
def writer(speaker, tmp_path_factory):
    """A tiny recognizer that writes letters, and other ones of other clips."""
    path = tmp_path_factory.mktemp("writer") / "model"
    shutil.copytree(speaker, path)
    model = WhisperForConditionalGeneration.from_pretrained(path)
    torch.manual_seed(2)
    with torch.no_grad():
        model.model.decoder.embed_tokens.weight.normal_(0, 0.3)
        for layer in model.model.decoder.layers:
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                getattr(layer.encoder_attn, part).weight.normal_(0, 1)
    model.generation_config.suppress_tokens = [0, 1, 3, *range(10, model.config.vocab_size)]
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def config(whisper):
    return TrainConfig(backbone=str(whisper), task="ctc", method="full", precision="fp32")


@pytest.fixture(scope="module")
def folder(audio):
    return unlabelled([audio / "a", audio / "b"])


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("written")


@pytest.fixture(scope="module")
def written(writer, config, folder, out):
    return with_texts(str(writer), folder, config, out)


def test_every_clip_gets_a_text_and_keeps_its_split(written, folder):
    texts = {clip.path.name: clip.target for clip in written.clips}
    assert set(texts) == {clip.path.name for clip in folder.clips}
    assert len(set(texts.values())) > 1
    assert written.task == "text"
    assert [clip.split for clip in written.clips] == [clip.split for clip in folder.clips]


@pytest.mark.usefixtures("quiet_generate")
def test_a_text_is_what_plain_transformers_writes_of_the_padded_clip(written, writer):
    model = WhisperForConditionalGeneration.from_pretrained(writer).eval()
    extractor = WhisperFeatureExtractor.from_pretrained(writer)
    tokenizer = AutoTokenizer.from_pretrained(writer)
    window = 2 * model.config.max_source_positions
    for clip in written.clips:
        (features,) = load_features([clip], extractor, max_seconds=None)
        batch = pad_with_silence(torch.from_numpy(features).T[None], window)
        tokens = model.generate(batch, do_sample=False, num_beams=1, max_new_tokens=22)
        assert clip.target == tokenizer.decode(tokens[0], skip_special_tokens=True)


def test_the_same_command_trains_and_goes_on_without_asking_again(
    writer, whisper, audio, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    command = ["train", "--texts-by", str(writer), "--backbone", str(whisper), "--out", str(run)]
    command += ["--data", str(audio / "a"), "--replay", f"{audio / 'b'}:0.4", "--method", "full"]
    command += ["--set", "task=ctc", "--epochs", "1", "--batch-size", "4"]
    assert main(command) == 0
    trained = load_run(run)
    assert trained.task.by_frame
    assert (run / "teacher").is_dir()
    monkeypatch.setattr(teaching, "_teach", None)
    before = (run / "model" / "model.safetensors").read_bytes()
    assert main(command) == 0
    assert (run / "model" / "model.safetensors").read_bytes() == before


def test_two_processes_ask_once_and_train_as_one(writer, whisper, audio, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text("import sys\nfrom sounding.cli import main\nsys.exit(main(sys.argv[1:]))\n")
    losses = []
    for count in (1, 2):
        run = tmp_path / f"run{count}"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={count}", str(script), "train", "--texts-by", str(writer)]
        command += ["--backbone", str(whisper), "--data", str(audio), "--method", "full"]
        command += ["--set", "task=ctc", "--set", "precision=fp32", "--out", str(run)]
        done = subprocess.run(
            [*command, "--epochs", "2", "--batch-size", "4"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        losses.append(np.loadtxt(run / "log.csv", delimiter=",", skiprows=1))
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_a_directory_of_other_files_is_refused_before_anything_is_written(
    writer, folder, config, tmp_path, monkeypatch
):
    (tmp_path / "thesis.txt").write_text("mine")
    monkeypatch.setattr(teaching, "_teach", None)
    with pytest.raises(UsageError, match="holds other files"):
        with_texts(str(writer), folder, config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_clip_of_which_nothing_is_written_is_left_out_and_counted(
    written, writer, config, folder, out, monkeypatch, capsys
):
    lists = teaching.TeacherOutputs.written
    monkeypatch.setattr(
        teaching.TeacherOutputs, "written", lambda self, i: [] if i == 3 else lists(self, i)
    )
    kept = with_texts(str(writer), folder, config, out)
    assert len(kept.clips) == len(folder.clips) - 1
    assert folder.clips[3].path not in {clip.path for clip in kept.clips}
    assert f"1 of {len(folder.clips)} clips are left out" in capsys.readouterr().err
    monkeypatch.setattr(teaching.TeacherOutputs, "written", lambda self, i: [])
    with pytest.raises(UsageError, match="writes nothing of any clip"):
        with_texts(str(writer), folder, config, out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "a", "b"], "go with --texts-by alone"),
        (["--data", "a", "--replay", "b:0.3"], "go with --texts-by alone"),
        (["--texts-by", "x", "--data", "a", "--replay", "b"], "--replay takes DIR:SHARE"),
        (["--texts-by", "x", "--data", "a", "--set", "task=class"], "the data are of the kind"),
    ],
)
def test_what_does_not_go_together_is_said(options, message, audio, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(audio)
    assert main(["train", "--out", str(tmp_path / "run"), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_model_that_writes_no_texts_is_refused(audio, masking, tmp_path, capsys):
    command = ["train", "--texts-by", str(masking), "--data", str(audio / "a")]
    assert main([*command, "--out", str(tmp_path / "run")]) == 2
    assert "cannot be loaded as AutoTokenizer" in capsys.readouterr().err


def test_a_clip_beyond_the_window_is_named_before_anything_is_written(
    writer, config, tmp_path, monkeypatch
):
    sf.write(tmp_path / "long.wav", np.random.default_rng(1).normal(0, 0.1, 3 * RATE), RATE)
    monkeypatch.setattr(teaching, "_teach", None)
    with pytest.raises(UsageError, match=r"long\.wav.* longer than the window"):
        with_texts(str(writer), unlabelled([tmp_path]), config, tmp_path / "run")
