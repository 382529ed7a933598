"""Export a run, then run it without torch: by layers, by milliseconds, and by a governor.

python examples/export_and_run.py                       (makes a small run first)
python examples/export_and_run.py runs/tones/input
python examples/export_and_run.py RUN --clip clip.wav
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import median

import numpy as np

from sounding import runtime
from sounding.cli import main as command_line


def export_run(run: Path, out: Path) -> None:
    """On the machine with torch: one file that still chooses its layers."""
    from sounding.export import export
    from sounding.runs.run import load_run

    for line in export(load_run(run), out).lines():
        print(line)


def on_device(path: Path, clip: str | None) -> None:
    """On the device: ONNX Runtime, NumPy and an audio reader."""
    model = runtime.load(path, threads=1)
    time = np.arange(model.meta.rate // 2) / model.meta.rate
    sound = clip or (0.1 * np.sin(2 * np.pi * 800 * time)).astype(np.float32)
    for budget in (1, "50%", None):
        print(f"budget {budget!s:>6}: {shown(model.run(sound, budget=budget))}")

    # Once on each device, left alone meanwhile: how long an input takes, by number of layers.
    command_line(["calibrate", str(path), "--threads", "1", "--seconds", "0.5,1", "--rounds", "10"])
    model = runtime.load(path, threads=1)  # with its profile, so that a budget may be a time
    target = 3 * median(model.run(sound).milliseconds for _ in range(9))
    budget = f"{target:.1f}ms"
    print(f"budget {budget:>6}: {shown(model.run(sound, budget=budget))}")

    governed = runtime.Governed(model, target=target)
    for _ in range(20):
        governed.run(sound)
    late = sum(step.milliseconds > target for step in governed.steps)
    print(f"governor at {target:.1f} ms: {late} of {len(governed.steps)} inputs were late")
    print(f"torch was {'' if 'torch' in sys.modules else 'not '}imported")


def shown(answer: runtime.Answer) -> str:
    """Write an answer, the layers that ran and its time in one line."""
    layers = "".join("x" if n in answer.executed_layers else "." for n in range(answer.layers))
    return f"{answer.label} {layers} {answer.milliseconds:.1f} ms"


def main() -> None:
    """Export, and start this script again as the device would."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, help="a run; without, a small one is made")
    parser.add_argument("--out", type=Path, help="the model (model.onnx beside the run)")
    parser.add_argument("--clip", help="an audio file (a tone)")
    parser.add_argument("--model", type=Path, help="run this export, and nothing else")
    arguments = parser.parse_args()

    if arguments.model:
        on_device(arguments.model, arguments.clip)
        return
    run = arguments.run
    if run is None:
        subprocess.run(
            [sys.executable, Path(__file__).with_name("train_and_sweep.py"), "--quick"], check=True
        )
        run = Path("runs/tones/input")
    out = arguments.out or run.with_name("model.onnx")
    export_run(run, out)
    clip = ["--clip", arguments.clip] if arguments.clip else []
    subprocess.run([sys.executable, __file__, "--model", out, *clip], check=True)


if __name__ == "__main__":
    main()
