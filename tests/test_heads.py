"""The heads of ours: with labels they have the loss of a head of `transformers`."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch.nn import functional

import sounding
from sounding.model.losses import classification_loss, ctc_loss


def test_a_classifier_of_ours_has_the_loss_of_its_labels():
    model = tiny.make("moonshine-classification")
    labels = torch.tensor([0, 3, 1])
    out = model(**tiny.inputs(model), labels=labels)
    torch.testing.assert_close(out.loss, functional.cross_entropy(out.logits, labels))
    out.loss.backward()
    assert model.classifier.weight.grad.any()
    assert model(**tiny.inputs(model)).loss is None


def test_a_ctc_head_of_ours_has_the_loss_of_its_texts_without_padding():
    model = tiny.make("moonshine-ctc")
    lengths, sizes = [4000, 3000, 2600], [3, 2, 1]
    batch = tiny.inputs(model, lengths=lengths)
    texts = torch.tensor([[3, 4, 5], [6, 7, -100], [8, -100, -100]])
    model = sounding.wrap(model)  # so that padding does not reach the other inputs
    both = model(**batch, labels=texts).loss
    alone = []
    for row, (length, size) in enumerate(zip(lengths, sizes, strict=True)):
        one = {"input_values": batch["input_values"][row : row + 1, :length]}
        alone.append(model(**one, labels=texts[row : row + 1, :size]).loss)
    torch.testing.assert_close(both, torch.stack(alone).mean(), rtol=1e-3, atol=1e-3)
    padded_with_blanks = model(**batch, labels=texts.clamp(min=0)).loss
    assert both.equal(padded_with_blanks)


class Config:
    def __init__(self, **values):
        vars(self).update({"problem_type": None, "num_labels": 3, "pad_token_id": 0} | values)


@pytest.mark.parametrize(
    ("config", "labels", "loss"),
    [
        (Config(), torch.tensor([1, 2]), functional.cross_entropy),
        (Config(), torch.eye(3)[:2], functional.binary_cross_entropy_with_logits),
        (
            Config(problem_type="multi_label_classification"),
            torch.eye(3)[:2],
            functional.binary_cross_entropy_with_logits,
        ),
    ],
)
def test_the_configuration_or_the_labels_say_which_loss(config, labels, loss):
    logits = torch.randn(2, 3)
    assert classification_loss(logits, labels, config).equal(loss(logits, labels))


def test_one_label_is_a_number_to_predict():
    logits, numbers = torch.tensor([[0.5], [2.0]]), torch.tensor([1.0, 4.0])
    loss = classification_loss(logits, numbers, Config(num_labels=1))
    torch.testing.assert_close(loss, torch.tensor((0.25 + 4.0) / 2))


@pytest.mark.parametrize("zero_infinity", [False, True])
def test_a_text_that_does_not_fit_has_the_loss_that_the_configuration_says(zero_infinity):
    logits, text = torch.zeros(1, 2, 4), torch.tensor([[1, 2, 3]])
    config = Config(ctc_zero_infinity=zero_infinity)
    assert float(ctc_loss(logits, text, None, config)) == (0.0 if zero_infinity else torch.inf)
