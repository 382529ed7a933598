"""The parts of a distilled run as they come with the package.

  python benchmarks/ready.py runs/whisper-base --name whisper-base
  python benchmarks/ready.py runs/encoder --decoder runs/decoder --name whisper-base
  python benchmarks/ready.py runs/encoder --decoder runs/decoder --run runs/joined

Writes what was trained beside the pretrained model, without that model and in half precision, to
src/sounding/weights/parts/NAME, and there what it was made with: made.json has the settings, the
data, the losses, the commit and the machine of the run, behind those that it went on from, and what
`sounding calibrate RUN --data DIR` fitted to, if that was done. What is
of the decoder may come from another run, that trained it alone (`--set distilled=decoder`). They
must not take more than 10 MB. With --run the two become one run, for `sounding distill` to go on
from.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sounding.errors import SoundingError, UsageError
from sounding.files import sha256, write_json, write_sealed_json, write_text
from sounding.methods.depths import REPORT as DEPTHS
from sounding.model.dynamic import DynamicModel
from sounding.model.saving import save_parts
from sounding.runs.run import CONFIG, Run, load_run, trained_with
from sounding.typed import read_json
from sounding.weights.ready import READY

MOST = 10e6  # bytes
AVERAGED = 50  # steps
TRAININGS, DECODERS = "trainings", "decoder_trainings"  # in made.json, and in a joined run


def main() -> int:
    """Write the parts; the exit code is 2 after an error."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="of `sounding distill`")
    parser.add_argument("--decoder", type=Path, help="the run whose decoder is taken")
    into = parser.add_mutually_exclusive_group(required=True)
    into.add_argument("--name", help="of the pretrained model, for the package")
    into.add_argument("--run", dest="joined", type=Path, metavar="RUN", help="a new directory")
    options = parser.parse_args()
    try:
        if options.joined is not None:
            join(options.run, options.decoder, options.joined)
        else:
            ready(options.run, options.name, options.decoder)
    except (SoundingError, OSError) as error:
        print(f"ready.py: {error}", file=sys.stderr)
        return 2
    return 0


def ready(directory: Path, name: str, decoder: Path | None = None) -> None:
    """Write the parts of a run, those of the decoder perhaps from another one.

    Raises:
        UsageError: a run without updates, of another model, or with too many of them.
    """
    run, made = taken(directory, decoder)
    if (directory / DEPTHS).exists():  # `sounding calibrate` has fitted how many layers are needed
        fitted = read_json(directory / DEPTHS, dict[str, Any], what=f"is no {DEPTHS}")
        made["depths"] = {name: value for name, value in fitted.items() if name != "rows"}
    if run.config.backbone != name:
        raise UsageError(f"{directory} is of {run.config.backbone}, and not of {name}")
    out = READY / name
    save_parts(run.dynamic, out)
    write_json(out / "made.json", made)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {size / 1e6:.1f} MB")
    if size > MOST:
        raise UsageError(f"{out} has {size / 1e6:.1f} MB, above {MOST / 1e6:g}: lower the rank")


def join(directory: Path, decoder: Path | None, out: Path) -> None:
    """Write a run with the encoder of one run and the decoder of another.

    Raises:
        UsageError: a run without updates, or `out` is there.
    """
    run, made = taken(directory, decoder)
    if out.exists():
        raise UsageError(f"{out} is there: give a new directory")
    write_text(out / CONFIG, run.config.to_yaml())
    write_sealed_json(
        out / "run.json", {**run.info, **made, "sha256": {CONFIG: sha256(out / CONFIG)}}
    )
    run.dynamic.save_pretrained(out / "model", companions=run.companions)


def taken(directory: Path, decoder: Path | None) -> tuple[Run, dict[str, Any]]:
    """Return a run, with the decoder of another one if it is given, and what both were made with.

    Raises:
        UsageError: a run without updates, or two of different models.
    """
    run = distilled(directory)
    made = {TRAININGS: list(trainings(directory))}
    if DECODERS in run.info:  # it went on from two runs in one
        made[DECODERS] = run.info[DECODERS]
    if decoder is not None:
        other = distilled(decoder)
        if other.config.backbone != run.config.backbone:
            raise UsageError(f"{directory} and {decoder} are of different models")
        take_decoder(run.dynamic, other.dynamic)
        made[DECODERS] = list(trainings(decoder))
    return run, made


def distilled(directory: Path) -> Run:
    """Return a distilled run.

    Raises:
        UsageError: a run without updates.
    """
    run = load_run(directory)
    if run.dynamic.updates is None:
        raise UsageError(f"{directory} is no distilled run")
    return run


def take_decoder(dynamic: DynamicModel, other: DynamicModel) -> None:
    """Take what was trained of the decoder of another model, and which of its layers to keep."""
    mine, theirs = dynamic.updates, other.updates
    assert mine is not None
    assert theirs is not None
    mine.ranks["decoder"] = theirs.ranks["decoder"]
    mine.layers["decoder"] = theirs.layers["decoder"]
    mine.norms["decoder"] = theirs.norms["decoder"]
    dynamic.decoder_policy = other.decoder_policy


def trainings(directory: Path) -> Iterator[dict[str, Any]]:
    """Yield what a run was made with, those that it went on from before it."""
    run = load_run(directory)
    if not (directory / "log.csv").exists():  # two runs in one
        yield from run.info[TRAININGS]
        return
    if run.config.teacher:
        yield from trainings(Path(run.config.teacher))
    with (directory / "log.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    curve = [
        [start, round(float(np.mean(losses[start : start + AVERAGED])), 4)]
        for start in range(0, len(losses), AVERAGED)
    ]
    made = {**trained_with(run.config, run.info), "machine": run.info.get("machine")}
    yield made | {"versions": run.info.get("versions"), f"loss_by_{AVERAGED}_steps": curve}


if __name__ == "__main__":
    sys.exit(main())
