"""What passes a skipped layer: the identity, or the layer's own final norm (LDASR)?

Whisper's layers end without a norm, so this trains a small Conformer (Wav2Vec2-BERT with random
weights) from scratch, with either skip path, by either method.

    python benchmarks/skip_path.py --data DIR --json benchmarks/results/skip_path.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import (
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertForSequenceClassification,
)

from sounding.data.folder import load_folder
from sounding.evaluation.sweep import sweep
from sounding.files import write_json
from sounding.runs.config import SKIP, TrainConfig
from sounding.runs.run import provenance
from sounding.training.loop import train

METHODS = ("random", "input")
CONFORMER = {
    "hidden_size": 144, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 576,
    "layerdrop": 0.0, "mask_time_prob": 0.0, "classifier_proj_size": 144,
    "hidden_dropout": 0.1, "attention_dropout": 0.1,
}  # fmt: skip


def backbone(path: Path, seed: int) -> Path:
    """A Conformer with random weights, on disk."""
    torch.manual_seed(seed)
    config = Wav2Vec2BertConfig(**CONFORMER)
    Wav2Vec2BertForSequenceClassification(config).save_pretrained(path)
    SeamlessM4TFeatureExtractor().save_pretrained(path)
    return path


def main() -> None:
    """Train, sweep, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="an AudioFolder with labels")
    parser.add_argument("--out", default="runs/skip_path", help="directory of the runs")
    parser.add_argument("--json", help="write the results to this file")
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    folder, out = load_folder(arguments.data), Path(arguments.out)
    rows = []
    for seed in range(arguments.seeds):
        start = backbone(out / f"backbone-{seed}", seed)
        for skip in SKIP:
            for method in METHODS:
                config = TrainConfig(
                    backbone=str(start), method=method, skip=skip, seed=seed, freeze="none",
                    epochs=arguments.epochs, lr_encoder=1e-3,
                )  # fmt: skip
                run = train(config, folder, out / f"{method}-{skip}-{seed}")
                result = sweep([run], folder, rounds=0)
                rows += [
                    {"skip": skip, "method": r.method, "seed": seed, "kept_layers": r.kept_layers,
                     "value": r.value, "ci_low": r.ci_low, "ci_high": r.ci_high}
                    for r in result.rows
                ]  # fmt: skip
    Console().print(_table(rows, arguments.seeds))
    if arguments.json:
        data = {"name": folder.root.name, "digest": folder.digest, "split": "test"}
        header = {"data": data, "epochs": arguments.epochs, "conformer": CONFORMER, **provenance()}
        write_json(arguments.json, {"header": header, "rows": rows})


def _table(rows: list[dict], seeds: int) -> Table:
    table = Table(title=f"accuracy (%), mean of {seeds} seeds, by kept layers")
    columns = sorted({row["kept_layers"] for row in rows})
    for name in ("method", "skip", *map(str, columns)):
        table.add_column(name)
    for method in METHODS:
        for skip in SKIP:
            mine = [r for r in rows if (r["method"], r["skip"]) == (method, skip)]
            values = [[r["value"] for r in mine if r["kept_layers"] == k] for k in columns]
            table.add_row(method, skip, *(f"{100 * sum(v) / len(v):.1f}" for v in values))
    return table


if __name__ == "__main__":
    main()
