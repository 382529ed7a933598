"""Several labels a clip: training, average precision, and the command line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy

from sounding.data.folder import load_folder
from sounding.evaluation.classify import classify
from sounding.evaluation.sweep import sweep
from sounding.runs.config import TrainConfig
from sounding.runs.run import load_run
from sounding.statistics import average_precision, precision_interval
from sounding.tasks.base import Target
from sounding.tasks.tags import Tags
from sounding.training.loop import train


def test_average_precision_of_known_rankings():
    wanted = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=bool)
    scores = np.array([[0.9, 0.1, 0], [0.8, 0.9, 0], [0.7, 0.2, 0], [0.1, 0.3, 0]])
    # first label: right at rank 1 and 3; second: at rank 1; the third is nowhere
    assert average_precision(scores, wanted) == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    mean, low, high = precision_interval(scores, wanted)
    assert low <= mean <= high
    with pytest.raises(ValueError, match="a clip with a label"):
        precision_interval(scores, np.zeros_like(wanted))


def test_clips_and_classes_of_one_score_have_no_order():
    scores = np.array([[0.5, 0.5], [0.5, 0.1], [0.5, 0.9], [0.2, 0.5]])
    wanted = np.array([[1, 0], [0, 1], [0, 1], [1, 1]], dtype=bool)
    # 1 of 3 at 0.5 and 2 of 4 at 0.2; 1 of 1, 2 of 3 and 3 of 4
    expected = ((1 / 3 + 2 / 4) / 2 + (1 + 2 / 3 + 3 / 4) / 3) / 2
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]):
        assert average_precision(scores[order], wanted[order]) == pytest.approx(expected)
    task, targets = Tags(["a", "b", "c"]), [Target((0,), "a"), Target((1,), "b"), Target((2,), "c")]
    errors = task.errors(torch.zeros(1, 3, 3), None, targets)
    torch.testing.assert_close(errors[0], torch.full((3,), 2 / 3))


def test_losses_errors_and_answers_of_tags():
    task = Tags(["a", "b", "c"])
    targets = [Target((0, 2), "a;c"), Target((1,), "b")]
    logits = torch.tensor([[[3.0, 1.0, -2.0], [-1.0, -2.0, -3.0]]])
    losses = task.losses(logits, None, targets)
    wanted = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    for row in range(2):
        torch.testing.assert_close(
            losses[0, row], binary_cross_entropy(logits[0, row].sigmoid(), wanted[row])
        )
    # the right ones at ranks 1 and 3, and at rank 2
    torch.testing.assert_close(
        task.errors(logits, None, targets)[0], torch.tensor([1 - (1 + 2 / 3) / 2, 0.5])
    )
    assert task.decode(logits[0], None) == ["a;b", "a"]
    assert task.count(["a;b", "a"], targets) == [2, 2]
    assert task.distances(logits, logits[0], None, targets).abs().max() < 1e-6
    assert task.distances(logits, -logits[0], None, targets).min() > 0.1


@pytest.mark.parametrize("method", ["input", "early-exit"])
def test_a_run_finds_several_labels_at_once(method, chords, whisper, tmp_path):
    folder = load_folder(chords)
    config = TrainConfig(
        backbone=str(whisper), method=method, epochs=20, batch_size=8, precision="fp32",
        lr_encoder=2e-3, lr_head=5e-3,
    )  # fmt: skip
    train(config, folder, tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.dynamic.config.problem_type == "multi_label_classification"
    result = sweep([run], folder, rounds=0)
    assert {row.metric for row in result.rows} == {"map"}
    full = next(row for row in result.rows if row.kept_layers == 4 and row.method == method)
    assert full.value > 0.8  # two thirds by chance
    clip = folder.split("test")[0]
    (answer,) = classify(run, [clip.path], 2)
    assert set(answer.label.split(";")) <= {"low", "high"}
