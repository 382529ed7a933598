"""`sounding export`: write a run as ONNX."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import UsageError
from .process import quiet_transformers

CALIBRATION = 24  # clips


def add(commands: Any) -> None:
    """Add `sounding export` and its options to the parser."""
    parser = commands.add_parser(
        "export",
        help="one ONNX file that still chooses its layers, for a device without torch",
        description="Write a run as ONNX: one file whose inputs are features and budget, and in\n"
        "which a layer that is not chosen is not executed. It is held against PyTorch at every\n"
        "budget before it is put in place.",
        epilog="""examples:
  sounding export RUN --out model.onnx
  sounding export RUN --out model-int8.onnx --int8
  sounding export RUN --out model-int8.onnx --int8 --calibrate-data DIR
  sounding export RUN --out three.onnx --layers 0,1,3     always these layers: a plain graph
  sounding export RUN --out model/ --split                loads only the layers that it needs""",
    )
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--out", required=True, help="a file .onnx, or a directory for --split")
    parser.add_argument("--int8", action="store_true", help="layers in 8-bit integers")
    parser.add_argument(
        "--calibrate-data", metavar="DIR", help="clips to measure static ranges on, for --int8"
    )
    parser.add_argument("--split", action="store_true", help="a directory of parts")
    fixed = parser.add_mutually_exclusive_group()
    fixed.add_argument("--mask", metavar="110100", help="always run these layers")
    fixed.add_argument("--layers", metavar="0,1,3", help="the same, by their indexes")
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> None:
    """Export the run, and print what was written."""
    quiet_transformers()
    from ..data.folder import load_folder
    from ..export import export
    from ..runs.run import load_run

    run = load_run(arguments.run)
    mask = _mask(arguments.mask, arguments.layers, run.dynamic.num_layers)
    calibration = None
    if arguments.calibrate_data is not None:
        clips = load_folder(arguments.calibrate_data).split("train")
        some = clips[:: max(1, len(clips) // CALIBRATION)][:CALIBRATION]
        calibration = run.read(some, "calibration")
    exported = export(
        run,
        arguments.out,
        split=arguments.split,
        mask=mask,
        int8=arguments.int8,
        calibration=calibration,
    )
    for line in exported.lines():
        print(line)


def _mask(digits: str | None, indexes: str | None, layers: int) -> list[bool] | None:
    """Return the mask of --mask or --layers; None without either."""
    if digits is not None:
        if set(digits) - {"0", "1"} or len(digits) != layers:
            raise UsageError(f"--mask takes {layers} digits 0 or 1, one a layer, not {digits!r}")
        return [digit == "1" for digit in digits]
    if indexes is None:
        return None
    try:
        chosen = [int(index) for index in indexes.split(",")]
    except ValueError:
        chosen = [-1]
    if not set(chosen) <= set(range(layers)):
        raise UsageError(f"--layers takes indexes from 0 to {layers - 1}, not {indexes!r}")
    return [index in chosen for index in range(layers)]
