"""`sounding calibrate`: time an exported model on this device, or fit the depths of a run."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .process import quiet_transformers
from .support import numbers_option


def add(commands: Any) -> None:
    """Add `sounding calibrate` and its options to the parser."""
    parser = commands.add_parser(
        "calibrate",
        help="measure an exported model on this device, or the depths of a distilled run",
        description="Time an exported model at several lengths, for every number of layers, and\n"
        "write the profile of this device beside it. Then 40ms and rtf:0.1 are budgets, and\n"
        "--governor works. Leave the device alone meanwhile.\n\n"
        "Of a run of `sounding distill` with a decoder: fit to audio how many layers an input\n"
        "needs, so that mean:4.5 is a budget of RUN/model. What that gains on validation clips\n"
        "over one depth for all, and over the choice of another clip, is in RUN/depths.json too.",
        epilog="""examples:
  sounding calibrate model.onnx
  sounding calibrate model.onnx --threads 1,2,4 --seconds 1,3,10
  sounding calibrate RUN --data recordings/      a run of `sounding distill`""",
    )
    parser.add_argument("model", metavar="MODEL", help="what `sounding export` wrote, or a run")
    parser.add_argument("--data", nargs="+", help="of a run: directories of audio, or corpora")
    parser.add_argument("--clips", type=int, default=1000, help="of a run: at most so many (1000)")
    parser.add_argument("--threads", help="with commas between them (all cores)")
    parser.add_argument("--seconds", help="lengths of the inputs, with commas between them")
    parser.add_argument("--rounds", type=int, default=30, help="timings of each (30)")
    parser.add_argument("--out", help="the profile (MODEL.profile.json)")
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> None:
    """Time an exported model, or fit the depths of a run."""
    is_run = (Path(arguments.model) / "run.json").is_file()
    if is_run != (arguments.data is not None):
        raise UsageError(
            f"{arguments.model} is a run: give audio to fit its depths to by --data DIR"
            if is_run
            else f"--data is for a run of `sounding distill`, and {arguments.model} is none"
        )
    if is_run:
        _fit(arguments)
    else:
        _time(arguments)


def _fit(arguments: argparse.Namespace) -> None:
    """Fit how many layers an input needs, and print what that is worth."""
    quiet_transformers()
    from ..data.unlabelled import unlabelled
    from ..files import locked
    from ..methods.depths import predict_depths
    from ..runs.run import load_run

    run, directory = load_run(arguments.model), Path(arguments.model)
    with locked(directory):
        report = predict_depths(run, unlabelled(arguments.data), directory, arguments.clips)
    names = [name for name in report["rows"][0] if name not in ("mean", "kept")]
    print("divergence from the full depth on validation clips, in nats a token")
    print("budget    kept  " + "".join(f"{name:>11}" for name in names))
    for row in report["rows"]:
        values = "".join(f"{row[name]:11.4f}" for name in names)
        print(f"mean:{row['mean']:<5g}{row['kept']:4.2f}  {values}")
    print(f"written: {directory / 'model'}; it was read after {report['after']} layers")


def _time(arguments: argparse.Namespace) -> None:
    """Time the model, write the profile of this device, and print it."""
    from ..runtime import Profile, load, profile_path
    from ..runtime.profile import LENGTHS, device

    threads = numbers_option(arguments.threads, "--threads", int) or [os.cpu_count() or 1]
    lengths = numbers_option(arguments.seconds, "--seconds", float) or list(LENGTHS)
    tables = {}
    for count in threads:
        model = load(arguments.model, threads=count)

        def show(done: int, total: int, count: int = count) -> None:
            end = "\n" if done == total else ""
            print(f"\r{count} threads: round {done} of {total}", end=end, file=sys.stderr)

        tables[count] = model.calibrate(lengths, arguments.rounds, show)
    profile = Profile(device(), model.digest(), model.meta.layers, tables)
    out = arguments.out or profile_path(arguments.model)
    profile.save(out)
    for count, table in tables.items():
        print(f"{count} threads, milliseconds (median) by length and kept layers")
        print("seconds " + "".join(f"{k:>8}" for k in range(1, profile.layers + 1)))
        for seconds, row in zip(table.seconds, table.median, strict=True):
            print(f"{seconds:7g} " + "".join(f"{value:8.1f}" for value in row))
    print(f"written: {out}")
