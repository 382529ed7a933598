"""A head for each number of kept layers: who answers, and that full depth stays untouched."""

from __future__ import annotations

import pytest
import tiny
import torch

import sounding

NAMES = ("whisper-classification", "wav2vec2-post", "hubert-pre", "ast", "moonshine-classification")


def with_exits(name):
    dynamic = sounding.wrap(tiny.make(name), exits=True)
    with torch.no_grad():
        for parameter in dynamic.exits.parameters():
            parameter.normal_(std=0.3)
    return dynamic


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_full_depth_is_bit_identical_and_below_it_the_exits_answer(name):
    plain = tiny.make(name)
    dynamic = with_exits(name)
    batch = tiny.inputs(plain)
    assert dynamic(**batch).logits.equal(plain(**batch).logits)
    shared = sounding.wrap(tiny.make(name))
    states, _ = shared.layer_outputs(batch)
    for k in (1, 2, 3):
        mask = torch.arange(4) < k
        answer = dynamic(**batch, mask=mask).logits
        state, frame_mask = states[k - 1]
        torch.testing.assert_close(answer, dynamic.exits(state, frame_mask, k))
        assert not torch.allclose(answer, shared(**batch, mask=mask).logits)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_mixed_batch_and_a_tree_of_masks_equal_one_at_a_time(name):
    dynamic = with_exits(name)
    batch = tiny.inputs(dynamic.model, batch=4)
    budgets = [1, 4, 2, 1]
    mixed = dynamic(**batch, budget=budgets)
    masks = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1]], dtype=torch.bool)
    tree = dynamic.forward_masks(batch, masks).logits
    for row, k in enumerate(budgets):
        alone = {key: value[row : row + 1] for key, value in batch.items()}
        torch.testing.assert_close(mixed.logits[row], dynamic(**alone, budget=k).logits[0])
    for mask, logits in zip(masks, tree, strict=True):
        assert logits.equal(dynamic(**batch, mask=mask).logits)


@torch.no_grad()
def test_padding_never_reaches_an_exit():
    dynamic = with_exits("wav2vec2-post")
    batch = tiny.inputs(dynamic.model, lengths=[4000, 2500, 3100])
    together = dynamic(**batch, budget=2).logits
    for row, length in enumerate([4000, 2500, 3100]):
        alone = {"input_values": batch["input_values"][row : row + 1, :length]}
        torch.testing.assert_close(
            together[row], dynamic(**alone, budget=2).logits[0], rtol=1e-4, atol=1e-4
        )


@torch.no_grad()
def test_a_mean_budget_answers_by_the_exit_where_an_input_stopped():
    dynamic = with_exits("whisper-classification")
    batch = tiny.inputs(dynamic.model, batch=6)
    sure = dynamic(**batch, budget=1).logits.softmax(-1).amax(-1)
    dynamic.mean_budgets = [(1.0, 0.0), (2.0, float(sure.median())), (4.0, 1.1)]
    out = dynamic(**batch, budget="mean:2")
    depth = out.executed_layers.sum(1)
    assert depth.min() == 1 < depth.max()
    for row, k in enumerate(depth.tolist()):
        torch.testing.assert_close(out.logits[row], dynamic(**batch, budget=k).logits[row])


def test_exits_survive_saving_and_go_with_the_wrapper(tmp_path):
    dynamic = with_exits("whisper-classification").eval()
    batch = tiny.inputs(dynamic.model)
    dynamic.save_pretrained(tmp_path / "d")
    again = sounding.load(tmp_path / "d")
    with torch.no_grad():
        expected = dynamic(**batch, budget=2).logits
        assert again(**batch, budget=2).logits.equal(expected)
    names = set(sounding.unwrap(again).state_dict())
    assert names == set(tiny.make("whisper-classification").state_dict())


def test_exits_train_with_the_gradient_of_their_budget_only():
    dynamic = with_exits("whisper-classification").train()
    batch = tiny.inputs(dynamic.model)
    dynamic(**batch, mask=torch.tensor([True, False, True, False])).logits.sum().backward()
    trained = [any(p.grad is not None for p in head.parameters()) for head in dynamic.exits.heads]
    assert trained == [False, True, False]


def test_exits_of_other_than_a_classifier_are_refused():
    with pytest.raises(ValueError, match="or for CTC, not of a Wav2Vec2Model"):
        sounding.wrap(tiny.make("wav2vec2-base-model"), exits=True)
