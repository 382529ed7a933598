"""The parser of the commands: options anywhere, help as it is written."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any


class Parser(argparse.ArgumentParser):
    """A parser whose help keeps its line breaks, with options anywhere among files."""

    def __init__(self, prog: str, description: str = "", epilog: str = "", **kwargs: Any) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **kwargs,
        )
        self.add_argument(  # before a command and behind it, of which neither may undo the other
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show where in the code an error comes from",
        )
        self._parsing = False

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as argparse does, and take a list also where options part it."""
        lists = any(action.nargs in ("*", "+") for action in self._get_positional_actions())
        if self._parsing or not lists:
            return super().parse_known_args(args, namespace)
        given = list(sys.argv[1:] if args is None else args)
        if "--" in given:  # which argparse forgets when it parses the list by itself
            at = given.index("--")
            rest = [
                f"./{one}" if len(one) > 1 and one[0] == "-" else one for one in given[at + 1 :]
            ]
            given = given[:at] + rest
        self._parsing = True
        try:
            return self.parse_known_intermixed_args(given, namespace)
        finally:
            self._parsing = False
