"""Train by two methods on tones (or clips of yours), and measure every budget.

python examples/train_and_sweep.py --out runs/tones
python examples/train_and_sweep.py --backbone whisper-base --data DIR --out runs/mine

Without `--backbone` the model is tiny and begins with random weights: the table shows what a sweep
looks like, and says nothing about the methods.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForAudioClassification
from transformers.utils import logging

from sounding.data.corpora import open_corpus
from sounding.evaluation.sweep import sweep
from sounding.evaluation.table import markdown
from sounding.files import write_json
from sounding.runs.config import TrainConfig
from sounding.training.loop import train

METHODS = ("early-exit", "input")
HERTZ = {"low": 300, "middle": 500, "high": 800}
RATE = 16000


def make_tones(directory: Path, *, quick: bool) -> Path:
    """Write a folder of half a second each: tones of three pitches in noise."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    time = np.arange(RATE // 2) / RATE
    counts = {"train": 240, "validation": 60, "test": 120}
    with (directory / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "label", "split"])
        for split, count in counts.items():
            for index in range(count // 5 if quick else count):
                label = list(HERTZ)[index % 3]
                loudness = rng.uniform(0.01, 0.05)
                tone = loudness * np.sin(2 * np.pi * HERTZ[label] * time)
                name = f"{split}-{index}.wav"
                soundfile.write(directory / name, tone + rng.normal(0, 0.05, time.shape), RATE)
                table.writerow([name, label, split])
    return directory


def make_backbone(directory: Path) -> Path:
    """Write a tiny Whisper of four layers with random weights, as `save_pretrained` does."""
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=64, encoder_layers=4, encoder_attention_heads=4, encoder_ffn_dim=128,
        num_mel_bins=16, max_source_positions=50, classifier_proj_size=32, num_labels=len(HERTZ),
    )  # fmt: skip
    WhisperForAudioClassification(config).save_pretrained(directory)
    WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(directory)
    return directory


def train_all(out: Path, data: Path | str, config: TrainConfig) -> str:
    """Train each method into OUT/METHOD, sweep them, and return the table as Markdown."""
    folder = open_corpus(data)
    runs = []
    for method in METHODS:
        chosen = TrainConfig(**{**vars(config), "method": method})
        runs.append(train(chosen, folder, out / method))
    result = sweep(runs, folder, rounds=3)
    write_json(out / "sweep.json", result.to_json())
    return markdown(result)


def main() -> None:
    """Make what is not given, train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/tones", type=Path, help="directory of the runs")
    parser.add_argument("--data", help="clips of yours (tones)")
    parser.add_argument("--backbone", help="whisper-base, a path, a hub id (tiny, random weights)")
    parser.add_argument("--quick", action="store_true", help="a fifth of it, to see that it runs")
    arguments = parser.parse_args()

    logging.set_verbosity_error()  # no report of each model that is loaded
    logging.disable_progress_bar()
    out, quick = arguments.out, arguments.quick
    data = arguments.data or make_tones(out / "data", quick=quick)
    if arguments.backbone:
        config = TrainConfig(backbone=arguments.backbone)
    else:  # nothing of it is pretrained: higher rates, more passes
        tiny = str(make_backbone(out / "backbone"))
        epochs = 2 if quick else 12
        config = TrainConfig(backbone=tiny, epochs=epochs, lr_encoder=2e-3, freeze="none")
    print(train_all(out, data, config))
    print(f"Next: python examples/export_and_run.py {out / 'input'}")


if __name__ == "__main__":
    main()
