"""`sounding calibrate`: time an exported model on this device."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from .support import numbers_option


def add(commands: Any) -> None:
    """Add `sounding calibrate` and its options to the parser."""
    parser = commands.add_parser(
        "calibrate",
        help="measure an exported model on this device, for budgets in time",
        description="Time an exported model at several lengths, for every number of layers, and\n"
        "write the profile of this device beside it. Then 40ms and rtf:0.1 are budgets, and\n"
        "--governor works. Leave the device alone meanwhile.",
        epilog="""examples:
  sounding calibrate model.onnx
  sounding calibrate model.onnx --threads 1,2,4 --seconds 1,3,10""",
    )
    parser.add_argument("model", metavar="MODEL", help="what `sounding export` wrote")
    parser.add_argument("--threads", help="with commas between them (all cores)")
    parser.add_argument("--seconds", help="lengths of the inputs, with commas between them")
    parser.add_argument("--rounds", type=int, default=30, help="timings of each (30)")
    parser.add_argument("--out", help="the profile (MODEL.profile.json)")
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> None:
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
