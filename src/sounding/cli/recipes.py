"""`sounding recipes`: list or show the recipes."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Add `sounding recipes` and its options to the parser."""
    parser = commands.add_parser(
        "recipes",
        help="benchmarks, each with a backbone and its settings",
        description="List the recipes and what is measured of them, or show one to read or copy.",
        epilog="""examples:
  sounding recipes
  sounding recipes esc50-ast > mine.yaml
  sounding train --recipe mine.yaml --data ESC-50-master --out RUN""",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this one")
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> None:
    """Print all recipes as a table, or the YAML of one."""
    from ..recipes import recipe_table, recipe_text

    print(recipe_text(arguments.name) if arguments.name else recipe_table(), end="")
