"""Budgets: parsed once; what is allowed becomes k, all else is refused with the list of what is."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from tiny import inputs, make

import sounding
from sounding import Budget
from sounding.budget import BudgetError


def kept(budget, layers=6, batch=3):
    return Budget.parse(budget).kept_layers(layers=layers, batch=batch)


@pytest.mark.parametrize(
    ("budget", "k"),
    [
        (1, 1),
        (6, 6),
        (None, 6),
        ("full", 6),
        ("3", 3),
        (" 3 ", 3),
        ("100%", 6),
        ("50%", 3),
        (" 50 % ", 3),
        ("33.4%", 2),
        ("99.9%", 5),
        ("0.1%", 1),
        (Budget.share(0.5), 3),
        (Budget.share(1e-9), 1),
        (Budget.layers(2), 2),
        (np.int64(2), 2),
        (torch.tensor(2), 2),
    ],
    ids=repr,
)
def test_one_budget_counts_for_every_input(budget, k):
    assert kept(budget) == [k, k, k]


@pytest.mark.parametrize("layers", range(1, 49))
def test_a_share_of_a_whole_number_of_layers_keeps_that_number(layers):
    for k in range(1, layers + 1):
        assert kept(Budget.share(k / layers), layers, 1) == [k]
        assert kept(f"{100 * k / layers}%", layers, 1) == [k]


def test_a_share_is_never_exceeded():
    for share in np.linspace(0.17, 1, 200):
        (k,) = kept(Budget.share(share), batch=1)
        assert k / 6 <= share + 1e-9


@pytest.mark.parametrize(
    ("budget", "k"),
    [
        ([1, 6, 3], [1, 6, 3]),
        ((1, None, "50%"), [1, 6, 3]),
        (["100%", "1", Budget.share(0.5)], [6, 1, 3]),
        (np.array([1, 6, 3]), [1, 6, 3]),
        (torch.tensor([1, 6, 3]), [1, 6, 3]),
        ([torch.tensor(1), np.int8(6), "50%"], [1, 6, 3]),
    ],
    ids=repr,
)
def test_a_list_gives_each_input_its_own(budget, k):
    assert kept(budget) == k


FLOATS = [0.5, 1.0, np.float64(0.5), torch.tensor(0.5), "0.5", "1.0"]


@pytest.mark.parametrize("budget", FLOATS, ids=repr)
@pytest.mark.parametrize("in_a_list", [False, True])
def test_a_bare_float_is_refused_since_1_and_1_0_would_be_one_layer_and_all(budget, in_a_list):
    with pytest.raises(BudgetError, match=r'1\.0 all.*a share is ".*%" or Budget\.share'):
        Budget.parse([1, budget] if in_a_list else budget)


WRONG = [
    0.0, -0.5, 1.5, float("nan"), float("inf"), "1e9", 10**400,
    0, -1, 7, True, False, "0%", "101%", "-5%", "nan%", "abc", "", "%", "50", b"50%", {}, {1},
    object, 1j, Fraction(1, 2), torch.tensor(True), np.array("50"), [[1], [2]], "mean:3 layers",
]  # fmt: skip


@pytest.mark.parametrize("budget", WRONG, ids=repr)
@pytest.mark.parametrize("in_a_list", [False, True])
def test_a_wrong_budget_is_refused_with_what_is_allowed(budget, in_a_list):
    says = r"kept layers.*50%.*None|give 1 to 6|one entry per input|for each input"
    with pytest.raises(BudgetError, match=says):
        kept([1, budget, 2] if in_a_list else budget)


@pytest.mark.parametrize("budget", [[], [1], [1, 2], [1, 2, 3, 4], (1, 2), torch.tensor([1, 2])])
def test_a_list_of_the_wrong_length_says_both_lengths(budget):
    with pytest.raises(BudgetError, match=rf"{len(budget)} entries for a batch of 3"):
        kept(budget)


@pytest.mark.parametrize(
    "text", ["full", "3", "50%", "mean:3", "mean:2.5", "mean:50%", "40ms", "rtf:0.1", "1.5gmac"]
)
def test_a_budget_is_written_as_it_is_read(text):
    budget = Budget.parse(text)
    assert str(budget) == text
    assert Budget.parse(str(budget)) == budget == Budget.parse(budget)
    assert [budget.is_exact, budget.is_mean, budget.is_limit].count(True) == 1


def test_a_mean_is_from_one_layer_to_all():
    assert Budget.parse("mean: 2.5").mean_layers(layers=6) == 2.5
    assert Budget.parse("mean:50%").mean_layers(layers=6) == 3.0
    for text in ("mean:0.5", "mean:7", "mean:1%"):
        with pytest.raises(BudgetError, match="from 1 to 6 kept layers"):
            Budget.parse(text).mean_layers(layers=6)


@pytest.mark.parametrize("text", ["0ms", "-1ms", "rtf:0", "nanms", "infgmac", "gmac"])
def test_a_limit_is_above_zero(text):
    with pytest.raises(BudgetError, match="not allowed"):
        Budget.parse(text)


def test_a_limit_allows_the_most_layers_that_fit():
    def cost(k):
        return 10.0 * k

    assert Budget.parse("35ms").fitting_layers(cost, 1.0, layers=6) == (3, 35.0)
    assert Budget.parse("rtf:0.02").fitting_layers(cost, 2.0, layers=6) == (4, 40.0)
    assert Budget.parse("5ms").fitting_layers(cost, 1.0, layers=6)[0] == 0


@pytest.mark.parametrize("budget", [0, 5, True, "abc", [1, 2], 0.5], ids=repr)
def test_a_model_refuses_a_wrong_budget_before_anything_runs(budget):
    dynamic = sounding.wrap(make("ast"))
    ran = []
    for module in dynamic.model.modules():
        module.register_forward_hook(lambda *args: ran.append(args[0]))
    with pytest.raises(BudgetError, match=r"kept layers|give 1 to 4|one entry per input"):
        dynamic(**inputs(dynamic.model), budget=budget)
    assert not ran


def test_a_model_in_torch_says_that_a_time_is_for_exported_ones():
    dynamic = sounding.wrap(make("ast"))
    with pytest.raises(ValueError, match="exported"):
        dynamic(**inputs(dynamic.model), budget="40ms")


@torch.no_grad()
@pytest.mark.parametrize("budget", [1, 2, "3", 4, [1, 4, 2], [None, "50%", "25%"]], ids=repr)
def test_exactly_k_layers_run_for_each_input(budget):
    dynamic = sounding.wrap(make("ast"))
    out = dynamic(**inputs(dynamic.model), budget=budget)
    assert out.executed_layers.dtype == torch.bool
    assert out.executed_layers.sum(-1).tolist() == kept(budget, layers=4)
