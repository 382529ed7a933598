"""Clips and texts that do not fit the model are told before the first step."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
import soundfile as sf
import tiny
import torch
import transformers as t
from interrupt import train_until

from sounding.cli.app import main
from sounding.data.audio import AudioError
from sounding.data.features import extract, load_features
from sounding.data.folder import DataError, load_folder
from sounding.data.text import build_tokenizer
from sounding.evaluation.sweep import sweep
from sounding.runs.config import TrainConfig
from sounding.runs.run import load_run, new_run
from sounding.study import compare as study
from sounding.study.compare import StudyConfig, compare
from sounding.tasks.ctc import CTC
from sounding.tasks.decoder import Decoder
from sounding.training import loop as module
from sounding.training import steps
from sounding.training.fitting import Frames
from sounding.training.loop import train

FILLER = [(0.5, "low high", "train")] * 8 + [(0.5, "low", "validation")] * 2
TEST = [(0.5, "high", "test")] * 2
LONG = " ".join(["high"] * 20)  # 99 tokens; half a second has 25 frames


@pytest.fixture
def make(tmp_path):
    """Write a folder of clips: (seconds or samples, text or label, split) each."""

    def write(rows, name="data", column="text"):
        root = tmp_path / name
        root.mkdir()
        lines = []
        for index, (length, target, split) in enumerate(rows):
            count = length if isinstance(length, int) else round(16000 * length)
            tone = 0.1 * np.sin(0.1 * np.arange(count)) + 0.01 * np.cos(index + np.arange(count))
            sf.write(root / f"{index}.wav", tone.astype(np.float32), 16000, subtype="FLOAT")
            lines.append([f"{index}.wav", target, split])
        with (root / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["file_name", column, "split"], *lines])
        return root

    return write


@pytest.fixture
def config(whisper):
    return TrainConfig(
        backbone=str(whisper), method="full", epochs=1, batch_size=4, precision="fp32"
    )


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    """A tiny Whisper whose decoder takes 24 tokens."""
    path = tmp_path_factory.mktemp("speaker")
    tiny.save_speaker(path)
    return path


def weights(out):
    return (out / "model" / "model.safetensors").read_bytes()


def lines(capsys):
    """What was told, a line each."""
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("sounding:")]


# --- texts that are too long for their clips -------------------------------------------------


def test_ctc_needs_a_frame_for_each_token_and_one_between_two_alike():
    task = CTC(tokenizer=build_tokenizer(["low high"]))
    targets = task.targets(None, [])
    assert targets == []

    def frames(text):
        return task.frames(module.Target(tuple(task.tokenizer(text)["input_ids"]), text))

    assert [frames(text) for text in ("", "l", "lo", "ll", "lll", "lolo", "ll l")] == [
        1, 1, 2, 3, 5, 4, 5,
    ]  # fmt: skip
    for needed, text in ((3, "ll"), (4, "lolo")):  # as ctc_loss has it
        logits = torch.randn(1, 1, needed, len(task.tokenizer))
        target = module.Target(tuple(task.tokenizer(text)["input_ids"]), text)
        assert task.losses(logits, None, [target]).item() > 0
        assert task.losses(logits[:, :, 1:], None, [target]).item() == 0


def test_a_text_too_long_for_its_clip_is_left_out_and_named(make, config, tmp_path, capsys):
    bad = [(0.5, LONG, "train")] * 3
    folder = load_folder(make([*FILLER, *bad, (0.5, LONG, "validation")]))
    train(config, folder, tmp_path / "run")
    told = lines(capsys)
    assert len(told) == 2
    assert (
        "3 of 11 training clips (10.wav, 11.wav, 12.wav) are too short for their texts" in told[0]
    )
    assert "a frame for each token" in told[0]
    assert "1 of 3 validation clips (13.wav) are too short for their texts" in told[1]
    train(config, load_folder(make(FILLER, "fit")), tmp_path / "without")
    assert weights(tmp_path / "run") == weights(tmp_path / "without")


@pytest.mark.parametrize("augmented", [False, True])
def test_the_same_clips_are_left_out_after_an_interruption(make, config, tmp_path, augmented):
    folder = load_folder(make([(0.5, LONG, "train"), *FILLER, (0.5, LONG, "train")]))
    config = replace(config, epochs=3, checkpoint_seconds=0, noise_share=0.5 * augmented)
    train(config, folder, tmp_path / "whole")
    train_until(3, config, folder, tmp_path / "run")
    train(config, folder, tmp_path / "run")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert load_run(tmp_path / "run").info["steps"] == 6


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_where_no_text_fits_the_training_does_not_begin(
    make, config, tmp_path, monkeypatch, split, augmented
):
    rows = [(s, LONG if p == split else text, p) for s, text, p in FILLER]
    monkeypatch.setattr(steps, "one_step", None)
    config = replace(config, mask_share=0.1 * augmented)
    adjective = {"train": "training"}.get(split, split)
    with pytest.raises(ValueError, match=f"all . {adjective} clips .* too short for their texts"):
        train(config, load_folder(make(rows)), tmp_path / "run")


def test_texts_that_fit_only_as_the_clip_is_are_told(make, config, tmp_path, capsys):
    """Half a second has 25 frames; 10 % faster it has 22."""
    tight = "lo" * 12
    folder = load_folder(make([*FILLER, (0.5, tight, "train")]))
    train(replace(config, speed_change=0.1), folder, tmp_path / "run")
    (told,) = lines(capsys)
    assert "1 of 9 training clips (10.wav) are too short" in told
    assert "played 10% faster" in told


def test_frames_are_found_out_for_few_clips_and_right_for_all(config):
    run = new_run(config, ["a", "b"], {})
    rng = np.random.default_rng(0)
    audio = [rng.normal(0, 0.1, n).astype(np.float32) for n in rng.integers(1000, 16000, 60)]
    exact = [(len(extract(one, run.extractor)) - 1) // 2 + 1 for one in audio]
    asked = []

    def length(index):
        asked.append(index)
        return len(extract(audio[index], run.extractor))

    frames = Frames(run, [len(one) for one in audio], length)
    order = np.argsort([len(one) for one in audio]).tolist()
    assert all(frames.reach(index, max(1, exact[index] // 3)) for index in order)
    assert len(asked) < 12
    for index, count in enumerate(exact):
        assert frames.reach(index, count)
        assert not frames.reach(index, count + 1)


@pytest.mark.parametrize("tokens", [22, 23])
def test_a_text_longer_than_the_decoder_is_left_out_and_named(
    make, speaker, config, tmp_path, capsys, tokens
):
    """24 tokens, with the one before the text and the one at its end."""
    config = replace(config, backbone=str(speaker), task="decoder")
    folder = load_folder(
        make([*FILLER, *[(0.5, "l" * tokens, s) for s in ("train", "validation")]])
    )
    run = train(config, folder, tmp_path / "run")
    assert isinstance(run.task, Decoder)
    told = lines(capsys)
    assert len(told) == 2 * (tokens > 22)
    for line, name in zip(told, ("of 9 training clips (10.wav)", "(11.wav)"), strict=False):
        assert name in line
        assert "more than the 24 tokens" in line


def test_where_no_text_fits_the_decoder_the_training_does_not_begin(
    make, speaker, config, tmp_path, capsys
):
    data = make([(0.5, LONG, "train")] * 7 + TEST)
    settings = ["--backbone", str(speaker), "--set", "task=decoder"]
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *settings]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "all 6 training clips (1.wav, 2.wav, 3.wav, 4.wav, 5.wav and 1 more)" in error
    assert "24 tokens" in error


# --- audio that is cut, and texts that are not -----------------------------------------------


def test_a_training_clip_that_would_be_cut_is_left_out_since_its_text_is_not(
    make, config, tmp_path, capsys
):
    data = make(
        [*FILLER, (0.7, "low", "train"), (0.5005, "low", "train"), *TEST, (0.7, "low", "test")]
    )
    config = replace(config, max_seconds=0.5)
    folder = load_folder(data)
    run = train(config, folder, tmp_path / "run")
    (told,) = lines(capsys)
    assert "1 of 10 training clips (10.wav) are longer than --max-seconds 0.5" in told
    sweep([run], folder, rounds=0)
    (told,) = lines(capsys)
    assert "1 of 3 test clips (14.wav) are longer than max_seconds (0.5)" in told
    with pytest.raises(ValueError, match=r"all 10 training clips .* --max-seconds 0\.3"):
        train(replace(config, max_seconds=0.3), folder, tmp_path / "none")


def test_classes_are_cut_as_asked_without_a_word(make, config, tmp_path, capsys):
    rows = [(0.5, ("a", "b")[i % 2], "train") for i in range(8)]
    folder = load_folder(make(rows, column="label"))
    train(replace(config, max_seconds=0.3), folder, tmp_path / "run")
    assert lines(capsys) == []


@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_what_a_model_of_one_length_leaves_out_is_told(make, config, tmp_path, capsys):
    tiny.make("ast").save_pretrained(tmp_path / "ast")
    t.ASTFeatureExtractor(num_mel_bins=32, max_length=64).save_pretrained(tmp_path / "ast")
    rows = [(0.5 + 0.3 * (i == 2), ("a", "b")[i % 2], "train") for i in range(8)]
    folder = load_folder(make(rows, column="label"))
    config = replace(config, backbone=str(tmp_path / "ast"))
    train(config, folder, tmp_path / "run")
    (told,) = lines(capsys)
    assert "1 of 8 training clips (2.wav) are longer than the 0.64 s that the model takes" in told
    train(replace(config, max_seconds=0.64), folder, tmp_path / "asked")
    assert lines(capsys) == []


# --- texts without a word --------------------------------------------------------------------


def test_texts_without_a_word_are_trained_on_told_and_count_what_is_added(
    make, config, tmp_path, capsys
):
    folder = load_folder(make([*FILLER, (0.5, "...", "train"), *TEST, (0.5, "?!", "test")]))
    run = train(config, folder, tmp_path / "run")
    (told,) = lines(capsys)
    assert "1 of 9 training clips (10.wav) have a text without a word" in told
    assert run.info["steps"] == 3  # of 9 clips
    (row,) = [r for r in sweep([run], folder, rounds=0).rows if r.kept_layers == 4]
    (told,) = lines(capsys)
    assert "1 of 3 test clips (13.wav) have a text without a word" in told
    heard = [run.task.decode(run.dynamic(**run.collate([one])).logits, None)[0]
             for one in run.read(folder.split("test"), "read")]  # fmt: skip
    errors = sum(run.task.count(heard, run.task.targets(folder, folder.split("test"))))
    assert row.value == pytest.approx(errors / 2)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_a_single_word_is_refused_with_its_texts(make, config, tmp_path, split):
    rows = [(s, ("...", "?!")[i % 2] if p == split else text, p)
            for i, (s, text, p) in enumerate([*FILLER, *TEST])]  # fmt: skip
    folder = load_folder(make(rows))
    match = rf"none of the . texts of the split '{split}' has a word \('\.\.\.', '\?!'\): .*'text'"
    with pytest.raises(DataError, match=match):
        sweep([train(config, folder, tmp_path / "run")], folder, rounds=0)
    settings = StudyConfig(settings={"backbone": config.backbone}, seeds=(0,))
    with pytest.raises(DataError, match=match):
        compare(settings, [folder.root], tmp_path / "study")
    assert not (tmp_path / "study").exists()


# --- clips that cannot be used ---------------------------------------------------------------


def test_all_clips_that_cannot_be_read_are_in_one_error(make, config, tmp_path):
    root = make([(0.5, ("a", "b")[i % 2], "train") for i in range(12)], column="label")
    for index in range(3, 10):
        sf.write(root / f"{index}.wav", np.zeros(100), 16000)
    (root / "11.wav").write_bytes(b"noise")
    folder = load_folder(root)
    for augmented in (False, True):
        with pytest.raises(AudioError) as caught:
            train(replace(config, noise_share=0.1 * augmented), folder, tmp_path / f"{augmented}")
        text = str(caught.value)
        assert text.startswith("8 of 12 clips cannot be used:")
        assert text.endswith("and 3 more")
        assert len(text.splitlines()) == 7
    run = new_run(config, ["a", "b"], {})
    with pytest.raises(AudioError, match=r"^\S*11.wav: cannot be decoded"):
        load_features(folder.clips[:2] + folder.clips[3:4], run.extractor, max_seconds=None)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_clip_that_would_stop_the_end_stops_the_start(make, config, tmp_path, monkeypatch, split):
    root = make([*FILLER, *TEST])
    index = 9 if split == "validation" else 11
    (root / f"{index}.wav").write_bytes(b"noise")
    monkeypatch.setattr(steps, "one_step", None)
    settings = StudyConfig(settings={"backbone": config.backbone}, seeds=(0,))
    with pytest.raises(AudioError, match=f"{index}.wav: cannot be decoded"):
        compare(settings, [root], tmp_path / "study")
    if split == "validation":
        with pytest.raises(AudioError, match=f"{index}.wav: cannot be decoded"):
            train(config, load_folder(root), tmp_path / "run")


def test_a_study_without_a_split_it_needs_does_not_begin(make, config, tmp_path, monkeypatch):
    root = make([row for row in FILLER if row[2] == "train"] + TEST)
    (root / "metadata.csv").write_text(
        (root / "metadata.csv").read_text().replace("test", "validation")
    )
    monkeypatch.setattr(study, "train", None)
    with pytest.raises(DataError, match="no split 'test'"):
        compare(StudyConfig(settings={"backbone": config.backbone}), [root], tmp_path / "study")


@pytest.mark.parametrize("augmented", [False, True])
def test_clips_without_a_frame_or_beyond_the_window_are_refused_at_the_start(
    make, config, tmp_path, monkeypatch, augmented
):
    model = tiny.make("wav2vec2-post", conv_kernel=(400, 40, 20), conv_stride=(40, 8, 8))
    model.save_pretrained(tmp_path / "coarse")
    t.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(tmp_path / "coarse")
    monkeypatch.setattr(steps, "one_step", None)
    config = replace(config, noise_share=0.5 * augmented)
    rows = [(1 if i > 1 else 0.1, ("a", "b")[i % 2], "train") for i in range(8)]
    short = load_folder(make([(float(s), label, p) for s, label, p in rows], column="label"))
    with pytest.raises(ValueError, match=r"2 of 8 training clips \(0.wav, 1.wav\) are too short"):
        train(replace(config, backbone=str(tmp_path / "coarse")), short, tmp_path / "run")
    rows = [(0.5 + (i == 3), ("a", "b")[i % 2], "train") for i in range(8)]
    long = load_folder(make(rows, "long", column="label"))
    with pytest.raises(ValueError, match=r"1 of 8 training clips \(3.wav\) are longer than"):
        train(config, long, tmp_path / "run2")


def test_a_clip_that_is_too_short_when_it_is_faster_stays_as_it_is(make, config, tmp_path):
    """Of 0.061 s, and twice as long as the model takes at half the speed."""
    rows = [(980, ("a", "b")[i % 2], "train") for i in range(4)]
    rows += [(1.15, ("a", "b")[i % 2], "train") for i in range(4)]
    folder = load_folder(make(rows, column="label"))
    train(replace(config, speed_change=0.5, epochs=4), folder, tmp_path / "run")
    assert np.isfinite(np.loadtxt(tmp_path / "run" / "log.csv", delimiter=",", skiprows=1)).all()
