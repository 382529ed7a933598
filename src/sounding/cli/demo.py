"""`sounding demo`: run the whole of it on synthetic commands."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .process import quiet_transformers


def add(commands: Any) -> None:
    """Add `sounding demo` and its options to the parser."""
    parser = commands.add_parser(
        "demo",
        help="the whole of it on synthetic spoken commands",
        description="Make spoken commands by a text-to-speech engine, train five methods on\n"
        "Whisper-base, sweep every budget, write table, plots and model card.\n"
        "Goes on where it stopped.",
        epilog="examples:\n  sounding demo\n  sounding demo --backbone whisper-tiny.en --out tiny/",
    )
    parser.add_argument("--out", default="demo", help="directory of the results (demo)")
    parser.add_argument("--backbone", default="whisper-base", help="whisper-base")
    parser.add_argument("--seed", type=int, default=0, help="of data and training")
    parser.add_argument("--quick", action="store_true", help="a tenth of it, to see that it runs")
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> None:
    """Run the demo."""
    quiet_transformers()
    from ..demo import demo

    demo(Path(arguments.out), arguments.backbone, arguments.seed, quick=arguments.quick)
