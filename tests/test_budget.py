"""Budgets: what is allowed becomes k, everything else is refused with the list of what is."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from tiny import inputs, make

import sounding
from sounding.budget import kept_layers


@pytest.mark.parametrize(
    ("budget", "k"),
    [
        (1, 1),
        (6, 6),
        (None, 6),
        (1.0, 6),
        ("100%", 6),
        (0.5, 3),
        ("50%", 3),
        (" 50 % ", 3),
        ("33.4%", 2),
        (0.999, 5),
        (1e-9, 1),
        ("0.1%", 1),
        (np.int64(2), 2),
        (np.float64(0.5), 3),
        (torch.tensor(2), 2),
        (torch.tensor(0.5), 3),
    ],
)
def test_one_budget_counts_for_every_input(budget, k):
    assert kept_layers(budget, layers=6, batch=3) == [k, k, k]


@pytest.mark.parametrize("layers", range(1, 49))
def test_a_fraction_of_a_whole_number_of_layers_keeps_that_number(layers):
    for k in range(1, layers + 1):
        assert kept_layers(k / layers, layers=layers, batch=1) == [k]
        assert kept_layers(f"{100 * k / layers}%", layers=layers, batch=1) == [k]


def test_a_fraction_is_never_exceeded():
    for fraction in np.linspace(0.17, 1, 200):
        (k,) = kept_layers(fraction, layers=6, batch=1)
        assert k / 6 <= fraction + 1e-9


@pytest.mark.parametrize(
    ("budget", "k"),
    [
        ([1, 6, 3], [1, 6, 3]),
        ((1, None, "50%"), [1, 6, 3]),
        ([1.0, 1, 0.5], [6, 1, 3]),
        (np.array([1, 6, 3]), [1, 6, 3]),
        (torch.tensor([1, 6, 3]), [1, 6, 3]),
        (torch.tensor([0.5, 1.0, 0.2]), [3, 6, 1]),
        ([torch.tensor(1), np.int8(6), torch.tensor(0.5)], [1, 6, 3]),
    ],
    ids=repr,
)
def test_a_list_gives_each_input_its_own(budget, k):
    assert kept_layers(budget, layers=6, batch=3) == k


WRONG = [
    0, -1, 7, True, False, 0.0, -0.5, 1.5, float("nan"), float("inf"), "0%", "101%", "-5%", "nan%",
    "abc", "", "%", "50", "3", b"50%", {}, {1}, object(), 1j, Fraction(1, 2), torch.tensor(True),
    np.array("50"), [[1], [2]],
]  # fmt: skip


@pytest.mark.parametrize("budget", WRONG, ids=repr)
@pytest.mark.parametrize("in_a_list", [False, True])
def test_a_wrong_budget_is_refused_with_what_is_allowed(budget, in_a_list):
    with pytest.raises(ValueError, match=r"1 to 6.*0\.5.*50%.*None|one entry per input"):
        kept_layers([1, budget, 2] if in_a_list else budget, layers=6, batch=3)


@pytest.mark.parametrize("budget", [[], [1], [1, 2], [1, 2, 3, 4], (1, 2), torch.tensor([1, 2])])
def test_a_list_of_the_wrong_length_says_both_lengths(budget):
    with pytest.raises(ValueError, match=rf"{len(budget)} entries for a batch of 3"):
        kept_layers(budget, layers=6, batch=3)


@pytest.mark.parametrize("budget", [0, 5, True, "abc", [1, 2], float("nan")], ids=repr)
def test_a_model_refuses_a_wrong_budget_before_anything_runs(budget):
    dynamic = sounding.wrap(make("ast"))
    ran = []
    for module in dynamic.model.modules():
        module.register_forward_hook(lambda *args: ran.append(args[0]))
    with pytest.raises(ValueError, match=r"1 to 4|one entry per input"):
        dynamic(**inputs(dynamic.model), budget=budget)
    assert not ran


@torch.no_grad()
@pytest.mark.parametrize("budget", [1, 2, 3, 4, [1, 4, 2], [None, 0.5, "25%"]], ids=repr)
def test_exactly_k_layers_run_for_each_input(budget):
    dynamic = sounding.wrap(make("ast"))
    out = dynamic(**inputs(dynamic.model), budget=budget)
    assert out.executed_layers.dtype == torch.bool
    assert out.executed_layers.sum(-1).tolist() == kept_layers(budget, layers=4, batch=3)
