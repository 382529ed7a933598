"""The parts of a distilled run as they come with the package.

  python benchmarks/ready.py runs/whisper-base --name whisper-base

Writes what was trained beside the pretrained model, without that model and in half precision, to
src/sounding/weights/parts/NAME, and there what it was made with: made.json has the settings, the
data, the losses, the commit and the machine of the run, behind those that it went on from. They
must not take more than 8 MB.
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
from sounding.model.saving import save_parts
from sounding.runs.run import load_run, trained_with
from sounding.weights.ready import READY

MOST = 8e6  # bytes
AVERAGED = 50  # steps


def main() -> int:
    """Write the parts; the exit code is 2 after an error."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="of `sounding distill`")
    parser.add_argument("--name", required=True, help="of the pretrained model")
    options = parser.parse_args()
    try:
        ready(options.run, options.name)
    except (SoundingError, OSError) as error:
        print(f"ready.py: {error}", file=sys.stderr)
        return 2
    return 0


def ready(directory: Path, name: str) -> None:
    """Write the parts of a run.

    Raises:
        UsageError: a run without updates, of another model, or with too many of them.
    """
    run = load_run(directory)
    if run.dynamic.updates is None or run.config.backbone != name:
        raise UsageError(f"{directory} is no distilled run of {name}")
    out = READY / name
    save_parts(run.dynamic, out)
    write_json(out / "made.json", {"trainings": list(trainings(directory))})
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {size / 1e6:.1f} MB")
    if size > MOST:
        raise UsageError(f"{out} has {size / 1e6:.1f} MB, above {MOST / 1e6:g}: lower the rank")


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
