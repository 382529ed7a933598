"""Profiles of a device, budgets in time and in MACs, and a governed model."""

from __future__ import annotations

import csv
import json
import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import soundfile as sf
from tiny_runs import LAYERS, RATE, clip

from sounding import runtime
from sounding.cli.app import main
from sounding.errors import UsageError
from sounding.runtime import BudgetWarning, Governed, ModelError, Profile, profile_path
from sounding.runtime.governor import plot_log, watch, write_log
from sounding.runtime.profile import Table, device, measure
from sounding.runtime.signals import Signals, read_signals


def made_up(layer=10.0, front=5.0):
    """Times of a device on which all is linear, in milliseconds for a second."""
    lengths = [0.25, 0.5, 1.0]
    rows = [[s * (front + layer * k) for k in range(1, LAYERS + 1)] for s in lengths]
    high = [[1.1 * value for value in row] for row in rows]
    return Table(lengths, rows, high, [s * 1.0 for s in lengths])


@pytest.fixture
def model(exports, tmp_path):
    """An exported model with a made-up profile of this device."""
    model = runtime.load(exports("whisper").one, threads=1)
    model.profile = Profile(device(), model.digest(), LAYERS, {1: made_up()})
    return model


# --- budgets --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "k"), [("16ms", 1), ("17ms", 2), ("30ms", 4), ("1e3ms", 4), ("rtf:0.03", 2)]
)
def test_the_most_layers_that_fit_run(model, budget, k):
    """The 95th percentile is 1.1 * 0.6 * (5 + 10 k) ms: 9.9, 16.5, 23.1, 29.7."""
    answer = model.run(clip(0.6), budget)
    assert len(answer.executed_layers) == answer.kept_layers == k


def test_longer_clips_get_fewer_layers_in_one_call(model):
    clips = [clip(0.2), clip(0.5), clip(0.9)]
    kept = [len(a.executed_layers) for a in model.run_many(clips, "20ms")]
    assert kept == [4, 3, 1]
    alone = [model.run(one, "20ms") for one in clips]
    assert [len(a.executed_layers) for a in alone] == kept


def test_a_budget_of_multiply_accumulates_needs_no_profile(model):
    model.profile = None
    rows = np.array(model.meta.macs)
    assert (np.diff(rows[:, 1:], axis=0) > 0).all()
    seconds, base, layer = rows[0]
    for k in (1, 2, 4):
        budget = f"{(base + (k + 0.5) * layer) / 1e9}gmac"
        assert len(model.run(clip(seconds), budget).executed_layers) == min(k, 4)


def test_a_budget_that_nothing_fits_gives_one_layer_and_says_so(model):
    with pytest.warns(BudgetWarning, match="one layer takes .* above the budget of 1 ms"):
        answer = model.run(clip(0.5), "1ms")
    assert len(answer.executed_layers) == 1


@pytest.mark.parametrize("budget", ["0ms", "-3ms", "xms", "rtf:", "rtf:nan", "gmac", "infms"])
def test_budgets_that_are_none(model, budget):
    with pytest.raises(ValueError, match="is not allowed"):
        model.run(clip(0.3), budget)


# --- profiles -------------------------------------------------------------------------------


def test_times_are_measured_at_every_length_and_number_of_layers(monkeypatch):
    calls, now = [], [0.0]
    monkeypatch.setattr("sounding.runtime.profile.perf_counter", lambda: now[0])

    def features(samples):
        now[0] += 0.001
        return samples

    def predict(features, k):
        calls.append((len(features), k))
        now[0] += 0.002 * k * len(features) / 1000

    class Meta:
        rate, layers, limit_seconds, max_seconds = 1000, 3, 1.0, None

    done = []
    table = measure(
        predict, features, Meta, (2.0, 0.2, 0.5), 4, lambda *how_far: done.append(how_far)
    )
    assert table.seconds == [0.2, 0.5, 1.0]
    assert len(calls) == (4 + 3) * 9
    assert done[-1] == (7, 7)
    expected = [[1 + 2 * k * seconds for k in (1, 2, 3)] for seconds in table.seconds]
    assert np.allclose(table.median, expected)
    assert np.allclose(table.high, expected)
    assert np.allclose(table.features, 1)
    with pytest.raises(ValueError, match="lengths of at least 0"):
        measure(predict, features, Meta, (0.0,), 1)


def test_a_profile_is_between_and_beyond_its_lengths(tmp_path, model):
    profile = model.profile
    for seconds in (0.1, 0.25, 0.3, 0.77, 1.0, 3.0):
        for k in range(1, LAYERS + 1):
            expected = seconds * (5 + 10 * k)
            assert profile.expected(seconds, k, 1) == pytest.approx(expected, rel=0.01)
    profile.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == profile


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "other"}, "of another model"),
        ({"device": {**device(), "processor": "Elbrus"}}, "another device .processor Elbrus"),
        ({"tables": {7: made_up()}}, "for 7 threads, not for 1"),
    ],
)
def test_a_profile_of_something_else_is_refused(model, change, message):
    model.profile = replace(model.profile, **change)
    with pytest.raises(ModelError, match=message):
        model.run(clip(0.3), "50ms")
    with pytest.raises(ModelError, match=message):
        Governed(model, 50)


def table_of(values):
    return values["tables"]["1"]


DAMAGE = {  # what is done to a profile as it is written
    "other format": lambda v: v.update(format=9),
    "no format": lambda v: v.pop("format"),
    "no device": lambda v: v.pop("device"),
    "a device that is none": lambda v: v.update(device=[]),
    "no tables": lambda v: v.update(tables={}),
    "tables of no threads": lambda v: v.update(tables={"x": table_of(v)}),
    "a list": lambda v: v.update(tables=[table_of(v)]),
    "too few rows": lambda v: table_of(v)["high"].pop(),
    "too few layers": lambda v: [row.pop() for row in table_of(v)["high"]],
    "a row less on one side": lambda v: table_of(v)["median"].append(table_of(v)["high"].pop()),
    "too few features": lambda v: table_of(v)["features"].pop(),
    "no lengths": lambda v: v.update(tables={"1": {key: [] for key in table_of(v)}}),
    "lengths that fall": lambda v: table_of(v)["seconds"].reverse(),
    "equal lengths": lambda v: table_of(v).update(seconds=[0.5, 0.5, 1.0]),
    "a length of 0": lambda v: table_of(v)["seconds"].__setitem__(0, 0.0),
    "a length that is a text": lambda v: table_of(v)["seconds"].__setitem__(0, "0.25"),
    "NaN": lambda v: table_of(v)["high"][0].__setitem__(0, float("nan")),
    "infinite": lambda v: table_of(v)["high"][0].__setitem__(3, float("inf")),
    "a time of 0": lambda v: table_of(v)["median"][0].__setitem__(0, 0),
    "a negative time": lambda v: table_of(v)["median"][0].__setitem__(0, -1.0),
    "a huge time": lambda v: table_of(v)["high"][0].__setitem__(3, 1e300),
    "a huge number": lambda v: v.update(layers=10**400),
    "no layers": lambda v: v.update(layers=0),
    "a median above the high": lambda v: table_of(v)["median"][0].__setitem__(0, 1e6),
    "more": lambda v: v.update(more=1),
    "more in a table": lambda v: table_of(v).update(more=1),
}


@pytest.mark.parametrize("damage", ["{", "[]", "null", "", 99999 * "[", "\0", *DAMAGE])
def test_a_damaged_profile_gets_one_clear_line(model, tmp_path, damage):
    path = tmp_path / "p.json"
    model.profile.save(path)
    values = json.loads(path.read_text())
    del values["seal"]  # which would tell all of it
    path.write_text(json.dumps(values))
    assert Profile.load(path) == model.profile  # one of before there were seals
    if damage in DAMAGE:
        DAMAGE[damage](values)
        damage = json.dumps(values)
    path.write_text(damage)
    with pytest.raises(
        ModelError, match=r"p\.json is no profile of `sounding calibrate`.*: calibrate again$"
    ) as error:
        Profile.load(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_any_changed_bit_of_a_profile_is_refused(model, tmp_path):
    path = tmp_path / "p.json"
    model.profile.save(path)
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(ModelError, match="calibrate again"):
            Profile.load(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in directories")
def test_a_pipe_as_a_profile_is_an_error_and_no_wait(exports, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(exports("whisper").one.read_bytes())
    os.mkfifo(profile_path(path))
    with pytest.raises(ModelError, match=r"is no profile .* .it is a pipe or a device"):
        runtime.load(path)


def test_a_profile_of_other_layers_is_refused(model):
    table = Table([1.0], [[1.0, 2.0]], [[1.0, 2.0]], [0.5])
    model.profile = Profile(device(), model.digest(), 2, {1: table})
    with pytest.raises(ModelError, match="times for 2 layers, and the model has 4"):
        model.run(clip(0.3), "50ms")


def test_without_a_profile_the_command_is_named(exports):
    model = runtime.load(exports("whisper").one)
    with pytest.raises(ModelError, match="needs a profile of this device: sounding calibrate"):
        model.run(clip(0.3), "50ms")


# --- the governed model ---------------------------------------------------------------------


def test_a_governed_model_takes_fewer_layers_while_it_is_slow(model, tmp_path):
    """The made-up profile expects much less than this clip really takes, then much more."""
    model.profile = Profile(device(), model.digest(), LAYERS, {1: made_up(1e-4, 1e-4)})
    governed = Governed(model, 1e-3, floor=2, signals=Signals)
    with pytest.warns(BudgetWarning, match="cannot be kept now"):
        kept = [len(governed.run(clip(0.3)).executed_layers) for _ in range(6)]
    assert kept[0] == 4
    assert kept[-1] == 2
    model.profile = Profile(device(), model.digest(), LAYERS, {1: made_up()})
    easy = Governed(model, 1e6, signals=Signals)
    assert len(easy.run(clip(0.3)).executed_layers) == 4
    write_log(list(governed.steps), tmp_path / "log.csv")
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["k"]) for row in rows] == kept
    pytest.importorskip("matplotlib")
    plot_log(list(governed.steps), tmp_path / "log.png")
    assert (tmp_path / "log.png").stat().st_size > 1000
    with pytest.raises(UsageError, match=r"jpgg would be a picture of unknown kind: .*png"):
        plot_log(list(governed.steps), tmp_path / "log.jpgg")


def test_a_low_battery_and_heat_halve_the_layers(model):
    for signals, k in (
        (Signals(battery=0.1, plugged=False), 2),
        (Signals(battery=0.1, plugged=True), 4),
        (Signals(hot=True), 2),
        (Signals(), 4),
    ):
        governed = Governed(model, 1e6, signals=lambda signals=signals: signals)
        assert len(governed.run(clip(0.3)).executed_layers) == k


def test_signals_of_this_machine_are_plausible():
    read_signals()
    signals = read_signals()
    assert signals.busy is None or 0 <= signals.busy <= 1
    assert signals.battery is None or 0 <= signals.battery <= 1


def test_watching_gives_each_new_file_once_it_is_whole(tmp_path):
    (tmp_path / "old.wav").write_bytes(b"1")
    found = []

    def follow():
        for path in watch(tmp_path, [".wav"], pause=0.5):
            found.append(path.name)
            if len(found) == 2:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    time.sleep(0.05)
    (tmp_path / "notes.txt").write_bytes(b"1")
    with (tmp_path / "a.wav").open("wb", buffering=0) as file:
        for _ in range(20):
            file.write(b"12")
            assert found == []
            time.sleep(0.002)
    (tmp_path / "b.wav").write_bytes(b"12")
    thread.join(10)
    assert sorted(found) == ["a.wav", "b.wav"]
    with pytest.raises(ValueError, match="no such directory"):
        next(watch(tmp_path / "none", [".wav"]))


# --- the command line -----------------------------------------------------------------------


def test_calibrating_and_governing_on_the_command_line(exports, tmp_path, capsys):
    path = tmp_path / "model.onnx"
    path.write_bytes(exports("whisper").one.read_bytes())
    wav = tmp_path / "a.wav"
    sf.write(wav, clip(0.4), RATE)
    run = ["run", str(path), str(wav)]
    assert main([*run, "--budget", "40ms", "--threads", "1"]) == 2
    assert "sounding calibrate" in capsys.readouterr().err
    assert main(["calibrate", str(path), "--threads", "1", "--seconds", "0.2,0.5",
                 "--rounds", "3"]) == 0  # fmt: skip
    assert profile_path(path).exists()
    assert "milliseconds (median)" in capsys.readouterr().out
    assert main([*run, "--budget", "1e6ms", "--threads", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept_layers"] == LAYERS
    log = tmp_path / "log.csv"
    governed = [*run, str(wav), "--threads", "1", "--governor", "1e6ms", "--log", str(log)]
    assert main(governed) == 0
    assert len(log.read_text().splitlines()) == 3
    capsys.readouterr()
    for wrong, message in (
        ([*run, "--governor", "fast"], "takes a latency"),
        ([*run, "--governor", "50ms", "--budget", "3"], "takes a latency"),
        (["run", str(path)], "give audio files, or --watch DIR"),
        (["run", str(tmp_path), str(wav), "--governor", "5ms"], "are for exported models"),
        (["calibrate", str(path), "--threads", "0"], "--threads takes numbers above 0"),
        (["calibrate", str(path), "--seconds", "1e-9"], "lengths of at least 0.06 s"),
        ([*run, "--threads", "99999999999"], "give 1 to 1024"),
    ):
        assert main(wrong) == 2
        assert message in capsys.readouterr().err
