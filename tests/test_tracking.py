"""What a training shows meanwhile, by the libraries that people look with."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from interrupt import stop_and_go_on

from sounding.data.folder import load_folder
from sounding.errors import UsageError
from sounding.runs.config import TrainConfig
from sounding.training.loop import train


@pytest.fixture
def config(whisper):
    return TrainConfig(
        backbone=str(whisper), method="full", epochs=1, batch_size=8, checkpoint_seconds=0,
        validate_epochs=1,
    )  # fmt: skip


def losses(out):
    return np.loadtxt(out / "log.csv", delimiter=",", skiprows=1)[:, 1]


def test_tensorboard_has_each_step_once_also_after_an_interruption(config, tones, tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra 'log'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    stop_and_go_on(replace(config, log_to="tensorboard"), load_folder(tones), out, 3)
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    shown = events.Scalars("train/loss")
    assert [one.step for one in shown] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose([one.value for one in shown], losses(out), rtol=1e-6)
    assert events.Scalars("train/lr")[-1].value > 0
    assert [one.step for one in events.Scalars("validation/error")] == [4]


def test_weights_and_biases_get_the_settings_and_each_step(config, tones, tmp_path, monkeypatch):
    told, begun = [], []

    @contextmanager
    def init(**about):
        begun.append(about)
        yield SimpleNamespace(log=lambda values, step: told.append((step, values)))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    out = tmp_path / "run"
    train(replace(config, log_to="wandb"), load_folder(tones), out)
    assert begun[0]["name"] == "run"
    assert begun[0]["config"]["method"] == "full"
    shown = [values["train/loss"] for _, values in told if "train/loss" in values]
    assert shown == losses(out).tolist()
    assert set(told[-1][1]) == {"validation/error", "validation/loss"}


def test_a_library_that_is_not_there_is_named(config, tones, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match="pip install wandb"):
        train(replace(config, log_to="wandb"), load_folder(tones), tmp_path / "run")
    with pytest.raises(UsageError, match="log_to is one of , tensorboard, wandb; got 'paper'"):
        TrainConfig(log_to="paper")
