"""`sounding sweep`: measure every budget."""

from __future__ import annotations

import argparse
from typing import Any

from .process import quiet_transformers
from .support import RECIPE, add_beam, add_device, beam_option


def add(commands: Any) -> None:
    """Add `sounding sweep` and its options to the parser."""
    parser = commands.add_parser(
        "sweep",
        help="measure every budget",
        description="Measure accuracy, MACs and latency at every budget on the test clips.",
        epilog="""examples:
  sounding sweep RUN --data DIR --json sweep.json
  sounding sweep runs/full runs/random runs/early-exit runs/input --data DIR --plots plots/""",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs of different methods")
    parser.add_argument("--data", required=True, help="folder of clips, a corpus or a hub id")
    parser.add_argument("--recipe", help=f"{RECIPE}: how to read --data")
    parser.add_argument("--split", default="test", help="validation or test (default)")
    parser.add_argument("--json", help="write all figures to this file")
    parser.add_argument("--csv", help="write the table to this file")
    parser.add_argument("--table", help="write the table to this file, as Markdown")
    parser.add_argument("--plots", help="write accuracy.png and layers.png to this directory")
    parser.add_argument("--card", help="write a model card of the last RUN to this file")
    parser.add_argument("--rounds", type=int, default=15, help="timings a row (15); 0: none")
    parser.add_argument("--seed", type=int, default=0, help="of random masks and timing order")
    add_device(parser)
    add_beam(parser)
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> None:
    """Measure the runs, write what was asked for, and print the table."""
    quiet_transformers()
    from rich.console import Console

    from ..data.corpora import open_corpus
    from ..evaluation.report import check_outputs, write_sweep
    from ..evaluation.sweep import sweep
    from ..evaluation.table import rich_table
    from ..recipes import load_recipe
    from ..runs.run import load_run
    from ..training.distributed import processes

    files = (arguments.json, arguments.csv, arguments.table, arguments.card)
    check_outputs(files=files, plots=arguments.plots)
    read = open_corpus if arguments.recipe is None else load_recipe(arguments.recipe).open
    folder = read(arguments.data)
    with processes(arguments.device) as group:
        runs = [load_run(directory, arguments.device) for directory in arguments.runs]
        for run in runs:
            run.beam = beam_option(arguments, run)
        how = {"split": arguments.split, "rounds": arguments.rounds, "seed": arguments.seed}
        result = sweep(runs, folder, **how, group=group)
    if not group.first:
        return
    try:
        write_sweep(
            result,
            json=arguments.json,
            csv=arguments.csv,
            table=arguments.table,
            plots=arguments.plots,
            card=arguments.card,
            run=runs[-1],
        )
    finally:  # last, since the reader of our output may be gone
        Console().print(rich_table(result))
