"""Words against time: recognizers and their depths, the smaller sibling, and runs of other kinds.

  python benchmarks/contest.py whisper-base:e6-d6-padded whisper-base:e6-d4-short \\
      whisper-tiny.en:e4-d4-padded RUN:6 RUN:3 --data DATA/ljspeech_part --out runs/contest

A contestant is MODEL:SETTING, as `benchmarks/whisper.py sweep` names settings (a whisper-base comes
with its ready-made parts), or RUN:BUDGET, a run that recognizes texts, such as one by CTC, and how
many layers of its encoder it keeps. The times of the others are compared with those of the first.

Each writes down all clips: texts are compared after Whisper's own normalizer, with intervals over
speakers where ten or more are known. Then, on a few clips from the shortest to the longest, one at
a time, they take turns (A B ..., then ... B A), features and text: `ratio` is the median of the
paired ratios, with its 95 % interval over clips. Results are in OUT/contest-DATA.json. Killed, the
same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from whisper import (
    RATE,
    Bench,
    asked,
    by_length,
    each,
    errors,
    generate,
    in_turn,
    median_ratio,
    single,
    spread,
    test_clips,
    trainings,
    with_texts,
    word_error_rate,
    work,
)

from sounding.data.features import extract, load_audio
from sounding.files import sha256, write_json
from sounding.runs.predict import predict
from sounding.runs.run import load_run, provenance
from sounding.transcribe.whisper import silence_behind


def main() -> int:
    """Hold the contest on each folder; the exit code is 2 after an error."""
    options = parse()
    return work(options, lambda path: contest(options, path))


def parse() -> Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("contestants", nargs="+", metavar="MODEL:SETTING | RUN:BUDGET")
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, help="for results, and to go on from")
    parser.add_argument("--limit", type=int, help="so many clips, by a fixed rule")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--timed", type=int, default=8, help="clips to time; 0 for no timing")
    parser.add_argument("--rounds", type=int, default=3, help="of timing, each there and back")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of subsets and bootstrap")
    parser.set_defaults(processor=None, plain=False)
    return parser.parse_args()


class OfWhisper:
    """A Whisper at one setting.

    Args:
        setting: as of `benchmarks/whisper.py`.
    """

    def __init__(self, options: Namespace, path: Path, model: str, setting: str) -> None:
        out = options.out / model.replace("/", "-")
        self.bench = Bench(Namespace(**{**vars(options), "model": model, "out": out}), path)
        self.dynamic = self.bench.dynamic()
        (self.setting,) = asked(setting)
        self.silence = silence_behind(self.dynamic)

    def errors(self) -> dict[str, Any]:
        """What it writes of all clips, counted."""
        return errors(self.bench, self.dynamic, self.setting)

    def write(self, audio: np.ndarray) -> None:
        """Write down a clip. Shape: audio [samples]."""
        heard = self.bench.heard(audio, self.setting.padded, self.silence)
        generate(self.bench, self.dynamic, self.setting, heard)


class RunBench(Bench):
    """A run, the test clips of a folder, and where its results are."""

    def __init__(self, options: Namespace, path: Path, run: Path) -> None:
        self.options = Namespace(**{**vars(options), "out": options.out / run.name})
        folder = with_texts(path)
        self.data, self.clips = folder.root.name, test_clips(folder, options)
        self.directory = run / "model"
        self.made_with = {
            "model": str(run),
            "model_sha256": sha256(self.directory / "model.safetensors"),
            "data": self.data,
            "data_digest": folder.digest,
            "clips": len(self.clips),
            "seed": options.seed,
        }


class OfRun:
    """A run that recognizes texts, at one budget of its encoder."""

    def __init__(self, options: Namespace, path: Path, run: str, budget: str) -> None:
        self.bench = RunBench(options, path, Path(run))
        self.run, self.budget = load_run(run, "cpu"), int(budget)

    def errors(self) -> dict[str, Any]:
        """What it writes of all clips, counted."""
        name = f"k{self.budget}"
        for (clip,), by_clip in each(self.bench, name, single(by_length(self.bench.clips))):
            by_clip[clip.path.name] = self.text(load_audio(clip, RATE, None))
        return word_error_rate(self.bench, self.bench.done(name))

    def write(self, audio: np.ndarray) -> None:
        """Write down a clip. Shape: audio [samples]."""
        self.text(audio)

    def text(self, audio: np.ndarray) -> str:
        """What is said in a clip. Shape: audio [samples]."""
        batch = self.run.collate([extract(audio, self.run.extractor)])
        (text,) = predict(self.run, batch, self.budget).texts
        return text


Contestant = OfWhisper | OfRun


def contest(options: Namespace, path: Path) -> None:
    """Count the errors of each contestant, time them in turn, and write the result."""
    contestants: dict[str, Contestant] = {}
    for name in options.contestants:
        model, _, setting = name.rpartition(":")
        kind = OfRun if setting.isdecimal() else OfWhisper
        contestants[name] = kind(options, path, model, setting)
    rows = [{"contestant": name, **one.errors()} for name, one in contestants.items()]
    bench = next(iter(contestants.values())).bench
    if options.timed:
        for row, speed in zip(rows, speeds(bench, list(contestants.values())), strict=True):
            row |= speed
    runs = {name: trainings(one.bench.directory.parent) for name, one in contestants.items()}
    made = {"command": ["contest", *sys.argv[1:]], "runs": runs, "rows": rows}
    made |= {name: bench.made_with[name] for name in ("data", "data_digest", "clips", "seed")}
    write_json(options.out / f"contest-{bench.data}.json", {**made, **provenance()})
    Console(width=110).print(table(rows, f"{bench.data}, {len(bench.clips)} clips"))


def speeds(bench: Bench, contestants: Sequence[Contestant]) -> list[dict[str, Any]]:
    """The real-time factor of each, and its ratio to that of the first.

    Shape: times [clips, rounds, contestants], in seconds.
    """
    audio = [load_audio(clip, RATE, None) for clip in spread(bench.clips, bench.options.timed)]
    times = np.array([timed(contestants, clip, bench.options.rounds) for clip in audio])
    rtf = np.median(times, axis=1).sum(0) / sum(len(clip) / RATE for clip in audio)
    return [
        {
            "rtf": float(rtf[place]),
            "ratio": median_ratio(times, place, bench.options.seed),
            "timed_clips": len(audio),
        }
        for place in range(len(contestants))
    ]


def timed(contestants: Sequence[Contestant], audio: np.ndarray, rounds: int) -> list[list[float]]:
    """Seconds of one clip. Shape: audio [samples] -> [rounds, contestants]."""
    runs = {place: partial(one.write, audio) for place, one in enumerate(contestants)}
    for run in runs.values():  # warm
        run()
    return [list(in_turn(runs).values()) for _ in range(rounds)]


def table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """The results for people."""
    shown = Table(title=title, box=box.SIMPLE, pad_edge=False)
    shown.add_column("contestant")
    for heading in ("WER", "95 %", "RTF", "ratio", "95 %"):
        shown.add_column(heading, justify="right")
    for row in rows:
        ratio = row.get("ratio", [float("nan")] * 3)
        shown.add_row(
            row["contestant"],
            f"{row['wer']:.1%}",
            f"{row['low']:.1%}-{row['high']:.1%}",
            f"{row.get('rtf', float('nan')):.3f}",
            f"{ratio[0]:.2f}",
            f"{ratio[1]:.2f}-{ratio[2]:.2f}",
        )
    return shown


if __name__ == "__main__":
    sys.exit(main())
