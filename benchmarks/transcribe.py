"""What `sounding transcribe` takes, of this tree against another: processor time and wall time.

  git worktree add /tmp/before 71c611c
  python benchmarks/transcribe.py --against /tmp/before --json benchmarks/results/transcribe.json
  python benchmarks/transcribe.py --against /tmp/before --busy 1 --rounds 1 \
      --json benchmarks/results/transcribe-busy.json
  python benchmarks/transcribe.py --against /tmp/before --seconds 60 --rounds 1     # to try it

The same command, in a process of its own for each run, with the threads that a user has by
default: ten minutes of speech (clips of the folder ljspeech_part below SOUNDING_DATA, joined with
pauses; without it sentences by a text-to-speech engine), with whisper-base and whisper-tiny.en,
loading and all. The trees take turns, A B and then B A; a ratio is of the two runs of a round, this
tree over the other, reported by its median with the lowest and the highest. Processor time is that
of the process, user and system. With --busy, so many other programs compute all the while, as on a
machine that is shared. The load of the machine before each run is written beside it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import soundfile as sf
from rich.console import Console
from rich.table import Table

import sounding
from sounding.data.audio import read_audio
from sounding.data.commands import VOICES, speak
from sounding.data.folder import load_folder
from sounding.files import sha256, write_json
from sounding.runs.run import provenance

HERE = Path(sounding.__file__).parents[2]
RATE = 16000
KINDS = ("processor_seconds", "wall_seconds")
PAUSES = (0.2, 2.0)  # seconds between two sentences
SENTENCES = (
    "The boat came in before the rain, and nobody was there to see it.",
    "She had walked through the mountains for three days without a map.",
    "It is hard to say where the river begins and where the lake ends.",
    "My father kept his letters in a box under the stairs.",
    "They sold apples, bread and warm milk at the corner of the market.",
    "Nothing was heard in the house but the clock on the wall.",
    "If the wind turns to the north, the harbour will be frozen by Monday.",
    "He read the first page, laughed, and gave the book back.",
)
CODE = """import sys, sounding
from sounding.cli import main
assert sounding.__file__.startswith(sys.argv[1]), sounding.__file__
sys.exit(main(sys.argv[2:]))"""


def main() -> None:
    """Measure, print a table and write the JSON."""
    options, about_us = parse(), provenance()
    trees = {"this": HERE, "other": options.against.resolve()}
    with TemporaryDirectory() as directory:
        audio = Path(directory) / "speech.flac"
        source = make_speech(audio, options)
        with others(options.busy):
            found = {model: measure(model, audio, trees, options) for model in options.models}
        about = {"from": source, "seconds": sf.info(audio).duration, "sha256": sha256(audio)}
    Console().print(table(found))
    if options.json:
        commit = ["git", "-C", str(options.against), "rev-parse", "HEAD"]
        against = subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip()
        write_json(
            options.json,
            {
                "command": f"python benchmarks/transcribe.py --against {against[:12]}"
                f" --busy {options.busy} --rounds {options.rounds} --seconds {options.seconds:g}",
                "seed": options.seed, "rounds": options.rounds, "against": against,
                "audio": about, "models": found, **about_us,
            },
        )  # fmt: skip


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", type=Path, required=True, help="another checkout")
    parser.add_argument("--models", nargs="+", default=["whisper-base", "whisper-tiny.en"])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, default=0, help="other programs at work meanwhile")
    parser.add_argument("--seed", type=int, default=0, help="of the pauses and the voices")
    parser.add_argument("--json", help="where to write the results")
    return parser.parse_args()


@contextmanager
def others(count: int) -> Iterator[None]:
    """Other programs that each take what they get of a core."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def make_speech(path: Path, options: argparse.Namespace) -> str:
    """Write speech with pauses, and say where it is from."""
    rng = np.random.default_rng(options.seed)
    folder = Path(os.environ.get("SOUNDING_DATA", "")) / "ljspeech_part"
    clips = load_folder(folder).clips if "SOUNDING_DATA" in os.environ and folder.is_dir() else []
    parts: list[np.ndarray] = []
    samples, index = 0, 0
    while samples < options.seconds * RATE:
        if clips:
            wave = read_audio(clips[index % len(clips)].path, rate=RATE)
        else:
            voice = f"gmw/en-US+{VOICES[rng.integers(len(VOICES))]}"
            how = {"rate": 160, "pitch": 50, "pitch_range": 50, "seed": index}
            wave = speak(SENTENCES[index % len(SENTENCES)], voice, **how)
        pause = np.zeros(int(rng.uniform(*PAUSES) * RATE))
        parts += [wave, pause]
        samples, index = samples + len(wave) + len(pause), index + 1
    sf.write(path, np.concatenate(parts)[: int(options.seconds * RATE)], RATE)
    return folder.name if clips else "espeak-ng"


def measure(
    model: str, audio: Path, trees: dict[str, Path], options: argparse.Namespace
) -> dict[str, Any]:
    """Runs in alternation, and their ratios."""
    short = audio.with_name("short.flac")
    sf.write(short, sf.read(audio, frames=5 * RATE)[0], RATE)
    for tree in trees.values():  # downloads the weights, writes the byte code
        run(tree, model, short)
    rounds = []
    for turn in range(options.rounds):
        order = list(trees) if turn % 2 == 0 else list(trees)[::-1]
        rounds.append({name: run(trees[name], model, audio) for name in order})
        print(f"{model}, round {turn + 1} of {options.rounds}: {rounds[-1]}", file=sys.stderr)
    ratios = {kind: [one["this"][kind] / one["other"][kind] for one in rounds] for kind in KINDS}
    return {
        "ratios": {
            kind: {"median": median(values), "low": min(values), "high": max(values)}
            for kind, values in ratios.items()
        },
        "same_text": len({one[name]["text_sha256"] for one in rounds for name in trees}) == 1,
        "runs": rounds,
    }


def run(tree: Path, model: str, audio: Path) -> dict[str, Any]:
    """Transcribe with the code of a tree, with the threads that a user has by default."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    environment["PYTHONPATH"] = str(tree / "src")
    with TemporaryDirectory() as out:
        command = ["transcribe", str(audio), "--model", model, "--out", out]
        load, start = os.getloadavg()[0], perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", CODE, str(tree), *command],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, used = os.wait4(process.pid, 0)
        wall = perf_counter() - start
        if status != 0:
            raise RuntimeError(f"{tree}: sounding {' '.join(command)} ended with {status}")
        text = sha256(Path(out) / f"{audio.stem}.txt")
    return {
        "processor_seconds": round(used.ru_utime + used.ru_stime, 2),
        "wall_seconds": round(wall, 2),
        "load_before": round(load, 2),
        "text_sha256": text,
    }


def table(found: dict[str, Any]) -> Table:
    """For people."""
    made = Table("model", "", "this tree", "the other", "ratio (lowest, highest)")
    for model, values in found.items():
        for kind in KINDS:
            medians = [
                median(one[name][kind] for one in values["runs"]) for name in ("this", "other")
            ]
            ratio = values["ratios"][kind]
            made.add_row(
                model,
                kind.replace("_", " "),
                *(f"{seconds:.0f}" for seconds in medians),
                f"{ratio['median']:.2f} ({ratio['low']:.2f}, {ratio['high']:.2f})",
            )
    return made


if __name__ == "__main__":
    main()
