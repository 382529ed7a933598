"""A recognizer without a model, and what tests of transcription do with it."""

from __future__ import annotations

import json
import time
import zlib
from pathlib import Path

import numpy as np
import soundfile as sf

from sounding.transcribe.job import Job, transcribe
from sounding.transcribe.recognizer import Recognition
from sounding.transcribe.sources import find_sources

RATE = 16000


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


class Fake:
    """Its text is a checksum of the audio; writes one line a recognized piece to a log."""

    sampling_rate = RATE
    max_seconds = 30.0
    layers = 4

    def __init__(self, log: Path | None = None, batch_size=1, seconds=0.0, name="one"):
        self.log, self.batch_size, self.seconds = log, batch_size, seconds
        self.settings = {"model": "fake", "weights": name}
        self.calls: list[int] = []

    def __call__(self, pieces, budget=None):
        self.calls.append(len(pieces))
        time.sleep(self.seconds)
        texts = [f"{zlib.crc32(piece.tobytes()):08x}" for piece in pieces]
        if self.log is not None:
            with self.log.open("a") as file:
                file.write("".join(f"{text}\n" for text in texts))
        return [Recognition(text, (0, 2)) for text in texts]


def write(path: Path, samples: np.ndarray, rate: int = RATE, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, samples, rate, **options)
    return path


def run(inputs, recognizer, out=None, **settings) -> list[str]:
    return transcribe(find_sources(inputs, out), Job(recognizer, **settings))


def tree(root: Path) -> dict[str, bytes]:
    """All texts below, without the seconds that the work took."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_dir() or path.name == ".lock" or path.suffix in (".wav", ".flac"):
            continue
        content = path.read_bytes()
        if path.suffix == ".json":
            values = json.loads(content)
            del values["real_time_factor"]
            for piece in values["pieces"]:
                del piece["seconds"]
            content = json.dumps(values).encode()
        found[str(path.relative_to(root))] = b"" if path.suffix == ".jsonl" else content
    return found
