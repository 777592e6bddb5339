"""The hypervolume of a study's front, against its trials and their time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from told import asks, quickly, rung

from hpo import objectives
from hpo.study import Search
from hpo.volume import reference_point


def test_the_reference_point_is_the_worse_of_base_and_yardstick_in_each_objective() -> None:
    chosen = objectives.parse("fd,amd_train")
    base, yardstick = {"fd": (5.0, 4.0, 6.0), "amd_train": (0.3, 0.2, 0.4)}, {"fd": 1.0, "amd_train": 0.1}
    assert reference_point(chosen, base, yardstick) == [5.0, -0.1]
    assert reference_point(chosen, {"fd": (5.0, 4.0, 6.0)}, yardstick) is None


def history(search: Search, query: Callable) -> list[tuple]:
    return [tuple(row) for row in query("SELECT trial, finished, seconds, hypervolume FROM hypervolume_history WHERE study = :s", s=search.settings.study)]


def test_it_is_noted_after_each_finished_trial_from_the_yardstick_on(searching: Callable[..., Search], query: Callable) -> None:
    search = searching(trials=9, baselines=False)
    quickly(search, 4.0, 2.0)  # the base is at (5, 0): the reference point is (5, 2)
    quickly(search, 3.0, 1.0)
    stopped = asks(search)
    rung(search, stopped, 4, 1.0, 1.5)
    search.finish(stopped, stopped=True)
    assert history(search, query) == [(0, 1, 40.0, 0.0), (1, 2, 80.0, 2.0), (2, 3, 84.0, pytest.approx(2.0 + 2 * 0.5))], "rungs of stopped trials are points"


def test_before_the_yardstick_is_finished_there_is_none(searching: Callable[..., Search], opened: Callable, query: Callable) -> None:
    search = searching(trials=9, baselines=False)
    yardstick = asks(search)
    quickly(Search(opened(), search.settings), 1.0, 1.0)
    assert history(search, query) == []
    rung(search, yardstick, 40, 4.0, 2.0)
    search.finish(yardstick)
    assert history(search, query) == [(0, 2, 80.0, 4.0)]


def test_of_a_joint_reward_it_is_how_far_the_best_is_above_the_worse_of_base_and_yardstick(searching: Callable[..., Search], query: Callable) -> None:
    search = searching(trials=9, baselines=False, objectives="joint_reward")
    quickly(search, 4.0, 1.0)  # reward 0.1 − 0.5
    quickly(search, 0.0, 0.0)  # reward 0.5
    assert [row[3] for row in history(search, query)] == pytest.approx([0.0, 0.9])
