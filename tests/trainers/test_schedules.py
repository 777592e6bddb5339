"""Schedules against values by hand, and what all of them must keep."""

from __future__ import annotations

import math

import pytest

from trainers.errors import BadSelection
from trainers.schedules import SCHEDULES, factor


@pytest.mark.parametrize("schedule, wanted", [
    ("constant", [0.5, 1, 1, 1, 1, 1]), ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
    ("cosine", [0.5, 1, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])])
def test_six_steps_with_two_of_warm_up_by_hand(schedule, wanted):
    assert [factor(schedule, step, 2, 6) for step in range(1, 7)] == pytest.approx(wanted)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_after_the_warm_up_it_begins_at_one_never_rises_and_never_reaches_zero_nor_ends(schedule):
    values = [factor(schedule, step, 10, 200) for step in range(1, 400)]
    assert values[:10] == [step / 10 for step in range(1, 11)] and values[10] == 1
    assert all(a >= b for a, b in zip(values[9:], values[10:])) and min(values) > 0
    assert set(values[199:]) == {values[199]}, "behind its end it stays"


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup, total", [(0, 1), (10, 4), (4, 4), (0, 3)])
def test_short_trainings_have_a_rate_too(schedule, warmup, total):
    assert all(0 < factor(schedule, step, warmup, total) <= 1 for step in range(1, total + 3))


def test_an_unknown_schedule_is_refused_with_the_nearest():
    with pytest.raises(BadSelection, match="'cosin' is unknown: take cosine"):
        factor("cosin", 1, 0, 5)
