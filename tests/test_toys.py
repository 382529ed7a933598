"""A policy, a method and a backbone that are defined here alone go all the way, as what ships does.

Nothing but the public registration is used: training, sweep, study, save and load, and export.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from corpora import clips
from tiny import inputs, make
from torch import nn
from transformers import ASTModel

import sounding
from sounding.data.folder import load_folder
from sounding.evaluation.sweep import sweep
from sounding.evaluation.table import markdown
from sounding.export import export
from sounding.registry import BACKBONES, METHODS, POLICIES
from sounding.runs.config import TrainConfig
from sounding.runs.run import load_run
from sounding.runtime import load as load_export
from sounding.study.compare import StudyConfig, compare
from sounding.training.loop import train

LOW, HIGH = 300, 2400


class LoudestFirst(sounding.Policy):
    """Loud clips keep the first k layers, and quiet ones the last k."""

    kind = "loudest-first"

    def __init__(self, layers: int, threshold: float = 1.0) -> None:
        super().__init__()
        self.layers, self.threshold = layers, threshold

    @classmethod
    def for_encoder(cls, width, layers):
        return cls(layers)

    def config(self):
        return {"kind": self.kind, "layers": self.layers, "threshold": self.threshold}

    def power(self, features):
        return features.square().mean((1, 2))

    def mask(self, features, k):
        place = torch.arange(self.layers)
        loud = (self.power(features) > self.threshold)[:, None]
        first, last = place < k[:, None], place >= self.layers - k[:, None]
        return (loud & first) | (~loud & last)  # ONNX Runtime has no `Where` of bool

    def forward(self, features, frame_mask, k):
        return sounding.policies.Gates(self.mask(features, k))

    def graph(self):
        return _Graph(self)


class _Graph(nn.Module):
    def __init__(self, policy):
        super().__init__()
        self.policy = policy

    def forward(self, state, k):
        return self.policy.mask(state, k)


class EveryDepth(sounding.Method):
    """Full depth and a random one in each step, with the policy above."""

    name = "every-depth"
    label = "every depth"
    color = "#123456"
    own_heads = True

    def policy(self, config, *, width, layers):
        return LoudestFirst(layers)

    def loss(self, run, batch, targets, step):
        k = int(step.rng.integers(1, run.dynamic.num_layers + 1))
        logits = [run.dynamic(**batch, budget=budget).logits for budget in (k, None)]
        return run.task.losses(torch.stack(logits), None, targets).mean()


@pytest.fixture(scope="module", autouse=True)
def _registered():
    """The registries as they were, after these tests."""
    before = [(one, dict(one._values)) for one in (BACKBONES, METHODS, POLICIES)]
    sounding.register_policy(LoudestFirst)
    sounding.register_method(EveryDepth())
    yield
    for registry, values in before:
        registry._values = values


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of tones at two pitches."""
    rng = np.random.default_rng(0)

    def make(index):
        pitch = (LOW, HIGH)[index % 2]
        tone = 0.1 * np.sin(2 * np.pi * pitch * np.arange(8000) / 16000)
        label = "low" if pitch == LOW else "high"
        return tone + rng.normal(0, 0.02, len(tone)), {"label": label}

    return clips(tmp_path_factory.mktemp("tones"), {"train": 32, "validation": 8, "test": 12}, make)


@pytest.fixture(scope="module")
def settings(whisper):
    return {"backbone": str(whisper), "batch_size": 8, "precision": "fp32", "lr_encoder": 2e-3}


@pytest.fixture(scope="module")
def run(data, settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "toy"
    settings = {**settings, "freeze": "none", "lr_head": 5e-3, "lr_warmup": 0.0}
    config = TrainConfig(**settings, method="every-depth", epochs=20)
    train(config, load_folder(data), out)
    return load_run(out)


def test_a_method_with_a_policy_of_its_own_is_trained_swept_and_named(run, data):
    assert type(run.dynamic.policy) is LoudestFirst
    result = sweep([run], load_folder(data), rounds=0)
    values = {row.kept_layers: row.value for row in result.rows}
    assert {row.method for row in result.rows} == {"every-depth"}
    assert values[4] > 0.9
    assert all(row.executed_layers == row.kept_layers for row in result.rows)
    assert "| every depth | 4 |" in markdown(result)


def test_a_policy_of_its_own_chooses_alone_as_in_a_batch(run):
    rng = np.random.default_rng(0)
    clips = [(9 * (i % 2) * rng.normal(size=(80, 16))).astype(np.float32) for i in range(4)]
    every = torch.ones(1, 4, dtype=torch.bool)
    power = run.dynamic.policy.power(run.dynamic.forward_masks(run.collate(clips), every).features)
    run.dynamic.policy.threshold = float(power.mean())
    together = run.dynamic(**run.collate(clips), budget=2).executed_layers
    assert len({tuple(row) for row in together.tolist()}) == 2
    for clip, ran in zip(clips, together, strict=True):
        alone = run.dynamic(**run.collate([clip]), budget=2).executed_layers[0]
        assert torch.equal(alone, ran)


def test_a_policy_of_its_own_is_saved_and_loaded(run, tmp_path):
    run.dynamic.policy.threshold = 0.5
    run.dynamic.save_pretrained(tmp_path / "model")
    run.dynamic.policy.threshold = 1.0
    again = sounding.load(tmp_path / "model")
    assert type(again.policy) is LoudestFirst
    assert again.policy.threshold == 0.5


def test_a_policy_of_its_own_is_exported_and_the_export_held_against_torch(run, tmp_path):
    exported = export(run, tmp_path / "toy.onnx")
    assert exported.difference.other_layers == 0
    model = load_export(tmp_path / "toy.onnx")
    assert model.meta.selector == "loudest-first"
    samples = 0.3 * np.random.default_rng(0).normal(size=8000).astype(np.float32)
    assert len(model.run(samples, 2).executed_layers) == 2


def test_a_method_of_its_own_is_compared_with_what_ships(data, settings, tmp_path):
    variants = ("full", "every-depth", "input")
    study = StudyConfig(settings={**settings, "epochs": 1}, variants=variants, seeds=(0,))
    assert compare(study, [data], tmp_path)
    measured = json.loads((tmp_path / data.name / "every-depth-0" / "measured.json").read_text())
    rows = measured["sets"]["test"]["rows"]
    assert [row["budget"] for row in rows if row["rule"] == "exact"] == [1, 2, 3, 4]
    assert "every depth" in (tmp_path / "report.html").read_text()


class Unheard(ASTModel):
    """An encoder that nobody has heard of."""


class Mine(type(BACKBONES["AST"])):
    """The family of it."""

    name = "Mine"
    base = "Unheard"


def test_a_backbone_of_its_own_is_found_wrapped_and_drops_layers():
    sounding.register_backbone(Mine())
    model = Unheard(make("ast").config).eval()
    dynamic = sounding.wrap(model, "loudest-first")
    assert dynamic.backbone.name == "Mine"
    batch = inputs(make("ast"))
    assert dynamic(**batch, budget=2).executed_layers.sum(1).tolist() == [2, 2, 2]
    full = dynamic(**batch).last_hidden_state
    assert torch.equal(full, sounding.unwrap(dynamic)(**batch).last_hidden_state)


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(ValueError, match=r"loudest-first.*already"):
        sounding.register_policy(LoudestFirst)
    with pytest.raises(ValueError, match=r"every-depth.*already"):
        sounding.register_method(EveryDepth())
