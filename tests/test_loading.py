"""The clips of a training: read by any number of processes, and kept in files and not in memory."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from interrupt import stop_and_go_on, train_until, weights
from safetensors import SafetensorError

from sounding.data.audio import AudioError
from sounding.data.folder import load_folder
from sounding.runs.config import TrainConfig
from sounding.runs.run import new_run
from sounding.training import loop, source, steps
from sounding.training.claim import FEATURES
from sounding.training.fitting import frames_of, least_length
from sounding.training.loop import train
from sounding.training.source import Source

CHANGES = {"noise_share": 0.5, "speed_change": 0.1, "mask_share": 0.2}


@pytest.fixture
def config(whisper):
    return TrainConfig(backbone=str(whisper), epochs=2, batch_size=8, checkpoint_seconds=0)


@pytest.fixture
def reads(monkeypatch):
    """The clips that this process decodes, in their order."""
    seen = []
    load = source.load_audio

    def counting(clip, *args):
        seen.append(clip.path.name)
        return load(clip, *args)

    monkeypatch.setattr(source, "load_audio", counting)
    return seen


@pytest.mark.parametrize("changes", [{}, CHANGES])
def test_any_number_of_workers_gives_the_same_weights_also_after_a_kill(
    config, tones, tmp_path, changes
):
    config, folder = replace(config, **changes), load_folder(tones)
    train(config, folder, tmp_path / "whole")
    for first, then in ((0, 2), (2, 4), (4, 0)):
        out = tmp_path / f"{first}-{then}"
        train_until(5, replace(config, workers=first), folder, out)
        train(replace(config, workers=then), folder, out)
        assert weights(out) == weights(tmp_path / "whole")


def test_workers_change_nothing_where_transformers_masks_in_training(
    config, tones, tmp_path, masking
):
    config = replace(config, backbone=str(masking), backbone_masking=True)
    folder = load_folder(tones)
    train(config, folder, tmp_path / "whole")
    stop_and_go_on(replace(config, workers=2), folder, tmp_path / "workers", 4)
    assert weights(tmp_path / "workers") == weights(tmp_path / "whole")


@pytest.mark.parametrize("changes", [{}, CHANGES])
def test_a_clip_is_decoded_once_and_kept_until_the_training_ends(
    config, tones, tmp_path, reads, changes
):
    config, folder = replace(config, **changes), load_folder(tones)
    names = sorted(clip.path.name for clip in folder.clips if clip.split != "test")
    train_until(7, config, folder, tmp_path / "kept")
    assert sorted(reads) == names
    train(config, folder, tmp_path / "kept")
    assert sorted(reads) == names  # nor when it goes on
    assert not (tmp_path / "kept" / FEATURES).exists()
    reads.clear()
    train(replace(config, cache_gb=0), folder, tmp_path / "anew")
    twice = [name for name in names if name.startswith("train")]
    assert all(reads.count(name) >= 3 for name in twice)  # to check it, and in each epoch
    assert weights(tmp_path / "anew") == weights(tmp_path / "kept")


def test_features_are_the_same_in_the_middle_of_a_measurement(config, tones):
    run = new_run(config, ["high", "low"], {})
    features = Source(run, load_folder(tones).split("train")[:3]).features()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        within = features[0]
    assert within.dtype == np.float32
    assert np.array_equal(within, features[0])
    assert [len(one) for one in features[1:]] == [len(features[1]), len(features[2])]
    with pytest.raises(IndexError):
        features[3]


@pytest.mark.parametrize("workers", [0, 2])
def test_as_much_is_kept_as_there_is_room_for(config, tones, tmp_path, workers):
    run = new_run(config, ["high", "low"], {})
    clips = load_folder(tones).split("train")

    def kept(**settings):
        run.config = replace(config, workers=workers, **settings)
        out = tmp_path / str(settings)
        Source(run, clips, out)
        files = list(out.rglob("*.safetensors")) if out.exists() else []
        return len(files), sum(file.stat().st_size for file in files)

    count, size = kept()
    assert count == 40
    half, less = kept(cache_gb=size / 2 / 1e9)
    assert 15 <= half <= 25
    assert less <= 1.1 * size / 2
    assert kept(cache_gb=0) == (0, 0)


def test_a_kept_file_that_was_cut_off_is_made_anew(config, tones, tmp_path):
    run = new_run(config, ["high", "low"], {})
    clips = Source(run, load_folder(tones).split("train"), tmp_path / "kept")
    before = clips.batch([0, 1], 0)["input_features"]
    kept = [tmp_path / "kept" / "0" / f"{number}.safetensors" for number in (0, 1)]
    kept[0].write_bytes(kept[0].read_bytes()[:-100])
    kept[1].write_bytes(b"")
    assert torch.equal(clips.batch([0, 1], 0)["input_features"], before)
    again = Source(run, load_folder(tones).split("train"), tmp_path / "kept")
    assert again.samples.tolist() == clips.samples.tolist()


def test_a_training_goes_on_where_nothing_more_can_be_kept(
    config, tones, tmp_path, monkeypatch, capsys
):
    def full(tensors, path):
        raise SafetensorError("No space left on device")

    folder = load_folder(tones)
    train(replace(config, cache_gb=0), folder, tmp_path / "anew")
    monkeypatch.setattr(source, "save_file", full)
    train(config, folder, tmp_path / "full")
    assert weights(tmp_path / "full") == weights(tmp_path / "anew")
    assert capsys.readouterr().err.count("No space left on device") == 2  # of both splits


def test_other_settings_forget_what_was_kept_for_a_run_that_never_began(
    config, tones, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop.TrainState, "save", lambda *args: None)
    train_until(5, config, load_folder(tones), tmp_path / "run")
    assert any((tmp_path / "run" / FEATURES).iterdir())
    shorter = replace(config, max_seconds=0.2)
    train(shorter, load_folder(tones), tmp_path / "run")
    train(shorter, load_folder(tones), tmp_path / "anew")
    assert weights(tmp_path / "run") == weights(tmp_path / "anew")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_clip_that_is_gone_in_the_middle_is_named_and_what_was_learned_is_kept(
    config, tones, tmp_path, workers
):
    folder = load_folder(shutil.copytree(tones, tmp_path / "tones"))
    config = replace(config, cache_gb=0, epochs=20, workers=workers, checkpoint_seconds=1e6)
    step = steps.one_step

    def losing(*args):
        (tmp_path / "tones" / "train7.wav").unlink(missing_ok=True)
        return step(*args)

    steps.one_step = losing
    try:
        with pytest.raises(AudioError, match=r"train7\.wav"):
            train(config, folder, tmp_path / "run")
    finally:
        steps.one_step = step
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()
    shutil.copy(tones / "train7.wav", tmp_path / "tones" / "train7.wav")
    train(config, folder, tmp_path / "run")
    train(config, folder, tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_clips_are_all_told_before_the_first_step(config, tones, tmp_path, workers):
    folder = shutil.copytree(tones, tmp_path / "tones")
    for name in ("train3.wav", "train7.wav"):
        (folder / name).write_bytes(b"RIFF" + bytes(range(200)))
    with pytest.raises(AudioError, match=r"(?s)2 of 40 clips cannot be used.*train3.*train7"):
        train(replace(config, workers=workers), load_folder(folder), tmp_path / "run")


def test_ctrl_c_with_workers_leaves_a_checkpoint_and_one_line(config, tones, tmp_path):
    (tmp_path / "c.yaml").write_text(replace(config, epochs=200, workers=2).to_yaml())
    command = [sys.executable, "-c", "import sys, sounding.cli; sys.exit(sounding.cli.main())"]
    command += ["train", "--config", str(tmp_path / "c.yaml"), "--data", str(tones)]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "run")],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: workers get it too
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "the same command goes on" in err
    assert "Traceback" not in err
    assert checkpoint.exists()


def test_the_least_length_is_the_shortest_of_which_there_is_a_frame(config, masking):
    run = new_run(replace(config, backbone=str(masking)), ["high", "low"], {})
    least = least_length(run)
    assert least > 1
    assert frames_of(run, least) == 1
    assert frames_of(run, least - 1) < 1


def test_noise_is_new_in_each_step_and_only_on_its_share_of_the_clips(config, tones):
    folder = load_folder(tones)
    clips, rows = folder.split("train"), list(range(40))
    batches = {}
    for share in (0.0, 0.5, 1.0):
        run = new_run(replace(config, noise_share=share), list(folder.labels), {})
        source = Source(run, clips)
        batches[share] = [source.batch(rows, epoch)["input_features"] for epoch in (3, 3, 4)]
    clean = batches[0.0][0]
    assert torch.equal(clean, batches[0.0][2])
    for share, low, high in ((0.5, 8, 32), (1.0, 40, 40)):
        one, again, next_one = batches[share]
        assert torch.equal(one, again)
        assert low <= int((one != clean).flatten(1).any(1).sum()) <= high
        assert (one != next_one).flatten(1).any(1).sum() >= low


@pytest.mark.parametrize("change", [{"speed_change": 0.1}, {"mask_share": 0.2}])
def test_speed_and_masks_are_new_in_each_step(config, tones, change):
    folder = load_folder(tones)
    run = new_run(replace(config, **change), list(folder.labels), {})
    source = Source(run, folder.split("train"))
    one, again, other = (source.batch([0, 1, 2], epoch)["input_features"] for epoch in (3, 3, 4))
    assert torch.equal(one, again)
    assert one.shape != other.shape or not torch.equal(one, other)
