"""Train a dynamic model with `transformers.Trainer`, at another depth in each step.

python examples/train_with_trainer.py
python examples/train_with_trainer.py --backbone facebook/wav2vec2-base --data DIR --steps 2000

Needs `pip install accelerate`, as `Trainer` does. Without `--backbone` the model is tiny and begins
with random weights, and the clips are tones. `sounding train` does more: methods that learn which
layers to keep for an input, and trainings that go on bit for bit.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train_and_sweep import make_backbone, make_tones
from transformers import (
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging

import sounding
from sounding.data.corpora import open_corpus
from sounding.data.features import collate, extractor_layout, load_features


class AnyDepth(Trainer):
    """A trainer that draws the number of layers anew in each step; the model takes it by name."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], **more: Any) -> Any:
        """Return the loss at a random depth in training, and at the full one in evaluation."""
        layers = self.model.num_layers
        budget = int(torch.randint(1, layers + 1, ())) if model.training else layers
        return super().compute_loss(model, {**inputs, "budget": budget}, **more)


def clips_of(data: Path | str, split: str, extractor: Any) -> list[dict[str, Any]]:
    """Return the features and the label of each clip of a split."""
    folder = open_corpus(data)
    clips = folder.split(split)
    features = load_features(clips, extractor, max_seconds=30.0)
    labels = [folder.label_index(clip) for clip in clips]
    return [{"features": f, "labels": label} for f, label in zip(features, labels, strict=True)]


def main() -> None:
    """Make what is not given, train, and print the accuracy at each depth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/trainer", type=Path, help="directory for all of it")
    parser.add_argument("--data", help="clips of yours, with labels (tones)")
    parser.add_argument("--backbone", help="a path or a hub id (tiny, random weights)")
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    out = arguments.out
    data = arguments.data or make_tones(out / "data", quick=True)
    path = arguments.backbone or make_backbone(out / "backbone")
    extractor = AutoFeatureExtractor.from_pretrained(path)
    train, test = (clips_of(data, split, extractor) for split in ("train", "test"))

    labels = len({clip["labels"] for clip in train})
    model = AutoModelForAudioClassification.from_pretrained(path, num_labels=labels)
    dynamic = sounding.wrap(model, "first", exits=True)  # a head for each number of layers

    def batch(clips: list[dict[str, Any]]) -> dict[str, Any]:
        made = collate([clip["features"] for clip in clips], *extractor_layout(extractor))
        return {**made, "labels": torch.tensor([clip["labels"] for clip in clips])}

    def accuracy(found: EvalPrediction) -> dict[str, float]:
        return {"accuracy": float(np.mean(found.predictions.argmax(-1) == found.label_ids))}

    settings = TrainingArguments(
        str(out / "trainer"), max_steps=arguments.steps, per_device_train_batch_size=16,
        learning_rate=5e-5 if arguments.backbone else 2e-3, seed=0, report_to=[],
        save_strategy="no", disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    trainer = AnyDepth(
        dynamic, settings, data_collator=batch, train_dataset=train, eval_dataset=test,
        compute_metrics=accuracy,
    )  # fmt: skip
    trainer.train()
    print(f"full depth: {trainer.evaluate()['eval_accuracy']:.0%} of the test clips are right")

    dynamic.eval().cpu()
    for k in range(1, dynamic.num_layers + 1):
        with torch.inference_mode():
            inputs = batch(test)
            wanted = inputs.pop("labels")
            answered = dynamic(**inputs, budget=k)
        right = float((answered.logits.argmax(-1) == wanted).float().mean())
        ran = sorted({int(count) for count in answered.executed_layers.sum(1)})
        print(f"budget {k}: {right:.0%} right, layers that ran: {ran}")
    dynamic.save_pretrained(out / "model")
    print(f'Next: sounding.load("{out / "model"}")')


if __name__ == "__main__":
    main()
