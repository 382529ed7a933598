"""What a run answers to many clips, and the thresholds that make mean budgets of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_tree import count_runs

from sounding.data.folder import load_folder
from sounding.policies.confidence import stops
from sounding.policies.masks import every_mask, first_masks
from sounding.runs.calibrate import depth_table, gate_logits, table
from sounding.runs.config import TrainConfig
from sounding.runs.mask_outputs import depths, mask_outputs
from sounding.runs.predict import predict_logits
from sounding.training.loop import train

MEANS = [1 + step / 4 for step in range(13)]  # of 4 layers


@pytest.fixture(scope="module")
def folder(tones):
    return load_folder(tones)


@pytest.fixture(scope="module")
def runs(folder, whisper, tmp_path_factory):
    """Finished runs by method, as well trained as tiny ones are."""
    root = tmp_path_factory.mktemp("runs")
    base = TrainConfig(backbone=str(whisper), epochs=3, batch_size=8, precision="fp32")
    configs = {
        "input": replace(base, method="input"),
        "late": replace(base, method="input", selector_after=1, skip="adapter"),
        "static": replace(base, method="static"),
        "full": replace(base, method="full", epochs=0.2),
        "early-exit": replace(base, method="early-exit"),
        "i3d": replace(base, method="i3d"),
        "local": replace(base, method="i3d", gates="local", epochs=0.2),
    }
    return {name: train(config, folder, root / name) for name, config in configs.items()}


@pytest.fixture(scope="module")
def clips(runs, folder):
    return runs["input"].read(folder.split("validation"), "clips")


# --- thresholds -----------------------------------------------------------------------------


def test_a_clip_stops_after_the_first_layer_that_is_sure():
    sure = torch.tensor([[0.9, 0.2, 0.5, 0.1], [0.1, 0.6, 0.5, 0.2], [0.1, 0.9, 0.9, 0.3]])
    assert stops(sure, 0.5).tolist() == [1, 2, 1, 4]  # reaching it is enough
    assert stops(sure, 0.51).tolist() == [1, 2, 3, 4]
    assert stops(sure, 0.0).tolist() == [1] * 4
    assert stops(sure, 1.1).tolist() == [4] * 4
    assert stops(torch.zeros(0, 3), 0.5).tolist() == [1] * 3  # of one layer


@pytest.mark.parametrize("kind", ["rising", "any", "ties", "one clip", "all alike"])
def test_calibrated_thresholds_give_the_means_that_were_asked_for(kind):
    torch.manual_seed(0)
    clips = 1 if kind == "one clip" else 40
    sure = torch.rand(3, clips)
    if kind == "rising":
        sure = sure.sort(0).values
    elif kind == "ties":
        sure = (sure * 4).round() / 4
    elif kind == "all alike":
        sure = torch.full((3, clips), 0.5)
    found = depth_table(sure, 4)
    assert [mean for mean, _ in found] == MEANS
    thresholds = [threshold for _, threshold in found]
    assert thresholds == sorted(thresholds)
    got = np.array([float(stops(sure, t).float().mean()) for t in thresholds])
    assert (np.diff(got) >= 0).all()
    assert got[0] == 1
    assert got[-1] == 4
    distance = np.abs(got - MEANS)
    if kind == "rising":  # a clip moves by a layer at a time
        assert distance.max() <= 1 / (2 * clips) + 1e-6
    if kind == "any":
        assert distance.max() <= 3 / (2 * clips) + 1e-6
    cuts = [-1, *(sure.flatten().unique() + 1e-6).tolist(), 2]  # in no case another is nearer
    means = np.array([float(stops(sure, cut).float().mean()) for cut in cuts])
    best = np.abs(means[:, None] - np.array(MEANS)).min(0)
    np.testing.assert_allclose(distance, best, atol=1e-5)


def test_thresholds_of_gates_fall_where_means_rise():
    torch.manual_seed(0)
    logits = torch.randn(50, 4)

    def mean_at(threshold):
        return float((logits > threshold).sum(1).clamp(min=1).float().mean())

    found = table(mean_at, logits.flatten(), 4, rising=False)
    thresholds = [threshold for _, threshold in found]
    assert thresholds == sorted(thresholds, reverse=True)
    got = [mean_at(threshold) for threshold in thresholds]
    assert got == pytest.approx(MEANS, abs=1 / 100 + 1e-6)


def test_every_mask_is_there_once_and_too_many_are_none():
    masks = every_mask(4)
    assert masks.shape == (15, 4)
    assert masks.dtype == torch.bool
    assert len(masks.unique(dim=0)) == 15
    assert masks.any(1).all()
    assert every_mask(10) is not None
    assert every_mask(11) is None
    assert every_mask(4, limit=14) is None


# --- answers --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["input", "late"])
def test_answers_are_those_of_each_clip_alone_in_its_place(runs, folder, clips, name):
    run = runs[name]
    masks = every_mask(4)
    targets = run.task.targets(folder, folder.split("validation"))
    labels = torch.tensor([target.ids[0] for target in targets])
    found = mask_outputs(run, clips, masks, targets)
    width = run.dynamic.base.config.hidden_size
    assert {value.shape for value in found[:4]} == {(15, 8)}
    assert set(found.errors.flatten().tolist()) == {0, 1}
    assert found.pooled.shape == (8, 2 * width)
    for i, clip in enumerate(clips):
        batch = run.collate([clip])
        for index, mask in enumerate(masks):
            with torch.no_grad():
                alone = run.dynamic(**batch, mask=mask).logits
            log_p = alone[0].log_softmax(-1)
            expected = (-log_p[labels[i]], log_p.exp().max(), (log_p * log_p.exp()).sum())
            got = (found.losses, found.confidence, found.certainty)
            for values, one in zip(got, expected, strict=True):
                torch.testing.assert_close(values[index, i], one, rtol=1e-4, atol=1e-4)
            assert bool(found.errors[index, i]) == bool(log_p.argmax() != labels[i])
    scores = run.dynamic.policy.scores_of(found.pooled, torch.full((8,), 2))
    for i, clip in enumerate(clips):
        ran = run.dynamic(**run.collate([clip]), budget=2).executed_layers[0]
        assert ran.nonzero().flatten().tolist() == sorted(scores[i].topk(2).indices.tolist())


@pytest.mark.parametrize("name", ["input", "early-exit", "full"])
def test_the_answers_at_each_depth_are_those_of_predict(runs, clips, name):
    run = runs[name]
    found = depths(run, clips)
    rows, runs_of = count_runs(run.dynamic)
    again = depths(run, clips)
    assert runs_of == [1, 1, 1, 1]
    assert rows == [8] * 4
    assert torch.equal(found.confidence, again.confidence)
    batch = run.collate(clips)
    for depth in (1, 2, 3, 4):
        if name == "input":
            with torch.no_grad():
                logits = run.dynamic(**batch, mask=first_masks(4)[depth - 1]).logits
        else:
            logits, _ = predict_logits(run, batch, depth)
        sure = logits.softmax(-1).amax(-1)
        torch.testing.assert_close(found.confidence[depth - 1], sure, rtol=1e-4, atol=1e-4)


# --- mean budgets of runs -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["input", "late", "early-exit", "i3d"])
def test_the_means_are_those_that_run(runs, clips, name):
    """On the very clips that the thresholds come from, alone as in a batch."""
    run = runs[name]
    assert [mean for mean, _ in run.dynamic.mean_budgets] == MEANS
    assert run.dynamic.mean_budgets == run.method.calibrate(run, clips)
    batch = run.collate(clips)
    rows, _ = count_runs(run.dynamic)
    for mean in (1, 1.5, 2, 2.5, 3, 4):
        rows[:] = [0] * 4
        with torch.no_grad():
            ran = run.dynamic(**batch, budget=f"mean:{mean}").executed_layers
        assert rows == ran.sum(0).tolist()
        assert sum(rows) / len(clips) == pytest.approx(mean, rel=0.1)
    for i, clip in enumerate(clips):
        alone = run.dynamic(**run.collate([clip]), budget="mean:2.5").executed_layers
        together = run.dynamic(**batch, budget="mean:2.5").executed_layers
        assert torch.equal(alone[0], together[i])


def test_the_gates_are_calibrated_by_their_logits(runs, clips):
    run = runs["i3d"]
    logits = gate_logits(run, clips)
    assert logits.shape == (8, 4)
    best = logits == logits.amax(1, keepdim=True)
    for mean, threshold in run.dynamic.mean_budgets[::4]:
        ran = run.dynamic(**run.collate(clips), budget=f"mean:{mean}").executed_layers
        assert torch.equal(ran, (logits > threshold) | best)


@pytest.mark.parametrize("name", ["static", "full", "local"])
def test_a_run_that_has_nothing_to_decide_by_has_no_mean_budgets(runs, clips, name):
    run = runs[name]
    assert run.dynamic.mean_budgets == []
    with pytest.raises(ValueError, match="no calibrated mean budgets"):
        run.dynamic(**run.collate(clips), budget="mean:2")
