"""The parts of a distilled run as they come with the package.

  python benchmarks/ready.py runs/whisper-base --name whisper-base
  python benchmarks/ready.py runs/encoder --decoder runs/decoder --name whisper-base

Writes what was trained beside the pretrained model, without that model and in half precision, to
src/sounding/weights/parts/NAME, and there what it was made with: made.json has the settings, the
data, the losses, the commit and the machine of the run, behind those that it went on from. What is
of the decoder may come from another run, since a decoder that is trained alone learns from what the
teacher heard (`--set distilled=decoder`). They must not take more than 10 MB.
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
from sounding.files import write_json
from sounding.model.dynamic import DynamicModel
from sounding.model.saving import save_parts
from sounding.runs.run import load_run, trained_with
from sounding.weights.ready import READY

MOST = 10e6  # bytes
AVERAGED = 50  # steps


def main() -> int:
    """Write the parts; the exit code is 2 after an error."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="of `sounding distill`")
    parser.add_argument("--decoder", type=Path, help="the run whose decoder is taken")
    parser.add_argument("--name", required=True, help="of the pretrained model")
    options = parser.parse_args()
    try:
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
    dynamic = distilled(directory, name)
    made = {"trainings": list(trainings(directory))}
    if decoder is not None:
        take_decoder(dynamic, distilled(decoder, name))
        made["decoder_trainings"] = list(trainings(decoder))
    out = READY / name
    save_parts(dynamic, out)
    write_json(out / "made.json", made)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {size / 1e6:.1f} MB")
    if size > MOST:
        raise UsageError(f"{out} has {size / 1e6:.1f} MB, above {MOST / 1e6:g}: lower the rank")


def distilled(directory: Path, name: str) -> DynamicModel:
    """Return the model of a distilled run.

    Raises:
        UsageError: a run without updates, or of another model.
    """
    run = load_run(directory)
    if run.dynamic.updates is None or run.config.backbone != name:
        raise UsageError(f"{directory} is no distilled run of {name}")
    return run.dynamic


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
