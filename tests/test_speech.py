"""Synthetic speech for a training: its texts and clips, and that no stop or kill loses any."""

from __future__ import annotations

import csv
import importlib
import re
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from sounding.data.folder import load_folder
from sounding.errors import SoundingError, UsageError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = ("speech", "speech_engines", "speech_texts")
CHAPTER = """
CHAPTER 1. The Start.

Mr. Brown walked slowly to the river, and nobody who lived there asked
him why he did so, although it had been
raining for three days. “Why, then?” she asked him—and he said: nothing at all.

He _never_ went there again. No. IT WAS LATE in the year 1850, or so they say.
"""


@pytest.fixture
def scripts(monkeypatch):
    """Import the three scripts."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield [importlib.import_module(name) for name in SCRIPTS]
    for name in SCRIPTS:
        sys.modules.pop(name, None)


@pytest.fixture
def sources(tmp_path, scripts):
    """A folder in which nothing is missing, so that nothing is downloaded: two texts of ours."""
    texts = scripts[2]
    root = tmp_path / "sources"
    names = [texts.DEBIAN, *(package.replace("/", "-").strip("@") for package in texts.NPM)]
    for name in names:
        (root / name).mkdir(parents=True)
    (whale,) = root.glob("*moby*")
    (whale / "package/data").mkdir(parents=True)
    (whale / "package/data/chapter_1.txt").write_text(CHAPTER, encoding="utf-8")
    (speeches,) = root.glob("*sotu*")
    (speeches / "package/data").mkdir(parents=True)
    for name in ("1910_taft_r", "1962_john_f_kennedy_d", "1999_clinton_d"):
        said = f"The speech of {name[5:].replace('_', ' ')} is of the year {name[:4]}."
        (speeches / "package/data" / f"{name}.txt").write_text(said)
    return root


def command(out, sources, *more):
    """The command, by espeak-ng alone."""
    pytest.importorskip("espeakng_loader", reason="needs the extra 'demo'")
    options = ("--out", out, "--sources", sources, "--engines", "espeak", *more)
    return [sys.executable, str(BENCHMARKS / "speech.py"), *map(str, options)]


def content(root):
    """The table and the bytes of all clips."""
    files = {path.name: path.read_bytes() for path in (root / "audio").iterdir()}
    return (root / "metadata.csv").read_text(), files


def test_prose_is_cut_into_sentences_and_clauses_that_are_short_enough(scripts):
    assert list(scripts[2].pieces(CHAPTER, scripts[2].WORDS)) == [
        "Mr. Brown walked slowly to the river",
        "and nobody who lived there asked him why he did so",
        "although it had been raining for three days.",
        "Why, then? she asked him, and he said: nothing at all.",
        "He never went there again.",
    ]


def test_only_late_speeches_are_said_and_none_of_kennedy(scripts, sources):
    assert scripts[2].read_pools(sources)["sotu"] == [
        "The speech of clinton d is of the year 1999."
    ]


def test_strings_of_an_r_database_are_read_back(scripts):
    def string(text):
        return b"\x00\x04\x00\x09" + len(text).to_bytes(4, "big") + text

    def stored(*lines):
        packed = zlib.compress(b"X\nhead" + b"".join(map(string, lines)))
        return len(packed).to_bytes(4, "big") + packed

    data = stored(b"EMMA", b"", b"a line of 10\n") + stored(b"another")
    assert list(scripts[2].r_texts(data)) == ["EMMA\n\na line of 10\n", "another"]


def test_everyday_sentences_are_whole_and_follow_from_the_seed(scripts):
    made = [scripts[2].everyday(np.random.default_rng(seed)) for seed in range(600)]
    assert made == [scripts[2].everyday(np.random.default_rng(seed)) for seed in range(600)]
    assert not [text for text in made if re.search(r"[{}|\n]|\ba [aeio]|[.?!]{2}", text)]
    short = sum(len(text.split()) <= 5 for text in made) / len(made)
    assert 0.3 < short < 0.6
    assert len(set(made)) > 300


def test_every_name_in_a_template_can_be_filled(scripts):
    texts = scripts[2]
    names = set(re.findall(r"\{(\w+)\}", " ".join(texts.SHORT + texts.LONG)))
    assert all(texts.fill(name, np.random.default_rng(0)) for name in names)


def test_a_failed_download_says_what_to_do(scripts, tmp_path):
    with pytest.raises(SoundingError, match=r"no-such-program a failed in .* unpack .*sotu"):
        scripts[2].run("no-such-program", "a", cwd=tmp_path)


def test_a_stopped_make_goes_on_to_the_same_clips_as_one_without_a_stop(sources, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    subprocess.run(command(whole, sources, "--hours", 0.04), check=True)
    subprocess.run(command(parts, sources, "--hours", 0.01), check=True)
    kept = content(parts)
    subprocess.run(command(parts, sources, "--hours", 0.04), check=True)
    assert content(parts) == content(whole)
    assert content(whole)[0].startswith(kept[0])

    folder = load_folder(whole)
    assert folder.task == "text"
    for clip in folder.clips:
        audio = sf.info(clip.path)
        assert (audio.samplerate, audio.channels) == (16000, 1)
        assert 2 <= audio.duration <= 9
        assert re.fullmatch(r"espeak:[\w+-]+:[+-]\d+", clip.speaker)
    assert sum(sf.info(clip.path).duration for clip in folder.clips) >= 0.04 * 3600


@pytest.mark.skipif(sys.platform == "win32", reason="kills by a POSIX signal")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_make_leaves_a_folder_that_can_be_read_and_gone_on_with(how, sources, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(command(out, sources, "--hours", 5))
    deadline = time.monotonic() + 60
    while not (out / "metadata.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(how)
    assert process.wait() == (130 if how == signal.SIGTERM else -how)
    kept = len(load_folder(out).clips)
    assert kept >= 25
    hours = sum(sf.info(path).duration for path in out.rglob("*.flac")) / 3600
    subprocess.run(command(out, sources, "--hours", hours + 0.01), check=True)
    clips = load_folder(out).clips
    assert len(clips) > kept
    assert len({clip.path for clip in clips}) == len(clips)


def test_excluded_texts_are_not_said(scripts, sources, tmp_path):
    out, table = tmp_path / "out", tmp_path / "metadata.csv"
    first = command(out, sources, "--hours", 0.02)
    subprocess.run(first, check=True)
    with (out / "metadata.csv").open() as file:
        said = [row["text"] for row in csv.DictReader(file)]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text.upper()] for text in said[:3])])
    again = tmp_path / "again"
    subprocess.run(command(again, sources, "--hours", 0.02, "--exclude", table), check=True)
    with (again / "metadata.csv").open() as file:
        left = [row["text"] for row in csv.DictReader(file)]
    assert not set(said[:3]) & set(left)
    assert set(said[3:5]) & set(left)


def test_what_cannot_be_used_is_refused_with_one_line(scripts, sources, tmp_path):
    speech = scripts[0]
    with pytest.raises(UsageError, match=r"unknown engines {'parrot'}: use some of piper, "):
        speech.load_engines(["parrot"], sources)
    (tmp_path / "metadata.csv").write_text("file_name,label\na.wav,b\n")
    with pytest.raises(UsageError, match="has other columns than file_name, text, split"):
        speech.read_rows(tmp_path / "metadata.csv")
    with pytest.raises(UsageError, match="no table with a column text"):
        speech.texts_of(tmp_path / "metadata.csv")
