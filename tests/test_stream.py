"""Streams: windows of audio as it comes, fed in real time, and a label that does not flicker."""

from __future__ import annotations

import sys
import time
import types

import numpy as np
import pytest
import soundfile as sf
from tiny_runs import RATE, clip

from sounding import runtime
from sounding.cli.app import main
from sounding.runtime import Answer, Stream
from sounding.runtime.stream import LostAudioWarning, microphone


def by_sign(samples):
    """An answer that tells whether the window is above zero."""
    label = "up" if samples.mean() > 0 else "down"
    return Answer("", label, 1.0, 1, [0], 4, 0.0, np.zeros(2))


@pytest.mark.parametrize("size", [1, 37, 100, 1000, 5000])
def test_windows_do_not_depend_on_how_the_samples_are_cut(size):
    rng = np.random.default_rng(0)
    samples = rng.normal(size=1000)
    stream = Stream(by_sign, 100, window=1, hop=0.3)
    heard = [h for at in range(0, 1000, size) for h in stream.feed(samples[at : at + size])]
    assert [h.start for h in heard] == pytest.approx(np.arange(len(heard)) * 0.3)
    assert len(heard) == 1 + (1000 - 100) // 30
    for one in heard:
        start = round(one.start * 100)
        assert one.answer.label == by_sign(samples[start : start + 100]).label
        assert one.end == pytest.approx(one.start + 1)


def test_a_single_window_does_not_change_the_label():
    signs = [1.0, 1, -1, 1, 1, -1, -1, -1, 1, -1, 1, 1]
    stream = Stream(by_sign, 10, window=1, hop=1)
    heard = list(stream.feed(np.repeat(signs, 10)))
    assert [h.label for h in heard] == ["up"] * 6 + ["down"] * 5 + ["up"]
    assert [i for i, h in enumerate(heard) if h.changed] == [0, 6, 11]


@pytest.mark.parametrize("wrong", [{"window": 0}, {"hop": 0}, {"hop": 2}, {"patience": 0}])
def test_windows_that_are_none(wrong):
    with pytest.raises(ValueError, match="the hop is above 0"):
        Stream(by_sign, 10, **wrong)


def test_a_file_in_real_time_is_answered_in_time_and_as_its_windows_alone(exports):
    model = runtime.load(exports("whisper").one, threads=1)
    samples = clip(1.5)
    stream = Stream(lambda s: model.run(s, 2), RATE, window=0.5, hop=0.25)
    began, late, heard = time.monotonic(), [], []
    block = RATE // 20
    for at in range(0, len(samples), block):
        time.sleep(max(0.0, began + at / RATE - time.monotonic()))
        for one in stream.feed(samples[at : at + block]):
            late.append(time.monotonic() - began - one.end)
            heard.append(one)
    assert len(heard) == 5
    assert all(len(one.answer.executed_layers) == 2 for one in heard)
    assert np.median(late) < 1  # it keeps up, on any machine
    for one in heard:
        start = round(one.start * RATE)
        alone = model.run(samples[start : start + RATE // 2], 2)
        assert (alone.label, alone.executed_layers) == (
            one.answer.label, one.answer.executed_layers,
        )  # fmt: skip


def test_the_microphone_gives_samples_of_one_channel(exports, monkeypatch):
    model = runtime.load(exports("whisper").one, threads=1)

    class InputStream:
        def __init__(self, samplerate, channels, dtype):
            assert (samplerate, channels, dtype) == (RATE, 1, "float32")

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def read(self, size):
            return np.ones((size, 1), np.float32), False

    class Broken(Exception):
        pass

    fake = types.SimpleNamespace(InputStream=InputStream, PortAudioError=Broken)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    assert next(microphone(model)).shape == (RATE // 10,)

    monkeypatch.setattr(InputStream, "read", lambda self, size: (np.ones((size, 1), "f4"), True))
    with pytest.warns(LostAudioWarning, match="audio of the microphone is lost"):
        next(microphone(model))

    def unplugged(self, size):
        raise Broken("unplugged")

    monkeypatch.setattr(InputStream, "read", unplugged)
    with pytest.raises(OSError, match="the microphone is gone"):
        next(microphone(model))

    def none(**settings):
        raise Broken("no device")

    fake.InputStream = none
    with pytest.raises(OSError, match="no microphone can be used"):
        next(microphone(model))
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(ModuleNotFoundError, match=r"sounding\[microphone\]"):
        next(microphone(model))


def test_streaming_on_the_command_line(exports, tmp_path, capsys):
    wav = tmp_path / "a.wav"
    sf.write(wav, clip(1.2), RATE)
    command = ["run", str(exports("whisper").one), str(wav), "--stream", "0.5", "--budget", "2"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "a.wav 0.5-1.0 s" in lines[2]
    assert main(["run", str(tmp_path), str(wav), "--stream", "1"]) == 2
    assert "for exported models" in capsys.readouterr().err
