"""Tiny runs to export, of several families, policies and skip paths."""

from __future__ import annotations

import numpy as np
import tiny
import torch
import transformers as t

import sounding
from sounding.data.text import build_tokenizer
from sounding.export.validate import sound
from sounding.policies import GateSelector, InputSelector
from sounding.runs.config import TrainConfig
from sounding.runs.run import Run

RATE, LAYERS = 16000, 4
LABELS = ["a", "b", "c", "d", "e"]
TOKENS = ["<pad>", "<unk>", "▁", *"abcdefghi"]
STOPS = [(1.0, 0.2), (2.0, 0.35), (3.0, 0.5), (4.0, 1.1)]  # confidences
YESES = [(1.0, 0.2), (2.0, 0.75), (3.0, 0.9), (4.0, 1.1)]  # confidences of the likeliest tag
GATES = [(1.0, 0.9), (2.0, 0.2), (4.0, -9.0)]  # logits of gates
WHISPER = t.WhisperFeatureExtractor(feature_size=16, chunk_length=1)
WAVE = t.Wav2Vec2FeatureExtractor(do_normalize=True)
BANK = t.ASTFeatureExtractor(
    num_mel_bins=tiny.AST["num_mel_bins"], max_length=tiny.AST["max_length"]
)


def fallen_back(selector):
    selector.fall_back(2, torch.tensor([1, 0, 0, 1], dtype=torch.bool))
    return selector


# name -> (model, features, selector, skip path, exits, mean budgets)
CASES = {
    "whisper": (
        "whisper-classification", WHISPER, lambda: InputSelector(32, LAYERS, hidden=8),
        "adapter", True, STOPS,
    ),
    "moonshine": (
        "moonshine-classification", WAVE,
        lambda: fallen_back(InputSelector(32, LAYERS, hidden=8, after=1)),
        "identity", True, STOPS,
    ),
    "ctc": (
        "moonshine-ctc", WAVE, lambda: InputSelector(32, LAYERS, hidden=8), "adapter", True, STOPS,
    ),
    "wav2vec2": (
        "wav2vec2-post", WAVE, lambda: fallen_back(InputSelector(32, LAYERS, hidden=8)),
        "norm", False, [],
    ),
    "ast": ("ast", BANK, lambda: InputSelector(32, LAYERS, hidden=8), "adapter", True, STOPS),
    "tags": ("ast", BANK, lambda: InputSelector(32, LAYERS, hidden=8), "identity", True, YESES),
    "wavlm": ("wavlm-pre", WAVE, lambda: GateSelector(32, LAYERS), "identity", False, GATES),
}  # fmt: skip


def make_run(case, method="input"):
    name, extractor, selector, skip, exits, means = CASES[case]
    torch.manual_seed(0)
    model = tiny.make(name.replace("wavlm-pre", "wavlm-post"))
    dynamic = sounding.wrap(model, selector(), skip=skip, exits=exits).eval()
    with torch.no_grad():
        for part in (dynamic.policy, dynamic.skip, dynamic.exits):
            for parameter in [] if part is None else part.parameters():
                parameter.normal_(std=0.5)
    dynamic.mean_budgets = means
    info = {"labels": LABELS, "data": {"name": "made up", "digest": "abc"}}
    run = Run(TrainConfig(backbone="whisper-tiny.en", method=method), dynamic, extractor, info)
    if case == "tags":
        model.config.problem_type = "multi_label_classification"
        run.info["task"] = "tags"
    if case == "ctc":
        run.info |= {"labels": TOKENS, "task": "text"}
        run.tokenizer = build_tokenizer(["abcdefghi"])
    return run


def clip(seconds, seed=0):
    """Another sound for each seed."""
    noise = np.random.default_rng(seed).normal(size=int(seconds * RATE)).astype(np.float32)
    return sound(seconds, RATE) + np.float32(0.01) * noise


def close(got, expected):
    """Whether logits are equal but for float noise."""
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()
