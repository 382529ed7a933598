"""`sounding inspect`: show layers, parameters and MACs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .process import quiet_transformers

LONGEST = 3600  # seconds


def add(commands: Any) -> None:
    """Add `sounding inspect` and its options to the parser."""
    parser = commands.add_parser(
        "inspect",
        help="layers, parameters, MACs by part",
        description="Show a run: layers, parameters and MACs by part, the selector's share.",
        epilog="examples:\n  sounding inspect RUN\n  sounding inspect RUN --seconds 5",
    )
    parser.add_argument("run", metavar="RUN", help="a run, or a directory of save_pretrained")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of the clip counted (1)")
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> None:
    """Print the summary of the run's model."""
    quiet_transformers()
    if not 0 < arguments.seconds <= LONGEST:
        raise UsageError(f"--seconds is {arguments.seconds:g}: give a length of 0 to {LONGEST} s")
    from ..model.loading import load
    from ..model.macs import summary

    directory = Path(arguments.run)
    inner = directory / "model"
    print(summary(load(inner if inner.is_dir() else directory), arguments.seconds))
