"""Targets by hand, from curves that are made up; one short search for real."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import search
from benchmarks.search import BUDGET, DEFAULT, KINDS, LAUNCHED, RANDOM, RIVALS, TARGETS, Kind, Result, Run, runs, wins_on_all
from benchmarks.simulation import Curve


def curve(*hypervolume: float, every: float = 10.0) -> Curve:
    """Of one full trial after the other."""
    count = len(hypervolume)
    cost = every * np.arange(1, count + 1)
    return Curve(cost, cost, np.arange(1, count + 1), np.array(hypervolume), 0)


def result(default: list[Curve], others: list[Curve]) -> Result:
    problem = SimpleNamespace(whole_seconds=lambda: 10.0, best_hypervolume=2.0)
    return Result(problem, {DEFAULT: default, RANDOM: others, **{kind: others for kind in RIVALS}})


def test_the_default_is_there_when_its_median_is_what_random_search_has_after_all_of_its_budget() -> None:
    default, rival = [curve(0.2, 0.6, 1.8), curve(0.4, 0.6, 1.0), curve(0.1, 0.7, 1.2)], [curve(0.2, 0.4, 1.1)] * 3
    found = result(default, rival)
    assert found.median_at(DEFAULT, 2) == 0.3, "as a share of the best"
    assert found.median_at(RANDOM, 200) == 0.55
    assert found.reaches() == 3
    assert result(rival, [curve(1.5)] * 3).reaches() == float("inf")


def test_a_seed_is_won_by_the_larger_area() -> None:
    found = result([curve(1.0, 1.0), curve(0.0, 1.0), curve(0.5, 1.0)], [curve(0.5, 1.0)] * 3)
    assert found.wins(Kind("gp", "none")) == 1, "equal is not larger"
    assert found.areas(DEFAULT)[0] == pytest.approx((BUDGET - 1) / BUDGET / 2)


def test_functions_are_won_together_by_the_larger_mean_area() -> None:
    won, lost = result([curve(1.0, 1.0)], [curve(0.5, 1.0)]), result([curve(0.5, 1.0)], [curve(0.8, 1.0)])
    assert (wins_on_all([won, lost], RANDOM), wins_on_all([lost, lost, won], RANDOM)) == (1, 0)


def test_what_targets_are_made_of_comes_first_and_nothing_twice() -> None:
    listed = list(runs(["zdt1"], range(7, 9)))
    assert [run.kind for run in listed[:len(TARGETS)]] == [DEFAULT, RANDOM, *RIVALS]
    assert {run.seed for run in listed[:len(TARGETS)]} == {7}
    assert len(set(listed)) == len(listed) == 2 * len(KINDS)
    assert len({run.file for run in runs(["cells"], range(7, 9))}) == len(listed)
    assert len({run.file for run in listed}) == len(listed) - 2 * len(LAUNCHED), "a function has no baselines to begin with"


def test_a_search_is_made_once_and_read_again(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(search.home, "data_root", lambda: tmp_path)
    monkeypatch.setattr(search, "BUDGET", 3)
    run = Run("zdt1", Kind("random", "MO-ASHA", 2), 0)
    search.make(run)
    written = run.file.stat().st_mtime_ns
    search.make(run)
    assert run.file.stat().st_mtime_ns == written
    first = search.read(run)
    assert first.cost[-1] >= 3 * search.problem_of("zdt1").whole_seconds() > first.cost[-2]
    assert first.cost[0] == pytest.approx(13.7), "the first of two rungs"
