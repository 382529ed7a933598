"""What a training costs: its steps against plain ones, its loading, and its memory.

  python benchmarks/training.py steps                                # no data needed
  python benchmarks/training.py loading --data DATA/speechocean762 --task ctc
  python benchmarks/training.py memory                               # makes its corpora, 10 minutes
  python benchmarks/training.py steps --backbone facebook/wav2vec2-base --seconds 5

steps    a step of `sounding train` over a step of plain `transformers` at the same batch: at full
         depth (at most 1.05), and by random dropping with p = 0.5 (at most 0.6)
loading  a step with its loading over the same step with the batch in hand (at most 1.05): of clips
         that are kept in RUN/features, and of others, without and with a worker
memory   the peak of a training of clips that share their audio, at 1x, 10x and 100x as many (flat
         within 10 %)

Both sides of a ratio take the same batches in turn (A B, then B A); reported is the median of the
ratios of the rounds with its bootstrap 95 % interval. Plain steps train the same parameters, in the
same precision, with the same optimizer. Results go into one JSON file, each part by itself.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import soundfile as sf
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoModelForAudioClassification

from sounding.data.features import extract
from sounding.data.folder import load_folder, subset
from sounding.errors import SoundingError
from sounding.files import write_json
from sounding.methods.base import Method
from sounding.model.backbones import find_backbone
from sounding.registry import METHODS
from sounding.runs.config import TrainConfig
from sounding.runs.precision import autocast
from sounding.runs.run import Run, new_run, provenance
from sounding.tasks.base import Batch, Target, Targets
from sounding.training.checkpoint import TrainState
from sounding.training.distributed import Processes
from sounding.training.loader import Order, Part, Parts, parts
from sounding.training.loop import _training
from sounding.training.source import Source
from sounding.training.steps import one_step
from sounding.weights import resolve

LABELS = ["a", "b"]
RATE = 16000
FLAT = 1.1
CPU = torch.device("cpu")


def main() -> int:
    """Measure one part, print it and put it into the file; the exit code is 2 after an error."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("part", choices=PARTS)
    add("--backbone", default="whisper-base", help="a name, a path or a hub id")
    add("--data", type=Path, help="of loading: an AudioFolder")
    add("--task", default="auto", help="of loading")
    add("--batch-size", type=int, default=8)
    add("--seconds", type=float, default=3.0, help="of the clips of steps")
    add("--steps", type=int, default=6, help="of a round")
    add("--rounds", type=int, default=7)
    add("--clips", type=int, default=2000, help="of memory, at 1x")
    add("--threads", type=int, default=2)
    add("--seed", type=int, default=0)
    add("--json", type=Path, default=Path("training.json"), help="(%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        rows = PARTS[options.part](options)
    except (SoundingError, OSError, ValueError) as error:
        print(f"training.py: {error}", file=sys.stderr)
        return 2
    Console().print(table(options.part, rows))
    known = json.loads(options.json.read_text()) if options.json.exists() else {}
    settings = {name: str(value) for name, value in vars(options).items() if name != "json"}
    known[options.part] = {"rows": rows, "settings": settings, **provenance()}
    write_json(options.json, known)
    return 0


def ratio(
    ours: Callable[[], Any],
    other: Callable[[], Any],
    options: argparse.Namespace,
    prepare: Callable[[], Any] = lambda: None,
) -> dict[str, float]:
    """Return the median of the ratios of times taken in turn, and its interval."""
    times = []
    for index in range(options.rounds + 1):
        prepare()
        pair = {}
        for name, run in [("ours", ours), ("other", other)][:: 1 if index % 2 else -1]:
            start = perf_counter()
            run()
            pair[name] = perf_counter() - start
        times.append((pair["ours"], pair["other"]))
    measured = np.array(times[1:])  # the first one warms up
    ratios = measured[:, 0] / measured[:, 1]
    drawn = np.random.default_rng(options.seed).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return {
        "ratio": float(np.median(ratios)),
        "low": float(low),
        "high": float(high),
        "seconds": float(np.median(measured[:, 0])),
    }


# --- steps ----------------------------------------------------------------------------------


def measure_steps(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time steps of ours against plain ones."""
    rows = []
    for method, most in (("full", 1.05), ("random", 0.6)):
        config = TrainConfig(options.backbone, method, batch_size=options.batch_size, device="cpu")
        steps = Steps(config, options)
        found = ratio(steps.ours, steps.plain, options)
        rows.append({"what": f"a step, {method}", "most": most, **found})
    return rows


class Steps:
    """The same batches, for steps of ours and for plain ones."""

    def __init__(self, config: TrainConfig, options: argparse.Namespace) -> None:
        self.run = new_run(config, LABELS, {"task": "classification"})
        self.state = TrainState(self.run, total=1)
        self.made = noise(self.run, options)
        self.targets = [Target((i % 2,), "") for i in range(options.batch_size)]
        self.other = PlainSteps(self.run, self.made[0])

    def ours(self) -> None:
        """Take our steps."""
        self.run.dynamic.train()
        for batch in self.made:
            self.state.step += 1  # random masks follow from it
            rows = list(range(len(self.targets)))
            one_step(
                self.run, self.state, [Part(rows, 1.0, batch)], self.targets, Processes(), rows
            )

    def plain(self) -> None:
        """Take plain steps."""
        for batch in self.made:
            self.other.take(batch, self.targets)


def noise(run: Run, options: argparse.Namespace) -> list[Batch]:
    """Return batches of clips of one length."""
    rng = np.random.default_rng(options.seed)
    samples = int(options.seconds * RATE)
    return [
        run.collate(
            [
                extract(rng.normal(0, 0.1, samples).astype(np.float32), run.extractor)
                for _ in range(options.batch_size)
            ]
        )
        for _ in range(options.steps)
    ]


class PlainSteps:
    """The steps of a plain model, with the parameters, the optimizer and the precision of a run."""

    def __init__(self, run: Run, batch: Batch) -> None:
        self.config = run.config
        path = resolve(run.config.backbone)
        model: Any = AutoModelForAudioClassification.from_pretrained(
            path, num_labels=len(LABELS), dtype=torch.float32, ignore_mismatched_sizes=True
        )
        self.model = at_length(model, batch)
        trained = {n for n, p in run.dynamic.model.named_parameters() if p.requires_grad}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in trained)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        assert len(self.parameters) >= len(trained) > 0
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5, foreach=True)
        self.model.train()

    def take(self, batch: Batch, targets: Targets) -> None:
        """Take a step."""
        labels = torch.tensor([target.ids[0] for target in targets])
        with autocast(self.config.precision, CPU):
            loss = self.model(**batch, labels=labels).loss
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.optimizer.step()


def at_length(model: Any, batch: Batch) -> Any:
    """Return a model that takes a batch as it is: plain Whisper takes its whole window alone."""
    backbone, base = find_backbone(model)
    window = backbone.window(base)
    if not window:
        return model
    config, state = copy.deepcopy(model.config), dict(model.state_dict())
    config.max_source_positions = batch[model.main_input_name].shape[-1] // 2
    key = next(name for name in state if name.endswith("embed_positions.weight"))
    state[key] = state[key][: config.max_source_positions]
    other = type(model)(config)
    other.load_state_dict(state)
    return other


# --- loading --------------------------------------------------------------------------------


def measure_loading(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time steps with their loading against the same ones with the batches in hand."""
    folder = load_folder(options.data)
    folder = replace(folder, clips=tuple(subset(folder, "train", 400, options.seed)))
    config = TrainConfig(
        options.backbone, "full", task=options.task, batch_size=options.batch_size, device="cpu",
        epochs=100,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        method: Method = METHODS[config.method]
        run = method.start(config, folder, {"task": folder.task}, Path(scratch))
        _, targets, source = _training(run, folder, Path(scratch))
        state = TrainState(run, total=1)
        rows = []
        for name, kept, workers in (
            ("of what is kept", source.kept, 0),
            ("that decodes its clips", None, 0),
            ("that decodes its clips, 1 worker", None, 1),
        ):
            source.config, source.kept = replace(config, workers=workers), kept
            loading = Loading(run, state, source, targets, options.steps)
            found = ratio(loading.loaded, loading.in_hand, options, loading.prepare)
            rows.append({"what": f"a step {name}", "most": 1.05, **found})
    return rows


class Loading:
    """The same steps, with their batches loaded meanwhile and in hand."""

    def __init__(
        self, run: Run, state: TrainState, source: Source, targets: Sequence[Target], steps: int
    ) -> None:
        self.run, self.state, self.targets = run, state, targets
        order, share = Order(source.seconds, source.config), Processes().share
        self.made = Parts(source, order, share)
        self.coming = parts(source, order, share, 0, CPU)
        self.steps, self.next = steps, 0
        run.dynamic.train()

    def prepare(self) -> None:
        """Have the batches of the next steps in hand."""
        self.held = [self.made[step] for step in range(self.next, self.next + self.steps)]
        self.next += self.steps

    def loaded(self) -> None:
        """Take the steps with their loading."""
        for _ in range(self.steps):
            self._step(next(self.coming))

    def in_hand(self) -> None:
        """Take the same steps with the batches that are there."""
        for made in self.held:
            self._step(made)

    def _step(self, made: list[Part]) -> None:
        (part,) = made
        one_step(self.run, self.state, made, self.targets, Processes(), part.rows)


# --- memory ---------------------------------------------------------------------------------


def measure_memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train on more and more clips, each in a process of its own, and return the peaks."""
    rows: list[dict[str, Any]] = []
    for times in (1, 10, 100):
        clips = times * options.clips
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch)
            corpus(root / "data", clips, options.seed)
            peak = trained(root, clips, options)
        first = rows[0]["mb"] if rows else peak
        rows.append({"what": f"{clips:,} clips", "most": FLAT, "mb": peak, "ratio": peak / first})
        Console(stderr=True).print(f"{clips:,} clips: {peak:.0f} MB")
    return rows


def corpus(root: Path, clips: int, seed: int) -> None:
    """Write an AudioFolder whose clips are 20 files of half a second under many names."""
    (root / "audio").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for index in range(20):
        sf.write(root / f"{index}.wav", rng.normal(0, 0.1, RATE // 2), RATE)
    with (root / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "label", "split", "speaker"])
        for index in range(clips):
            name = f"audio/{index:06}.wav"
            os.link(root / f"{index % 20}.wav", root / name)
            split = "test" if index < 10 else "train"
            writer.writerow([name, LABELS[index % 2], split, f"speaker {index % 100}"])
    for index in range(20):
        (root / f"{index}.wav").unlink()


def trained(root: Path, clips: int, options: argparse.Namespace) -> float:
    """Return the peak of the memory of `sounding train` for 20 steps, in MB."""
    epochs = 20 * options.batch_size / clips
    command = [
        "train", "--data", str(root / "data"), "--out", str(root / "run"), "--backbone",
        options.backbone, "--method", "full", "--device", "cpu", "--epochs", str(epochs),
        "--batch-size", str(options.batch_size),
    ]  # fmt: skip
    code = "import sys; from sounding.cli import main; sys.exit(main(sys.argv[1:]))"
    process = os.posix_spawn(
        sys.executable, [sys.executable, "-c", code, *command], dict(os.environ)
    )
    _, status, usage = os.wait4(process, 0)
    if status:
        raise OSError(f"the training of {clips:,} clips failed")
    return usage.ru_maxrss / 1024 if sys.platform == "linux" else usage.ru_maxrss / 1024**2


PARTS = {"steps": measure_steps, "loading": measure_loading, "memory": measure_memory}


def table(part: str, rows: list[dict[str, Any]]) -> Table:
    """The results for a terminal."""
    made = Table(title=part)
    for name in ("what", "ratio", "95 % interval", "at most", ""):
        made.add_column(name)
    for row in rows:
        value = f"{row['ratio']:.3f}" + (f" ({row['mb']:.0f} MB)" if "mb" in row else "")
        interval = f"{row['low']:.3f} to {row['high']:.3f}" if "low" in row else ""
        verdict = "yes" if row["ratio"] <= row["most"] else "no"
        made.add_row(row["what"], value, interval, f"{row['most']:.2f}", verdict)
    return made


if __name__ == "__main__":
    sys.exit(main())
