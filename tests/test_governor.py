"""The governor, on a simulated device: it keeps its target under changing load, and is calm."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sounding.runtime.governor import Governor

LAYERS = 6


def idle(seconds, k):
    """Milliseconds on the idle device."""
    return 3 + seconds + (2 + 3 * seconds) * k


def simulate(load, *, target=50.0, noise=0.05, spikes=0.01, lengths=(1, 1), total=60.0, **settings):
    """Inputs one after the other for `total` seconds: time, k, milliseconds of each."""
    rng = np.random.default_rng(0)
    governor = Governor(target, idle, LAYERS, **settings)
    now, rows = 0.0, []
    while now < total:
        seconds = rng.uniform(*lengths)
        k = governor.budget(seconds)
        taken = idle(seconds, k) * load(now) * math.exp(rng.normal(0, noise))
        taken *= 3 if rng.random() < spikes else 1
        governor.observe(seconds, k, taken)
        rows.append((now, k, taken))
        now += taken / 1000 + 0.02
    return np.array(rows)


def between(rows, start, end):
    return rows[(rows[:, 0] >= start) & (rows[:, 0] < end)]


def doubled(now):
    """A second process takes half of the machine for a while."""
    return 2.0 if 20 <= now < 40 else 1.0


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.2])
@pytest.mark.parametrize("lengths", [(1, 1), (0.5, 2)])
def test_few_inputs_are_over_the_target_while_the_load_doubles_and_goes(noise, lengths):
    rows = simulate(doubled, noise=noise, lengths=lengths)
    assert (rows[:, 2] > 50).mean() <= 0.05
    fixed = np.array([idle(1, LAYERS) * doubled(t) for t in np.arange(0, 60, 0.05)])
    assert (fixed > 50).mean() > 0.3  # full depth would not
    idle_k, busy_k = between(rows, 5, 20)[:, 1].mean(), between(rows, 22, 40)[:, 1].mean()
    assert busy_k < idle_k - 1
    assert between(rows, 50, 60)[:, 1].mean() > idle_k - 0.5  # and back up


def test_it_does_not_swing():
    rows = simulate(doubled, spikes=0)
    for start, end in ((5, 20), (25, 40), (50, 60)):
        k = between(rows, start, end)[:, 1]
        assert (np.diff(k) != 0).mean() < 0.05


def test_a_single_slow_input_changes_nothing():
    governor = Governor(50, idle, LAYERS)
    for _ in range(20):
        governor.observe(1, governor.budget(1), idle(1, governor.last))
    before = governor.budget(1)
    governor.observe(1, before, 10 * idle(1, before))
    assert governor.budget(1) == before
    governor.observe(1, before, 10 * idle(1, before))
    assert governor.budget(1) < before  # two are no accident


def test_late_inputs_that_no_load_foretells_make_room_for_themselves():
    """Each tenth input is slow, one at a time: the load as such does not show it."""
    governor, late = Governor(50, idle, LAYERS), []
    for turn in range(600):
        k = governor.budget(1)
        taken = idle(1, k) * (1.6 if turn % 10 == 9 else 1)
        governor.observe(1, k, taken)
        late.append(taken > 50)
    assert idle(1, LAYERS) * 1.6 > 50
    assert np.mean(late[100:]) < 0.05


def test_a_target_that_cannot_be_kept_gives_the_floor_and_winds_nothing_up():
    rows = simulate(lambda now: 30.0 if now < 40 else 1.0, target=40, floor=2)
    assert (between(rows, 5, 40)[:, 1] == 2).all()
    assert between(rows, 50, 60)[:, 1].mean() > 4
    governor = Governor(40, idle, LAYERS, floor=2)
    assert governor.fits(1)
    for _ in range(5):
        governor.observe(1, 2, 400)
    assert not governor.fits(1)
    assert governor.budget(1) == 2


def test_a_ceiling_holds_and_the_floor_comes_before_it():
    most = [3]
    governor = Governor(500, idle, LAYERS, floor=2, ceiling=lambda: most[0])
    assert governor.budget(1) == 3
    most[0] = 1
    assert governor.budget(1) == 2
    most[0] = 99
    assert governor.budget(1) == LAYERS


def test_longer_inputs_get_fewer_layers():
    governor = Governor(30, idle, LAYERS)
    budgets = [governor.budget(seconds) for seconds in (0.2, 0.5, 1, 2, 5)]
    assert budgets == sorted(budgets, reverse=True)
    assert len(set(budgets)) > 2


@pytest.mark.parametrize("target", [0, -1, math.nan, math.inf])
def test_targets_that_are_none(target):
    with pytest.raises(ValueError, match="give one above 0"):
        Governor(target, idle, LAYERS)


@pytest.mark.parametrize("floor", [0, 7])
def test_floors_that_are_none(floor):
    with pytest.raises(ValueError, match="a floor of"):
        Governor(10, idle, LAYERS, floor=floor)
