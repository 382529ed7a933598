"""Selectors: the top k, from the valid frames alone, with a gradient that points the right way."""

from __future__ import annotations

import pytest
import torch

import sounding  # noqa: F401  (the package loads torch only when it is needed)
from sounding.policies import InputSelector, StaticScores, policy_from_config
from sounding.policies.masks import top_k_mask
from sounding.policies.pooling import pool


def selector(layers=6, width=8, seed=0):
    """An `InputSelector` whose choice really depends on its input."""
    torch.manual_seed(seed)
    made = InputSelector(width, layers, hidden=16)
    torch.nn.init.normal_(made.score.weight, std=2.0)
    torch.nn.init.normal_(made.budget.weight)
    return made.eval()


def test_top_k_keeps_the_highest_scores():
    scores = torch.tensor([[0.1, 0.9, -3.0, 0.5]])
    for k, expected in [(1, [1]), (2, [1, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3])]:
        assert top_k_mask(scores, torch.tensor([k]))[0].nonzero().flatten().tolist() == expected


def test_top_k_gives_a_tie_to_the_earlier_layer():
    for layers in (3, 12, 64):  # long rows take another path of the sort
        for k in range(1, layers + 1):
            mask = top_k_mask(torch.zeros(2, layers), torch.tensor([k, k]))
            assert mask.tolist() == [[i < k for i in range(layers)]] * 2


def test_top_k_takes_one_k_for_each_input_and_keeps_exactly_that_many():
    k = torch.arange(1, 13)
    assert top_k_mask(torch.randn(12, 12), k).sum(-1).tolist() == k.tolist()


def test_first_k_keeps_the_first_k():
    mask = StaticScores.first(5)(torch.randn(3, 7, 4), None, torch.tensor([1, 3, 5])).mask
    assert mask.int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_pooling_leaves_the_padding_out():
    features = torch.randn(3, 9, 8)
    lengths = [9, 4, 1]
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    padded = torch.where(mask[..., None], features, torch.full_like(features, 1e4))
    pooled = pool(padded, mask)
    for i, length in enumerate(lengths):
        torch.testing.assert_close(pooled[i : i + 1], pool(features[i : i + 1, :length], None))


def test_pooling_gives_mean_and_deviation():
    features = torch.tensor([[[1.0, 5.0], [3.0, 5.0]]])
    torch.testing.assert_close(pool(features, None), torch.tensor([[2.0, 5.0, 1.0, 1e-4]]))


def test_the_choice_does_not_see_what_stands_in_the_padding():
    chooser, features = selector(), torch.randn(4, 10, 8)
    mask = torch.arange(10) < torch.tensor([10, 6, 3, 1])[:, None]
    k = torch.tensor([2, 3, 1, 4])
    scores = chooser.scores(features, mask, k)
    for value in (0.0, 7.0, -1e3):
        padded = torch.where(mask[..., None], features, torch.full_like(features, value))
        assert torch.equal(chooser.scores(padded, mask, k), scores)


def test_the_choice_in_eval_is_deterministic_and_changes_nothing():
    chooser, features = selector(), torch.randn(5, 10, 8)
    before = {name: value.clone() for name, value in chooser.state_dict().items()}
    k = torch.tensor([1, 2, 3, 4, 5])
    masks = [chooser(features, None, k).mask for _ in range(5)]
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    assert all(torch.equal(value, before[name]) for name, value in chooser.state_dict().items())
    assert chooser(features, None, k).weight is None


def test_the_choice_depends_on_the_input_and_on_the_budget():
    chooser, features = selector(), 3 * torch.randn(20, 1, 8).expand(-1, 10, -1)
    masks = {k: chooser(features, None, torch.full((20,), k)).mask for k in (2, 3)}
    assert len({tuple(row) for row in masks[2].tolist()}) > 3
    nested = (masks[2] & masks[3]).sum(-1) == 2
    assert not nested.all()  # a choice for k + 1 is not bound to hold that for k


def test_training_explores_and_eval_does_not():
    chooser, features = selector(), torch.randn(1, 10, 8).expand(200, -1, -1)
    k = torch.full((200,), 2)
    assert len({tuple(row) for row in chooser(features, None, k).mask.tolist()}) == 1
    chooser.train()
    assert len({tuple(row) for row in chooser(features, None, k).mask.tolist()}) > 1


def test_training_gates_are_one_in_value_on_the_chosen_layers():
    chooser = selector().train()
    gates = chooser(torch.randn(4, 10, 8), None, torch.tensor([1, 2, 3, 6]))
    torch.testing.assert_close(gates.weight, gates.mask.float())
    assert gates.mask.sum(-1).tolist() == [1, 2, 3, 6]


def test_the_features_get_no_gradient_from_the_choice():
    features = torch.randn(4, 10, 8, requires_grad=True)
    gates = selector().train()(features, None, torch.full((4,), 2))
    gates.weight.square().sum().backward()
    assert features.grad is None


def test_standardization_is_learned_in_training_and_makes_features_of_any_scale_alike():
    chooser = selector().train()
    torch.manual_seed(0)
    for _ in range(200):
        chooser.scores(
            100 + 50 * torch.randn(16, 1, 8).expand(-1, 3, -1), None, torch.ones(16).long()
        )
    mean, deviation = chooser.center[:8], chooser.spread[:8]
    assert ((mean - 100).abs() < 20).all()
    assert ((deviation > 30) & (deviation < 70)).all()


def test_the_straight_through_gradient_finds_the_layer_that_helps():
    """A toy encoder: layer 2 of 4 moves towards the target, the others move away from it."""
    torch.manual_seed(0)
    chooser = InputSelector(4, 4, hidden=8).train()
    effect = torch.tensor([-1.0, -1.0, 1.0, -1.0])
    optimizer = torch.optim.Adam(chooser.parameters(), lr=0.02)
    features, k = torch.randn(64, 5, 4), torch.ones(64, dtype=torch.long)
    for _ in range(80):
        gates = chooser(features, None, k)
        loss = (1 - (gates.weight * effect).sum(-1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chosen = chooser.eval()(features, None, k).mask
    assert chosen[:, 2].float().mean() > 0.95


def test_the_straight_through_gradient_learns_a_choice_for_each_kind_of_input():
    """Inputs of one sign need layer 0, those of the other need layer 3."""
    torch.manual_seed(0)
    chooser = InputSelector(4, 4, hidden=8).train()
    optimizer = torch.optim.Adam(chooser.parameters(), lr=0.02)
    k = torch.ones(64, dtype=torch.long)
    for _ in range(200):
        sign = torch.randint(0, 2, (64,)) * 2.0 - 1
        features = sign[:, None, None] + 0.3 * torch.randn(64, 5, 4)
        needed = torch.where(sign > 0, 0, 3)
        gates = chooser(features, None, k)
        loss = (1 - gates.weight.gather(1, needed[:, None])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chosen = chooser.eval()(features, None, k).mask.float().argmax(-1)
    assert (chosen == needed).float().mean() > 0.95


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_selector_cast_with_its_model_still_chooses_and_trains(dtype):
    chooser = selector().to(dtype)
    features, k = torch.randn(4, 10, 8, dtype=dtype), torch.tensor([1, 2, 3, 4])
    assert chooser(features, None, k).mask.sum(-1).tolist() == [1, 2, 3, 4]
    assert chooser.scores(features, None, k).dtype == torch.float32  # the noise needs it
    chooser.train()(features, None, k).weight.sum().backward()
    assert chooser.score.weight.grad is not None


@pytest.mark.parametrize("made", [selector(), StaticScores(torch.tensor([0.3, -1.0, 2.0]))])
def test_a_selector_comes_back_from_its_config_and_weights(made):
    again = policy_from_config(made.config(), width=8, layers=made.config()["layers"])
    again.load_state_dict(made.state_dict())
    features, k = torch.randn(5, 10, 8), torch.tensor([1, 2, 3, 1, 2])
    masks = [chooser.eval()(features, None, k).mask for chooser in (made, again)]
    assert torch.equal(*masks)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"kind": "evil"},
        {"kind": "input"},
        {"kind": "input", "width": "many", "layers": 4},
        {"kind": "input", "width": 4, "layers": 4, "surprise": 1},
        {"kind": "static"},
        {"kind": "static", "layers": None},
        {"kind": "static", "layers": 5},
        {"kind": "input", "width": 5, "layers": 4},
        {"kind": "input", "width": 4, "layers": 4, "hidden": 10**9},
        {"kind": "gates", "width": 4, "layers": 4, "hidden": -1},
    ],
    ids=repr,
)
def test_a_damaged_config_is_refused(config):
    with pytest.raises(ValueError, match=r"unknown policy|settings of the selector"):
        policy_from_config(config, width=4, layers=4)
