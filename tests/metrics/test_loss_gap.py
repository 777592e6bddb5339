"""The loss gap."""

import numpy as np
import pytest

from metrics.errors import BadArray
from metrics.loss_gap import LossSide, loss_gap


def side(seed, change=0.0, patients=20, each=2):
    rng = np.random.default_rng(seed)
    names = np.repeat(np.arange(patients), each) + 1000 * seed
    base = 1 + rng.random(len(names))
    tuned = base + change + 0.1 * np.repeat(rng.standard_normal(patients), each)
    return LossSide(tuned, base, names)


def test_loss_gap_by_hand():
    """Train falls by 1 and 3 (patient a), 4 (b): mean of 2 and 4 is 3. Twin falls by 1 (c) and 0 (d): 0.5."""
    train = LossSide(np.array([4.0, 2.0, 1.0]), np.full(3, 5.0), np.array(["a", "a", "b"]))
    twin = LossSide(np.array([4.0, 5.0]), np.full(2, 5.0), np.array(["c", "d"]))
    assert loss_gap(train, twin).value == pytest.approx(3 - 0.5)


def test_loss_gap_changes_sign_with_the_sides_and_ignores_what_patients_are_like():
    train, twin = side(1, -0.3), side(2, -0.1)
    gap, swapped = loss_gap(train, twin), loss_gap(twin, train)
    assert (swapped.value, swapped.low, swapped.high) == (-gap.value, -gap.high, -gap.low)
    easier = LossSide(train.tuned - 0.5, train.base - 0.5, train.patients)
    assert loss_gap(easier, twin).value == pytest.approx(gap.value)


def test_loss_gap_holds_0_at_its_level_when_both_sides_learn_alike():
    held = [not loss_gap(side(2 * seed, -0.3), side(2 * seed + 1, -0.3)).excludes(0.0) for seed in range(400)]
    assert 0.92 <= np.mean(held) <= 0.98


def test_the_base_against_itself_is_0_without_width():
    base = side(1)
    same = LossSide(base.base, base.base, base.patients)
    estimate = loss_gap(same, same)
    assert (estimate.value, estimate.low, estimate.high) == (0.0, 0.0, 0.0)


def test_losses_that_do_not_match_are_refused():
    with pytest.raises(BadArray, match="train.tuned has 3 rows, train.base has 2"):
        loss_gap(LossSide(np.ones(3), np.ones(2), np.arange(3)), side(1))
    with pytest.raises(BadArray, match="twin.tuned holds NaN"):
        loss_gap(side(1), LossSide(np.array([np.nan, 1.0]), np.ones(2), np.arange(2)))
