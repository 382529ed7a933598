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


# --- the loss is that of the head that answers -----------------------------------------------

LABELS = torch.tensor([0, 3, 1])
TEXTS = torch.tensor([[3, 4, 4], [5, -100, -100], [6, 2, -100]])
CTC_NAMES = ("wav2vec2-pre", "hubert-post", "moonshine-ctc", "parakeet-ctc")


@pytest.mark.parametrize("budget", [1, 3, [1, 4, 2], [4, 4, 1]])
@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_labels_is_that_of_the_logits_at_every_budget(name, budget):
    dynamic = with_exits(name)
    out = dynamic(**tiny.inputs(dynamic.model), labels=LABELS, budget=budget)
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(out.logits, LABELS))
    own = dynamic(**tiny.inputs(dynamic.model), labels=LABELS)
    assert not torch.allclose(out.loss, own.loss)


@pytest.mark.parametrize("name", [*NAMES, *CTC_NAMES])
def test_at_full_depth_the_loss_is_that_of_the_plain_model_bit_for_bit(name):
    plain, dynamic = tiny.make(name), with_exits(name)
    labels = LABELS if name in NAMES else TEXTS
    lengths = [96, 72, 80] if name == "parakeet-ctc" else None  # its loss needs a mask
    batch = tiny.inputs(plain, lengths=lengths)
    assert dynamic(**batch, labels=labels).loss.equal(plain(**batch, labels=labels).loss)
    full = dynamic(**batch, labels=labels, budget=[4, 4, 4])
    assert full.loss.equal(plain(**batch, labels=labels).loss)


@pytest.mark.parametrize("name", CTC_NAMES)
def test_the_loss_of_texts_is_that_of_the_logits_of_valid_frames(name):
    dynamic = with_exits(name)
    lengths = None if "parakeet" in name else [4000, 3100, 3600]
    if name == "parakeet-ctc":
        lengths = [96, 72, 80]
    batch = tiny.inputs(dynamic.model, lengths=lengths)
    out = dynamic(**batch, labels=TEXTS, budget=[2, 4, 1])
    frames = dynamic.frame_mask(batch, out.logits.shape[1]).sum(1)
    config = dynamic.model.config
    wanted = torch.nn.functional.ctc_loss(
        out.logits.log_softmax(-1).transpose(0, 1), TEXTS.clamp(min=0), frames,
        torch.tensor([3, 1, 2]), blank=config.pad_token_id, reduction=config.ctc_loss_reduction,
    )  # fmt: skip
    torch.testing.assert_close(out.loss, wanted)
    assert torch.isfinite(out.loss)


def test_a_step_below_full_depth_trains_the_exit_and_not_the_head_of_full_depth():
    dynamic = with_exits("wav2vec2-post").train()
    dynamic(**tiny.inputs(dynamic.model), labels=LABELS, budget=2).loss.backward()
    trained = [any(p.grad is not None for p in head.parameters()) for head in dynamic.exits.heads]
    assert trained == [False, True, False]
    head = [*dynamic.model.classifier.parameters(), *dynamic.model.projector.parameters()]
    assert not any(p.grad is not None and bool(p.grad.any()) for p in head)


def test_several_labels_have_a_loss_of_their_own_at_every_budget():
    model = tiny.make("ast", problem_type="multi_label_classification")
    dynamic = sounding.wrap(model, exits=True)
    wanted = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).float()
    for budget in (1, 4, [1, 2, 4]):
        out = dynamic(**tiny.inputs(model), labels=wanted, budget=budget)
        expected = torch.nn.functional.binary_cross_entropy_with_logits(out.logits, wanted)
        torch.testing.assert_close(out.loss, expected)
