"""The second stage: a selector fitted to searched losses, and libraries of masks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import sounding
from sounding.data.folder import load_folder
from sounding.policies.selectors import InputSelector, LibrarySelector, selector_from_config
from sounding.runs.config import TrainConfig
from sounding.runs.run import load_run, new_run
from sounding.training.fit import _descend, complementary, fit_selector
from sounding.training.loop import train

MASKS = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.bool)


@pytest.mark.parametrize("kind", [InputSelector, LibrarySelector])
def test_a_selector_learns_which_mask_suits_which_input(kind):
    """Two kinds of inputs, two masks, each good for one kind."""
    torch.manual_seed(0)
    side = torch.arange(64) % 2
    pooled = torch.randn(64, 16) + 3 * side[:, None]
    losses = torch.stack([side.float(), 1 - side.float()], dim=1)
    selector = kind(8, 4, 16) if kind is InputSelector else kind(8, 4, 16, size=2)
    if kind is LibrarySelector:
        selector.library[2] = MASKS
    _descend(selector, pooled, {2: (MASKS, losses)})
    selector.eval()
    state = pooled.view(64, 2, 8)[:, :1].repeat(1, 5, 1)  # only its pooling matters here
    budget = torch.full((64,), 2)
    scores = selector.scores_of(pooled, budget)
    mask = sounding.policies.selectors.top_k_mask(scores, budget)
    assert (mask == MASKS[side]).all(1).float().mean() > 0.95
    assert selector(state, None, budget).mask.sum(1).eq(2).all()


def test_a_selector_is_fitted_to_a_single_clip(whisper, tones):
    """Whose features deviate by nothing, not by what is no number."""
    folder = load_folder(tones)
    config = TrainConfig(backbone=str(whisper), selector_fit="search")
    run = new_run(config, list(folder.labels), {})
    clips = folder.split("train")[:1]
    fit_selector(run, run.read(clips, "read"), run.task.targets(folder, clips))
    for name, value in run.dynamic.selector.state_dict().items():
        assert value.isfinite().all(), name


def test_complementary_masks_cover_what_the_best_one_misses():
    losses = torch.tensor([[0.1, 0.1, 0.1, 9], [0.2, 0.2, 0.2, 8.9], [5, 5, 5, 0.0]])
    assert complementary(losses, torch.arange(3), 2).tolist() == [0, 2]
    assert complementary(losses, torch.arange(2), 2).tolist() == [0, 1]
    assert complementary(losses, torch.tensor([1]), 3).tolist() == [1, 1, 1]


def test_a_library_survives_its_state(tmp_path):
    selector = LibrarySelector(8, 4, 16, size=3, after=1)
    selector.library[2, 1] = MASKS[0]
    again = selector_from_config(selector.config(), width=8, layers=4)
    again.load_state_dict(selector.state_dict())
    assert again.library.equal(selector.library)
    assert (again.size, again.after) == (3, 1)
    selector.fall_back(2, MASKS[0])
    gates = selector(torch.randn(5, 3, 8), None, torch.full((5,), 2))
    assert (gates.mask == MASKS[0]).all()


@pytest.mark.parametrize("kind", ["search", "library"])
@pytest.mark.parametrize("after", [0, 1])
def test_a_run_with_a_second_stage(kind, after, whisper, tones, tmp_path):
    config = TrainConfig(
        backbone=str(whisper), epochs=1, batch_size=8, selector_fit=kind, selector_after=after
    )
    folder = load_folder(tones)
    run = train(config, folder, tmp_path / "run")
    assert isinstance(run.dynamic.selector, LibrarySelector if kind == "library" else InputSelector)
    again = load_run(tmp_path / "run")
    batch = again.collate(again.read(folder.split("test"), "read"))
    for k in (1, 2, 3):
        out = again.dynamic(**batch, budget=k)
        assert out.executed_layers.sum(1).eq(k).all()
        assert out.executed_layers[:, :after].all()
        assert out.logits.equal(run.dynamic(**batch, budget=k).logits)
    second = train(replace(config), folder, tmp_path / "again")
    for name, value in second.dynamic.selector.state_dict().items():
        assert value.equal(run.dynamic.selector.state_dict()[name]), name
