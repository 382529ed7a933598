"""The demo: spoken commands, five methods, every budget, in one go that may be interrupted.

OUT/runs/METHOD/        the trained runs
OUT/sweep.json, .csv    the table
OUT/accuracy.png, layers.png
OUT/table.md            the table for people
OUT/MODEL_CARD.md       of the input-driven run
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from .data.commands import CommandSet, commands_folder
from .data.folder import load_folder
from .evaluation.classify import classify
from .evaluation.report import write_sweep
from .evaluation.sweep import Sweep, sweep
from .evaluation.table import rich_table
from .files import locked
from .registry import METHODS
from .runs.config import TrainConfig
from .runtime import show
from .training.loop import train
from .weights import cache_dir

BUDGETS = (1, "50%", None)  # of the clip that is classified at the end
DATA_NOTE = """- Data: **synthetic**. espeak-ng says 16 command words in 63 voices and 8 accents,
  with reverberation and noise from -5 to 20 dB; the test voices are not heard in training. No
  figure here says how well the model understands people.
"""


def demo(out: Path, backbone: str = "whisper-base", seed: int = 0, *, quick: bool = False) -> Sweep:
    """Make the data, train, sweep, write everything to `out`, classify a clip.

    What is there already is not done again.

    Args:
        quick: a tenth of the data and one epoch, to see that everything runs.

    Raises:
        ValueError: `out` is in use by another process.
    """
    with locked(out):
        return _demo(out, backbone, seed, quick=quick)


def _demo(out: Path, backbone: str, seed: int, *, quick: bool) -> Sweep:
    console = Console()
    commands = CommandSet(seed=seed)
    config = TrainConfig(backbone=backbone, seed=seed, epochs=6)
    if quick:
        commands = replace(commands, train=96, validation=16, test=48)
        config = replace(config, epochs=1)
    folder = load_folder(commands_folder(cache_dir(), commands))
    runs = []
    methods = [name for name, method in METHODS.items() if method.in_demo]
    for number, method in enumerate(methods, start=1):
        console.rule(f"{method} ({number} of {len(methods)})")
        runs.append(train(replace(config, method=method), folder, out / "runs" / method))
    console.rule("every budget")
    result = sweep(runs, folder, seed=seed)
    write_sweep(
        result,
        json=out / "sweep.json",
        csv=out / "sweep.csv",
        table=out / "table.md",
        plots=out,
        card=out / "MODEL_CARD.md",
        run=runs[-1],
        notes=DATA_NOTE,
    )
    console.print(rich_table(result))
    clip = max(folder.split("test"), key=lambda clip: float(clip.extra["snr_db"]))
    console.rule(f"the clearest test clip ({clip.target!r}) at three budgets")
    for budget in BUDGETS:
        for answer in classify(runs[-1], [clip.path], budget):
            console.print(f"budget {budget}: {show(answer)}", soft_wrap=True)
    names = "table.md, sweep.json, sweep.csv, accuracy.png, layers.png, MODEL_CARD.md"
    console.print(f"written to {out}/: {names}")
    return result
