"""A watched directory: files that are written, renamed, replaced, broken or no files at all."""

from __future__ import annotations

import os
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from sounding.runtime import watch as module
from sounding.runtime.watch import OpenFileWarning, watch

LINUX = pytest.mark.skipif(
    not Path("/proc/self/fd").is_dir(), reason="only Linux tells what is open for writing"
)


def wav_bytes(tmp_path, seconds=0.5):
    path = tmp_path / "whole"
    sf.write(path, np.full(int(16000 * seconds), 0.1, "f4"), 16000, format="WAV")
    return path.read_bytes()


@pytest.fixture
def inbox(tmp_path):
    path = tmp_path / "inbox"
    path.mkdir()
    return path


@pytest.fixture
def follow(inbox):
    """Watch in a thread; returns the names that were given, each with the bytes it had then."""
    found: list[tuple[str, int]] = []
    files = watch(inbox, [".wav"], pause=0.01)  # from now on

    def run():
        for path in files:
            size = path.stat().st_size if path.exists() else -1
            found.append((path.name, size))

    threading.Thread(target=run, daemon=True).start()
    return found


def wait_for(found, count, seconds=5.0):
    end = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < end:
        time.sleep(0.01)
    return [name for name, _ in found]


def test_a_file_that_comes_before_the_first_look_is_given(inbox):
    files = watch(inbox, [".wav"])
    (inbox / "a.wav").write_bytes(b"12")
    assert next(files).name == "a.wav"


def test_a_pause_of_the_writer_is_not_the_end(inbox, follow, tmp_path):
    """The header announces more than is there, and nobody has the file open meanwhile."""
    data = wav_bytes(tmp_path)
    (inbox / "a.wav").write_bytes(data[:4000])
    time.sleep(3 * module.QUIET)
    assert follow == []
    with (inbox / "a.wav").open("ab") as file:
        file.write(data[4000:])
    wait_for(follow, 1)
    assert follow == [("a.wav", len(data))]


@LINUX
def test_a_file_that_is_open_for_writing_is_not_whole(inbox, follow, monkeypatch):
    """Its format announces nothing; a reader is not in the way."""
    with (inbox / "a.wav").open("wb", buffering=0) as file, (inbox / "a.wav").open("rb"):
        file.write(b"no header")
        time.sleep(3 * module.QUIET)
        assert follow == []
        file.write(b", and more")
    with (inbox / "a.wav").open("rb"):
        wait_for(follow, 1)
    assert follow == [("a.wav", 19)]


@LINUX
def test_who_keeps_a_file_open_is_told_once(inbox, monkeypatch):
    monkeypatch.setattr(module, "STALE", 0.5)
    files = watch(inbox, [".wav"], pause=0.01)
    with (
        (inbox / "a.wav").open("wb", buffering=0) as file,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        file.write(b"12")
        threading.Timer(2.0, lambda: (inbox / "b.wav").write_bytes(b"12")).start()
        assert next(files).name == "b.wav"
    assert [one.category for one in caught] == [OpenFileWarning]
    assert "a.wav: waiting, since" in str(caught[0].message)
    assert next(files).name == "a.wav"


def test_an_incomplete_or_empty_file_is_given_after_a_while(inbox, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STALE", 1.0)
    data = wav_bytes(tmp_path)
    files = watch(inbox, [".wav"], pause=0.01)
    (inbox / "cut.wav").write_bytes(data[:-100])
    (inbox / "empty.wav").touch()
    start = time.monotonic()
    assert sorted([next(files).name, next(files).name]) == ["cut.wav", "empty.wav"]
    assert 1.0 <= time.monotonic() - start < 4
    (inbox / "empty.wav").write_bytes(data)  # a recorder that took its time
    assert next(files).name == "empty.wav"


def test_a_name_that_gets_another_content_is_given_again(inbox, follow, tmp_path):
    latest = inbox / "latest.wav"
    latest.write_bytes(b"12")
    wait_for(follow, 1)
    latest.write_bytes(b"1234")  # in place
    wait_for(follow, 2)
    (tmp_path / "new").write_bytes(b"5678")
    os.replace(tmp_path / "new", latest)  # renamed into place
    wait_for(follow, 3)
    latest.unlink()
    time.sleep(0.1)
    latest.write_bytes(b"5678")
    wait_for(follow, 4)
    time.sleep(2 * module.QUIET)
    assert follow == [("latest.wav", size) for size in (2, 4, 4, 4)]


def test_what_is_no_file_is_given_once_and_what_vanishes_never(inbox, follow):
    (inbox / "dir.wav").mkdir()
    os.mkfifo(inbox / "pipe.wav")
    (inbox / "nowhere.wav").symlink_to(inbox / "missing")
    (inbox / "gone.wav").write_bytes(b"12")
    (inbox / ".hidden.wav").write_bytes(b"12")
    time.sleep(module.QUIET / 4)
    (inbox / "gone.wav").unlink()
    wait_for(follow, 2)
    (inbox / "dir.wav" / "more").touch()
    time.sleep(2 * module.QUIET)
    assert sorted(name for name, _ in follow) == ["dir.wav", "pipe.wav"]


def test_a_file_is_given_soon(inbox, follow, tmp_path):
    data, taken = wav_bytes(tmp_path), []
    for count in range(1, 4):
        start = time.monotonic()
        (inbox / f"{count}.wav").write_bytes(data)
        wait_for(follow, count)
        taken.append(time.monotonic() - start)
    assert module.QUIET < min(taken) < module.QUIET + 0.25
