"""Everything that is computed in a training is on its device."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from accelerator import NAME, accelerator
from interrupt import train_until

import sounding
from sounding.cli.app import main
from sounding.data.folder import load_folder
from sounding.errors import UsageError
from sounding.evaluation.sweep import sweep
from sounding.registry import METHODS
from sounding.runs.config import TrainConfig
from sounding.runs.device import find_device
from sounding.runs.precision import precision_on
from sounding.runs.run import load_run
from sounding.training import loop
from sounding.training.checkpoint import TrainState
from sounding.training.loop import train
from sounding.transcribe.whisper import WhisperRecognizer


@pytest.fixture
def config(whisper):
    return TrainConfig(
        backbone=str(whisper), epochs=1, batch_size=8, precision="fp32", device="cpu"
    )


@contextmanager
def arriving(monkeypatch):
    """An accelerator that is there once the new weights are made, which are those without one."""
    with ExitStack() as stack:

        def found(name):
            stack.enter_context(accelerator())
            return find_device(name)

        monkeypatch.setattr(loop, "find_device", found)
        yield


def losses(run):
    """The losses of a finished run, by step."""
    return np.loadtxt(run / "log.csv", delimiter=",", skiprows=1)[:, 1]


def test_the_fake_accelerator_keeps_its_tensors_apart():
    with accelerator() as crossed:
        ours = torch.ones(3).to(NAME)
        assert torch.arange(3, device=ours.device).device.type == NAME
        assert torch.tensor([1, 2], device=ours.device).device.type == NAME
        with pytest.raises(RuntimeError, match="same device"):
            ours + torch.ones(3)
        with pytest.raises(TypeError, match="numpy"):
            ours.numpy()
        assert not crossed
        assert (2 * ours).cpu().tolist() == [2, 2, 2]
        assert float(ours.sum()) == 3
        assert sum(crossed.values()) == 2


DECODERS = ["full", "random", "static", "input", "early-exit", "i3d", "distill"]
CASES = [
    *[("class", "tones", method) for method in METHODS],
    *[("tags", "chords", method) for method in METHODS],
    *[("ctc", "texts", method) for method in METHODS],
    *[("decoder", "texts", method) for method in DECODERS],
]


@pytest.mark.parametrize(("task", "data", "method"), CASES)
def test_each_task_and_method_compute_on_an_accelerator_as_on_the_processor(
    config, request, speaker, tmp_path, monkeypatch, task, data, method
):
    config = replace(config, method="full", task=task, max_seconds=0.9)
    if task == "decoder":
        config = replace(config, backbone=str(speaker))
    folder = load_folder(request.getfixturevalue(data))
    if method == "dld":
        train(config, folder, tmp_path / "teacher")
    teacher = str(tmp_path / "teacher") if method == "dld" else ""
    config = replace(config, method=method, teacher=teacher)
    train(config, folder, tmp_path / "here")
    with arriving(monkeypatch):
        run = train(replace(config, device="auto"), folder, tmp_path / "there")
    assert run.dynamic.device.type == "cpu"
    assert load_run(tmp_path / "there").info["device"] == NAME
    here, there = (losses(tmp_path / one) for one in ("here", "there"))
    np.testing.assert_allclose(there, here, rtol=5e-3)
    plain = sweep([load_run(tmp_path / "here")], folder, rounds=0)
    with accelerator():
        moved = sweep([load_run(tmp_path / "here", "auto")], folder, rounds=1)
    assert [row.value for row in moved.rows] == pytest.approx([row.value for row in plain.rows])
    assert moved.masks == plain.masks


def test_a_device_that_is_not_there_is_named(config, tones, tmp_path):
    for name, wrong in (("cuda:7", "there is no device 'cuda:7'"), ("gpu", "got 'gpu'")):
        with pytest.raises(UsageError, match=wrong):
            train(replace(config, device=name), load_folder(tones), tmp_path / "run")
    with accelerator():
        assert find_device("auto") == find_device(NAME) == torch.device(NAME, 0)
        assert find_device("cpu") == torch.device("cpu")
        with pytest.raises(UsageError, match="have cpu and 1 of lazy"):
            find_device(f"{NAME}:1")


def test_each_process_takes_its_own_device(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "5")
    with accelerator(count=4):
        assert find_device("auto") == torch.device(NAME, 1)
        assert find_device(f"{NAME}:3") == torch.device(NAME, 3)


def test_a_training_goes_on_on_another_device(config, tones, tmp_path, monkeypatch):
    folder = load_folder(tones)
    train(config, folder, tmp_path / "whole")
    config = replace(config, checkpoint_seconds=0)
    with arriving(monkeypatch):
        train_until(3, replace(config, device=NAME), folder, tmp_path / "moved")
    monkeypatch.undo()
    train(config, folder, tmp_path / "moved")
    whole, moved = (losses(tmp_path / one) for one in ("whole", "moved"))
    np.testing.assert_allclose(moved, whole, rtol=1e-3)


FAKE_PRECISION = [
    # device, what it computes with -> what "auto" means
    ("cpu", {"avx512_bf16": True}, "bf16"),
    ("cpu", {}, "fp32"),
    ("cuda", True, "bf16"),
    ("cuda", False, "fp16"),
]


@pytest.mark.parametrize(("device", "has", "wanted"), FAKE_PRECISION)
def test_auto_is_what_the_device_computes_with(monkeypatch, device, has, wanted):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    assert precision_on(torch.device(device), "auto") == wanted
    assert precision_on(torch.device(device), "fp32") == "fp32"


def test_scaled_gradients_take_the_same_steps_and_the_scale_is_kept(
    config, tones, tmp_path, monkeypatch
):
    """By fp32 with a scaler, since the processor has no fp16 that trains."""
    folder = load_folder(tones)
    train(config, folder, tmp_path / "plain")
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler("cpu"))
    train(config, folder, tmp_path / "scaled")
    plain, scaled = (losses(tmp_path / one) for one in ("plain", "scaled"))
    np.testing.assert_allclose(scaled, plain, rtol=1e-4)
    run = load_run(tmp_path / "plain")
    state = TrainState(run, 1)
    state.losses, state.step = [0.0], 1
    state.scaler.scale(torch.ones(()))
    state.scaler.update(64.0)
    state.save(tmp_path / "checkpoint.safetensors")
    other = TrainState(run, 1)
    other.load(tmp_path / "checkpoint.safetensors")
    assert other.scaler.get_scale() == 64.0


@pytest.mark.parametrize("policy", ["first", "input"])
@pytest.mark.parametrize("budget", [2, 4, [1, 2, 4]])
def test_a_choice_is_read_once_a_call_and_not_in_each_layer(policy, budget):
    model = tiny.make("whisper-classification")
    dynamic = sounding.wrap(model, policy).eval()
    dynamic.trained = True
    batch = {name: value[:3] for name, value in tiny.inputs(model).items()}
    with torch.no_grad():
        wanted = dynamic(**batch, budget=budget)
        with accelerator() as crossed:
            dynamic.to(NAME)
            moved = {name: value.to(NAME) for name, value in batch.items()}
            crossed.clear()
            out = dynamic(**moved, budget=budget)
            assert sum(crossed.values()) <= 1
            assert torch.equal(out.executed_layers, wanted.executed_layers)
            torch.testing.assert_close(out.logits.cpu(), wanted.logits, rtol=1e-4, atol=1e-5)
        dynamic.to("cpu")


@pytest.mark.parametrize("command", ["sweep", "run", "transcribe", "compare"])
def test_commands_compute_on_the_device_that_is_asked_for(
    command, config, speaker, texts, tmp_path, capsys
):
    config = replace(config, backbone=str(speaker), task="decoder", max_seconds=0.9, epochs=0.4)
    folder = load_folder(texts)
    run = tmp_path / "run"
    train(config, folder, run)
    clip = str(folder.split("test")[0].path)
    given = {
        "sweep": ["sweep", str(run), "--data", str(texts), "--rounds", "1"],
        "run": ["run", str(run), clip, "--max-seconds", "0.9"],
        "transcribe": ["transcribe", clip, "--run", str(run), "--out", str(tmp_path / "texts")],
        "compare": ["compare", "--data", str(texts), "--out", str(tmp_path / "study")],
    }[command]
    assert main([*given, "--device", "cuda:9"]) == 2
    assert "there is no device 'cuda:9'" in capsys.readouterr().err
    if command != "compare":
        with accelerator() as crossed:
            assert main([*given, "--device", "auto"]) == 0
        assert crossed


@pytest.mark.parametrize("budget", [None, 2])
def test_a_whisper_as_it_is_hears_the_same_on_an_accelerator(speaker, budget):
    piece = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)
    (here,) = WhisperRecognizer.load(str(speaker))([piece], budget)
    with accelerator():
        (there,) = WhisperRecognizer.load(str(speaker), device="auto")([piece], budget)
    assert here.executed_layers
    assert there == here
