"""Validation clips in the middle of a training: what is kept, and when it is enough."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from interrupt import stop_and_go_on, train_until, weights

from sounding.data.folder import load_folder
from sounding.errors import UsageError
from sounding.registry import METHODS
from sounding.runs.config import TrainConfig
from sounding.runs.run import load_run, new_run
from sounding.runs.validation import validate
from sounding.runs.validations import Validation
from sounding.training import loader, steps
from sounding.training.average import Average
from sounding.training.loop import train

LABELLED = [name for name in METHODS if METHODS[name].labelled and name != "dld"]


@pytest.fixture
def config(whisper):
    return TrainConfig(
        backbone=str(whisper), epochs=2, batch_size=8, checkpoint_seconds=0, validate_epochs=0.4
    )


@pytest.fixture
def told(monkeypatch):
    """Say what `validate` finds, in place of what there is; what it was asked for is noted."""

    def says(*errors):
        seen = []

        def found(run, features, targets, *, step, **_):
            state = {name: v.detach().clone() for name, v in run.dynamic.named_parameters()}
            seen.append((step, state))
            return Validation(step, errors[len(seen) - 1], 1.0)

        monkeypatch.setattr(steps, "validate", found)
        return seen

    return says


def measured(out):
    with (out / "validation.csv").open() as file:
        return [(int(row["step"]), float(row["error"])) for row in csv.DictReader(file)]


def test_the_best_weights_are_kept_and_not_the_last(config, tones, tmp_path, told):
    seen = told(0.5, 0.2, 0.3, 0.2, 0.4)
    run = train(config, load_folder(tones), tmp_path / "run")
    assert measured(tmp_path / "run") == [(2, 0.5), (4, 0.2), (6, 0.3), (8, 0.2), (10, 0.4)]
    assert run.info["steps"] == 4
    for name, value in load_run(tmp_path / "run").dynamic.named_parameters():
        assert torch.equal(value, seen[1][1][name])
    assert any(not torch.equal(value, seen[4][1][name]) for name, value in seen[1][1].items())
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"config.yaml", "run.json", "log.csv", "validation.csv", "model", ".lock"}


def test_patience_ends_a_training_and_a_better_measurement_begins_it_anew(
    config, tones, tmp_path, told
):
    told(0.5, 0.5, 0.4, 0.4, 0.45)  # as good is no better
    train(replace(config, patience=2), load_folder(tones), tmp_path / "late")
    assert [step for step, _ in measured(tmp_path / "late")] == [2, 4, 6, 8, 10]
    told(0.5, 0.5, 0.6, 0.0, 0.0)
    train(replace(config, patience=2), load_folder(tones), tmp_path / "early")
    assert [step for step, _ in measured(tmp_path / "early")] == [2, 4, 6]
    assert len((tmp_path / "early" / "log.csv").read_text().splitlines()) == 1 + 6


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_stopped_training_measures_and_keeps_the_same(config, tones, tmp_path, ema):
    config, folder = replace(config, ema=ema), load_folder(tones)
    train(config, folder, tmp_path / "whole")
    for stop in (1, 4, 9):
        stop_and_go_on(config, folder, tmp_path / f"at{stop}", stop)
        assert weights(tmp_path / f"at{stop}") == weights(tmp_path / "whole")
        for name in ("validation.csv", "log.csv"):
            both = [(tmp_path / one / name).read_bytes() for one in (f"at{stop}", "whole")]
            assert both[0] == both[1]


def test_a_training_that_had_enough_when_it_was_killed_takes_no_further_step(
    config, tones, tmp_path, told, monkeypatch
):
    told(0.1, 0.5, 0.6)
    config, folder = replace(config, patience=2), load_folder(tones)
    with monkeypatch.context() as patch:
        patch.setattr(steps.TrainState, "settle", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config, folder, tmp_path / "run")
    monkeypatch.setattr(steps, "one_step", None)
    assert train(config, folder, tmp_path / "run").info["steps"] == 2


def test_measuring_changes_no_weight(config, tones, tmp_path, told):
    folder = load_folder(tones)
    train(replace(config, validate_epochs=0), folder, tmp_path / "never")
    told(0.5, 0.4, 0.3, 0.2, 0.1)
    train(config, folder, tmp_path / "often")
    assert weights(tmp_path / "often") == weights(tmp_path / "never")


@pytest.mark.parametrize("method", LABELLED)
def test_every_method_is_measured_by_its_own_masks_and_each_clip_counts(
    config, tones, method, monkeypatch
):
    folder = load_folder(tones)
    run = new_run(replace(config, method=method), list(folder.labels), {})
    clips = folder.split("validation")
    features, targets = run.read(clips, ""), run.task.targets(folder, clips)
    depths = []
    forward = run.dynamic.forward

    def counted(*args, **kwargs):
        out = forward(*args, **kwargs)
        depths.append(int(out.executed_layers.sum(1).max()))
        return out

    monkeypatch.setattr(run.dynamic, "forward", counted)
    found = validate(run, features, targets, step=7)
    assert found.step == 7
    assert depths == ([4] if method == "full" else [1, 2, 3, 4])
    assert 0 <= found.error <= 1
    again = validate(run, features[::-1], targets[::-1], step=7)
    if not run.method.draws_masks:  # whose masks go by the place of a clip
        assert found == pytest.approx(again)
    wrong = [target._replace(ids=(1 - target.ids[0],), text=folder.labels[1 - target.ids[0]])
             for target in targets]  # fmt: skip
    assert validate(run, features, wrong, step=7).error == pytest.approx(1 - found.error)


def test_the_average_is_that_of_the_weights_and_is_what_is_kept(config, tones, tmp_path):
    folder = load_folder(tones)
    plain = replace(config, validate_epochs=0, epochs=1)
    taken = []
    step = steps.one_step

    def noting(run, state, *rest):
        loss = step(run, state, *rest)
        taken.append({name: value.detach().clone() for name, value in state._trained()})
        return loss

    steps.one_step = noting
    try:
        run = train(replace(plain, ema=0.5), folder, tmp_path / "run")
    finally:
        steps.one_step = step
    untrained = dict(new_run(plain, list(folder.labels), {}).dynamic.named_parameters())
    kept = dict(run.dynamic.named_parameters())
    for name in taken[0]:
        own = name.removeprefix("dynamic.")
        mean = untrained[own].detach().clone()
        for count, values in enumerate(taken, start=1):
            decay = min(0.5, (1 + count) / (10 + count))
            mean = decay * mean + (1 - decay) * values[name]
        torch.testing.assert_close(kept[own].detach(), mean, rtol=1e-4, atol=1e-6)
        assert not torch.equal(kept[own], taken[-1][name])


def test_an_average_of_no_decay_is_none():
    weight = torch.nn.Parameter(torch.ones(3))
    none = Average({"w": weight}, 0.0)
    none.update(1)
    with none.in_place():
        assert torch.equal(weight, torch.ones(3))
    assert none.values == {}


def test_when_clips_are_measured(config):
    order = loader.Order([1.0] * 40, replace(config, epochs=2.5))  # 5 steps an epoch, then 3
    assert order.validated(0) == set()
    assert order.validated(1) == {5, 10, 13}
    assert order.validated(0.5) == {2, 5, 8, 10, 13}
    assert order.validated(7) == {13}


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"patience": 2}, "set validate_epochs too"),
        ({"ema": 1.0}, "ema is from 0 to below 1"),
        ({"validate_epochs": -1}, "validate_epochs must be 0 or more"),
    ],
)
def test_settings_that_make_no_sense(values, match):
    with pytest.raises(UsageError, match=match):
        TrainConfig(**values)


def test_a_training_without_validation_clips_cannot_measure_them(config, tones, tmp_path):
    folder = load_folder(tones)
    clips = tuple(clip for clip in folder.clips if clip.split != "validation")
    with pytest.raises(UsageError, match="validation clips with labels or texts, and there are"):
        train(config, replace(folder, clips=clips), tmp_path / "run")


def test_a_damaged_best_file_is_told(config, tones, tmp_path, monkeypatch):
    folder = load_folder(tones)
    train_until(9, config, folder, tmp_path / "run")
    (tmp_path / "run" / "best.safetensors").write_bytes(b"no")
    monkeypatch.setattr(steps, "validate", lambda *args, step, **_: Validation(step, 1.0, np.inf))
    with pytest.raises(UsageError, match=r"best\.safetensors is damaged"):
        train(config, folder, tmp_path / "run")
