"""Transcription by two workers on a local Ray cluster: as by one, and nothing twice."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
import soundfile as sf

from sounding.data.audio import SilentAudioWarning
from sounding.errors import UsageError
from sounding.transcribe.cluster import _Worker, transcribe_on_cluster
from sounding.transcribe.job import Job, transcribe
from sounding.transcribe.recognizer import Recognition
from sounding.transcribe.sources import find_sources

pytest.importorskip("ray", reason="needs the extra 'cluster'")
pytest.importorskip("silero_vad", reason="needs the extra 'transcribe'")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Four files of speech, one of them with a name that is no UTF-8, and one that is none."""
    pytest.importorskip("espeakng_loader", reason="needs the extra 'demo'")
    from sounding.data.commands import speak

    root = tmp_path_factory.mktemp("recordings")
    how = {"rate": 170, "pitch": 50, "pitch_range": 50, "seed": 0}
    for index in range(4):
        wave = speak(f"this is recording number {index}", "gmw/en-US+Michael", **how)
        sf.write(root / f"{index}.wav", np.pad(wave, 8000), 16000)
    (root / "3.wav").rename(root / os.fsdecode(b"caf\xe9.wav"))
    (root / "broken.wav").write_bytes(b"RIFF")
    return root


def listener(log):
    """A recognizer that says how long a piece is, and leaves a line for each in the log.

    Made here, so that the workers get it by value: they cannot import this file.
    """

    class Listener:
        sampling_rate, max_seconds, batch_size, layers = 16000, 28.0, 1, 4
        settings = {"model": "listener", "weights": "none"}  # noqa: RUF012

        def __call__(self, pieces, budget=None):
            import os

            with open(log, "a") as file:
                file.writelines(f"{os.getpid()} {len(piece)}\n" for piece in pieces)
            return [Recognition(f"{len(piece)} samples", (0, 1)) for piece in pieces]

    return Listener


def test_two_workers_write_what_one_does_and_nothing_twice(recordings, tmp_path):
    one, two, log = tmp_path / "one", tmp_path / "two", tmp_path / "log"
    settings = {"budget": 2, "formats": ["txt", "srt"]}
    alone = transcribe(find_sources([recordings], one), Job(listener(log)(), **settings))
    expected = {p.name: p.read_text() for p in one.iterdir() if p.is_file()}
    calls = log.read_text().splitlines()
    assert len(expected) == 8
    assert "broken.wav" in alone[0]
    log.unlink()
    sources = find_sources([recordings], two)
    failures = transcribe_on_cluster(sources, listener(log), settings, workers=2)
    assert failures == alone
    assert {p.name: p.read_text() for p in two.iterdir() if p.is_file()} == expected
    made = log.read_text().splitlines()
    assert sorted(c.split()[1] for c in made) == sorted(c.split()[1] for c in calls)
    again = transcribe_on_cluster(sources, listener(log), settings, workers=2)
    assert again == alone
    assert log.read_text().splitlines() == made  # all were finished


def test_no_worker_is_refused(recordings):
    with pytest.raises(ValueError, match="0 workers"):
        transcribe_on_cluster(find_sources([recordings]), listener("log"), {}, workers=0)


def test_what_is_no_address_of_a_cluster_is_refused_with_what_is_one(recordings):
    with pytest.raises(UsageError, match=r"a cluster at 'nowhere': .*: give auto, or HOST:PORT"):
        transcribe_on_cluster(
            find_sources([recordings]), lambda: None, {}, workers=1, address="nowhere"
        )


def test_a_worker_tells_what_would_end_all_of_them_and_what_was_warned_of(
    recordings, tmp_path, monkeypatch
):
    sources = find_sources([recordings], tmp_path)
    told = []
    worker = _Worker(listener(tmp_path / "log"), {}, 1, sources)

    def full(handle):
        warnings.warn("nearly full", SilentAudioWarning, stacklevel=1)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        told = [worker({"id": index}) for index in (0, len(sources) - 1)]
    assert [one["failure"] for one in told] == ["", ""]
    assert all("make room there" in one["problem"] for one in told)
    assert [one["warnings"] for one in told] == [["nearly full"]] * 2
    assert told[1]["name"] == "caf\\udce9.wav"
    assert worker({"id": 0})["problem"] == ""
