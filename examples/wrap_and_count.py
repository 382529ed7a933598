"""Wrap a `transformers` model, and count the layers that ran at several budgets.

python examples/wrap_and_count.py
python examples/wrap_and_count.py --model openai/whisper-base
"""

from __future__ import annotations

import argparse
import warnings

import torch
from transformers import (
    AutoModelForAudioClassification,
    WhisperConfig,
    WhisperForAudioClassification,
)

import sounding

BUDGETS = (1, 3, "50%", [1, 2, 3, None], None)  # a list has one entry for each input


def tiny_model() -> WhisperForAudioClassification:
    """A Whisper of six layers with random weights: nothing to download."""
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=64, encoder_layers=6, encoder_attention_heads=4, encoder_ffn_dim=128,
        num_mel_bins=16, max_source_positions=60, classifier_proj_size=32, num_labels=5,
    )  # fmt: skip
    return WhisperForAudioClassification(config)


def main() -> None:
    """Print, for each budget, which layers ran for each of four inputs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a model for audio classification: a path or a hub id")
    parser.add_argument("--policy", default="input", help="input, first, ... (input)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of the inputs (1)")
    arguments = parser.parse_args()

    name = arguments.model
    model = AutoModelForAudioClassification.from_pretrained(name) if name else tiny_model()
    dynamic = sounding.wrap(model.eval(), policy=arguments.policy)
    torch.manual_seed(1)
    batch = dynamic.backbone.example(dynamic.base, 4, arguments.seconds)  # random inputs
    warnings.simplefilter("ignore", category=UserWarning)  # that it was not trained for this
    for budget in BUDGETS:
        with torch.no_grad():
            out = dynamic(**batch, budget=budget)
        layers = ["".join("x" if ran else "." for ran in one) for one in out.executed_layers]
        print(f"budget {budget!s:>18}: {'  '.join(layers)}")

    model = sounding.unwrap(dynamic)
    print(f"and back: {type(model).__name__}")


if __name__ == "__main__":
    main()
