"""The command line: `sounding train | sweep | run | export | transcribe | compare | ...`."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence

from . import (
    calibrate,
    compare,
    demo,
    distill,
    export,
    inspect,
    recipes,
    report,
    run,
    sweep,
    train,
    transcribe,
)
from .parser import Parser
from .process import command_process, describe

COMMANDS = (  # in the order of the help
    train, distill, sweep, run, export, calibrate, inspect, compare, report, recipes, transcribe,
    demo,
)  # fmt: skip
EPILOG = """examples:
  sounding demo                                    the whole of it on synthetic commands
  sounding train --backbone whisper-base --data DIR --out RUN
  sounding distill whisper-base --data DIR --out RUN   a recognizer's depths, from audio alone
  sounding recipes                                 benchmarks that one option trains on
  sounding sweep RUN --data DIR --json sweep.json  accuracy and cost at every budget
  sounding run RUN clip.wav --budget 3             classify with 3 layers
  sounding export RUN --out model.onnx             for a device without torch
  sounding run model.onnx clip.wav --budget 3      there
  sounding inspect RUN                             layers, parameters, MACs by part
  sounding compare --data DIR --out STUDY          every method, and whether the input matters
  sounding transcribe talk.mp3 --format txt,srt    long audio as text, layers chosen by piece

DIR is a folder with metadata.csv: file_name, label, optionally split and speaker; a corpus as it
was unpacked; or the id of a data set on the hub (docs/recipes.md).
`sounding COMMAND --help` says more. An error is a line on standard error; --debug adds where it
comes from. The exit code is 1 where some of several files failed, 2 for what is wrong with what was
given, 70 for a fault of this program, and 130 after Ctrl-C.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code.

    0; 1 where some files failed; 2 for an error of what was given, or of all files; 70 for an
    error of this program; 130 after an interrupt.
    """
    arguments = make_parser().parse_args(argv)
    with command_process():
        return _run(arguments)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; nothing of what they run is imported for it."""
    from .. import __version__

    parser = Parser("sounding", "Pretrained speech models that choose their own depth.", EPILOG)
    parser.add_argument("--version", action="version", version=f"sounding {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for command in COMMANDS:
        command.add(commands)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    try:
        code: int = arguments.command(arguments) or 0
        if sys.stdout is not None:  # closed
            sys.stdout.flush()  # a full disk is told here, and not by the interpreter at its end
        return code
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output is gone: nobody is left to tell
        return 141
    except (Exception, KeyboardInterrupt) as error:
        if "debug" in arguments:
            traceback.print_exc()
        text, code = describe(error)
        print(f"sounding: {text}", file=sys.stderr)
        return code
