"""Synthetic spoken commands: reproducible, as metadata.csv says, and made once."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from sounding.data import commands
from sounding.data.commands import (
    ACCENTS,
    COLUMNS,
    VOICES,
    WORDS,
    CommandSet,
    EngineError,
    commands_folder,
    make_clip,
    make_commands,
    reverberate,
    speak,
)
from sounding.data.folder import SPLITS, load_folder
from sounding.data.noise import mix

SMALL = CommandSet(words=("yes", "no", "stop", "start"), train=12, validation=4, test=8)


@pytest.fixture
def _engine():
    pytest.importorskip("espeakng_loader", reason="needs espeakng-loader (sounding[demo])")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    pytest.importorskip("espeakng_loader", reason="needs espeakng-loader (sounding[demo])")
    return make_commands(tmp_path_factory.mktemp("commands") / "small", SMALL)


def content(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def rows(root: Path) -> list[dict[str, str]]:
    with (root / "metadata.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_same_configuration_gives_the_same_bytes(made, tmp_path):
    assert content(make_commands(tmp_path / "again", SMALL)) == content(made)


def test_another_seed_gives_other_clips_and_other_held_out_voices(made, tmp_path):
    other = replace(SMALL, seed=1)
    first, second = content(made), content(make_commands(tmp_path / "other", other))
    assert first.keys() == second.keys()
    assert not [name for name in first if first[name] == second[name]]
    assert set(other.split_voices("test")) != set(SMALL.split_voices("test"))


@pytest.mark.usefixtures("_engine")
def test_a_clip_does_not_depend_on_the_clips_before_it_or_on_how_many_there_are():
    alone, row = make_clip(SMALL, "train", 7)
    longer = replace(SMALL, train=40, test=100)
    for index in (3, 20, 7):
        among, again = make_clip(longer, "train", index)
    np.testing.assert_array_equal(alone, among)
    assert row == again


@pytest.mark.usefixtures("_engine")
def test_the_engine_says_the_same_first_and_after_others_in_every_voice():
    def say(voice: str) -> np.ndarray:
        return speak("no", f"gmw/en+{voice}", rate=200, pitch=50, pitch_range=50, seed=1)

    first = {voice: say(voice) for voice in VOICES}
    for voice in reversed(VOICES):
        np.testing.assert_array_equal(say(voice), first[voice], err_msg=voice)
    assert len({speech.tobytes() for speech in first.values()}) == len(VOICES)


@pytest.mark.usefixtures("_engine")
def test_every_accent_is_a_voice_of_its_own():
    said = {
        speak("forward", f"{file}+f2", rate=150, pitch=50, pitch_range=50, seed=0).tobytes()
        for file in ACCENTS.values()
    }
    assert len(said) == len(ACCENTS)


def test_metadata_says_what_the_files_are(made):
    assert tuple(rows(made)[0]) == COLUMNS
    for row in rows(made):
        info = sf.info(made / row["file_name"])
        assert (info.samplerate, info.channels, info.format) == (16000, 1, "FLAC")
        assert float(row["duration"]) == info.frames / 16000
        assert 0.7 <= float(row["duration"]) <= 1.3
        assert -5 <= float(row["snr_db"]) <= 20
        assert float(row["reverb_s"]) == 0 or 0.1 <= float(row["reverb_s"]) <= 0.6
        assert row["accent"] in ACCENTS


def test_clips_are_neither_silent_nor_clipped_and_hold_more_than_hum(made):
    for row in rows(made):
        samples, rate = sf.read(made / row["file_name"])
        assert 0.1 < np.abs(samples).max() < 0.95
        spectrum = np.abs(np.fft.rfft(samples)) ** 2
        speech = np.fft.rfftfreq(len(samples), 1 / rate) > 300
        assert spectrum[speech].sum() > 0.005 * spectrum.sum(), row


def test_load_folder_accepts_it_with_balanced_labels(made):
    folder = load_folder(made)
    assert folder.labels == tuple(sorted(SMALL.words))
    for split in SPLITS:
        counts = Counter(clip.target for clip in folder.split(split))
        assert set(counts.values()) == {getattr(SMALL, split) / 4}


def test_no_voice_is_in_two_splits(made):
    speakers = {
        split: {r["speaker"] for r in rows(made) if r["split"] == split} for split in SPLITS
    }
    for split in SPLITS:
        assert speakers[split] <= set(SMALL.split_voices(split))
    named = [voice for split in SPLITS for voice in CommandSet().split_voices(split)]
    assert sorted(named) == sorted(VOICES)
    assert [len(CommandSet().split_voices(split)) for split in SPLITS] == [40, 9, 14]


@pytest.mark.parametrize("snr_db", [-5, 0, 7.5, 20])
def test_mix_reaches_the_ratio_of_energies(snr_db):
    speech = np.sin(np.arange(8000) * 0.1) * 0.3
    noise = np.random.default_rng(0).normal(0, 5, 8000)
    added = mix(speech, noise, snr_db) - speech
    assert 10 * np.log10((speech**2).sum() / (added**2).sum()) == pytest.approx(snr_db)
    assert np.corrcoef(added, noise)[0, 1] == pytest.approx(1)


def test_mix_refuses_silence_and_unlike_lengths():
    with pytest.raises(ValueError, match="silent"):
        mix(np.zeros(10), np.ones(10), 0)
    with pytest.raises(ValueError, match="silent"):
        mix(np.ones(10), np.zeros(10), 0)
    with pytest.raises(ValueError, match="10 samples of speech, 9 of noise"):
        mix(np.ones(10), np.ones(9), 0)


@pytest.mark.usefixtures("_engine")
def test_the_mixed_clip_has_the_ratio_that_metadata_says(monkeypatch):
    seen = []

    def record(speech, noise, snr_db):
        seen.append((speech, mix(speech, noise, snr_db) - speech))
        return speech + seen[-1][1]

    monkeypatch.setattr(commands, "mix", record)
    for index in range(4):
        _, row = make_clip(SMALL, "test", index)
        speech, noise = seen[-1]
        ratio = 10 * np.log10((speech**2).sum() / (noise**2).sum())
        assert ratio == pytest.approx(float(row["snr_db"]))


def test_a_room_fades_by_60_db_in_its_time_and_no_room_changes_nothing():
    click = np.zeros(16000)
    click[0] = 1
    np.testing.assert_array_equal(reverberate(click, 0, np.random.default_rng(0)), click)
    heard = reverberate(click, 0.4, np.random.default_rng(0))
    assert heard[0] == pytest.approx(1)
    assert np.abs(heard[6400:]).max() < 1e-9
    parts = np.square(heard[1:6401]).reshape(8, -1).mean(axis=1)
    slope = np.polyfit(np.arange(8) * 0.05, 10 * np.log10(parts), 1)[0]
    assert slope * 0.4 == pytest.approx(-60, abs=4)


@pytest.mark.parametrize("kind", commands.NOISES)
@pytest.mark.usefixtures("_engine")
def test_every_noise_is_heard_and_only_coloured_noise_falls_with_frequency(kind):
    noise = commands.make_noise(kind, 16000, VOICES, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(noise)) ** 2
    octave = 10 * np.log10(power[1000:2000].mean() / power[2000:4000].mean())
    assert noise.shape == (16000,)
    expected = {"white": 0, "pink": 3, "brown": 6}
    if kind in expected:
        assert octave == pytest.approx(expected[kind], abs=0.5)


def test_a_folder_in_the_cache_is_made_once(made, tmp_path, monkeypatch):
    root = commands_folder(tmp_path / "cache", SMALL)
    assert content(root) == content(made)
    monkeypatch.setattr(commands, "speak", lambda *_, **__: pytest.fail("synthesized again"))
    assert commands_folder(tmp_path / "cache", SMALL) == root
    with pytest.raises(pytest.fail.Exception, match="synthesized again"):
        commands_folder(tmp_path / "cache", replace(SMALL, seed=1))


@pytest.mark.usefixtures("_engine")
def test_an_interrupted_make_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(config, split, index):
        if split == "test":
            raise KeyboardInterrupt
        return make_clip(config, split, index)

    monkeypatch.setattr(commands, "make_clip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        commands_folder(tmp_path, SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="kills by a POSIX signal")
@pytest.mark.usefixtures("_engine")
def test_a_killed_make_leaves_no_folder_and_the_next_one_succeeds(made, tmp_path):
    code = "import sys; from sounding.data.commands import *; make_commands(sys.argv[1])"
    root = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", code, str(root)])
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("*.flac")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert list(tmp_path.rglob("*.flac"))
    assert not root.exists()
    assert content(make_commands(root, SMALL)) == content(made)


def test_a_folder_with_something_in_it_is_not_replaced(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="is there already"):
        make_commands(tmp_path, SMALL)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_a_missing_engine_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(EngineError, match=r"pip install 'sounding\[demo\]'"):
        commands_folder(tmp_path, SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_engine")
def test_an_engine_that_cannot_work_says_why(tmp_path, monkeypatch):
    good = commands._engine_paths()
    said = {"rate": 150, "pitch": 50, "pitch_range": 50, "seed": 0}
    with pytest.raises(EngineError, match="cannot say 'yes' with the voice 'gmw/xx"):
        speak("yes", "gmw/xx+f1", **said)
    with pytest.raises(EngineError, match="cannot say ''"):
        speak("", "gmw/en+f1", **said)
    monkeypatch.setattr(commands, "_engine_paths", lambda: (good[0], str(tmp_path / "none")))
    with pytest.raises(EngineError, match="cannot read its data"):
        speak("yes", "gmw/en+f1", **said)
    monkeypatch.setattr(commands, "_engine_paths", lambda: (str(tmp_path / "none.so"), good[1]))
    with pytest.raises(EngineError, match="cannot be loaded"):
        speak("yes", "gmw/en+f1", **said)
    monkeypatch.setattr(commands, "_engine_paths", lambda: good)
    assert len(speak("yes", "gmw/en+f1", **said)) > 1600


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": 0}, "train is 0: give at least 16"),
        ({"train": 15}, "train is 15: give at least 16"),
        ({"validation": 0}, "validation is 0: give at least 1"),
        ({"test": 0}, "test is 0: give at least 1"),
        ({"test_voices": 0}, "test_voices is 0"),
        ({"validation_voices": 49}, "63 voices of which 63 are held out"),
        ({"voices": ("f1",) * 30}, "each once"),
        ({"words": ("yes",)}, "at least two"),
        ({"words": ("yes", "yes")}, "each once"),
        ({"words": ("yes", "../no")}, "letters a to z"),
        ({"snr_db": (20, -5)}, "the lower first"),
        ({"snr_db": (float("nan"), 0)}, "the lower first"),
        ({"seconds": (0, 1)}, "from 0.1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_a_bad_configuration_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        CommandSet(**wrong)


def test_the_smallest_configuration_is_accepted():
    config = CommandSet(train=16, validation=1, test=1, validation_voices=48, test_voices=14)
    assert len(config.split_voices("train")) == 1
    assert len(WORDS) == 16


def test_an_unknown_split_or_voice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown split 'dev': use train, validation, test"):
        make_clip(SMALL, "dev", 0)
    pytest.importorskip("espeakng_loader", reason="needs espeakng-loader (sounding[demo])")
    wrong = replace(SMALL, voices=("nobody", "f1", "f2"), validation_voices=1, test_voices=1)
    with pytest.raises(ValueError, match="unknown voices nobody"):
        make_commands(tmp_path / "new", wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_engine")
def test_a_word_longer_than_its_clip_makes_the_clip_longer():
    config = replace(SMALL, words=("incomprehensibility", "no"), seconds=(0.1, 0.1))
    samples, row = make_clip(config, "train", 0)
    assert len(samples) / 16000 == float(row["duration"]) > 0.5
