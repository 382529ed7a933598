"""`sounding report`: make one page and a verdict out of measured runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add `sounding report` and its options to the parser."""
    parser = commands.add_parser(
        "report",
        help="one HTML page and a verdict out of measured runs",
        description="Read what `compare` measured and write one HTML page that needs no network.",
        epilog="""examples:
  sounding report STUDY
  sounding report STUDY/ravdess STUDY2 --out report.html --verdict verdict.json
  sounding report STUDY --pack measured.parquet     all measured.json of it in one small file
  sounding report measured.parquet                  the same report, from that file alone""",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="runs, directories of them, or packs (*.parquet)"
    )
    parser.add_argument("--out", default="report.html", help="the page (report.html)")
    parser.add_argument("--verdict", help="write all comparisons to this JSON file")
    parser.add_argument("--table", help="write the table to this file, as Markdown")
    parser.add_argument(
        "--pack", help="write all that was measured to this file, as Parquet: sounding[study]"
    )
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> None:
    """Write the page, and print the verdict."""
    from ..study.html import write_report

    paths = [Path(run) for run in arguments.runs]
    out = arguments.out
    others = {"verdict": arguments.verdict, "table": arguments.table, "pack": arguments.pack}
    for line in write_report(paths, out, **{n: path for n, path in others.items() if path}):
        print(line)
    print(f"written: {out}")
