"""What a worker that joins late knows: a study that is resumed before every trial proposes what an unbroken one would."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from told import beside, run

from hpo.study import Asked, Search

TRIALS = 12


def scored(asked: Asked, steps: int) -> tuple[float, float]:
    """Scores that depend on the candidate alone, so that both studies have the same, and that are spread enough for some trials to be stopped."""
    place = int(asked.candidate.root, 16) % 97 / 10
    return place + 2 - steps / 40, 6 - place / 2 + steps / 400


def unbroken(search: Search) -> tuple[list, list]:
    runs = [run(search, scored) for _ in range(TRIALS)]
    return [asked.candidate for asked, _ in runs], [how for _, how in runs]


def resumed(search: Search, opened: Callable) -> tuple[list, list]:
    runs = [run(beside(search, opened), scored) for _ in range(TRIALS)]
    return [asked.candidate for asked, _ in runs], [how for _, how in runs]


@pytest.mark.parametrize("sampler", ["auto", "tpe", "gp", "nsga2", "random"])
def test_a_resumed_study_goes_on_as_an_unbroken_one(sampler: str, searching: Callable[..., Search], opened: Callable) -> None:
    same = dict(trials=99, sampler=sampler, baselines=False, seed=3)
    whole, ends = unbroken(searching(**same))
    assert (whole, ends) == resumed(searching(**same), opened)
    assert "stopped" in ends and len(set(whole)) == TRIALS


def test_samplers_learn_stopped_trials_where_they_ended(searching: Callable[..., Search], opened: Callable) -> None:
    """NSGA-II's parents depend on the order, so it must not be that in which a worker happened to read."""
    search = searching(trials=99, sampler="nsga2", baselines=False, seed=3)
    _, ends = unbroken(search)
    late = beside(search, opened)
    for each in (search, late):
        each.recall.refresh()
    orders = [[(point.number, point.steps) for point in each.recall.proposer.history.points] for each in (search, late)]
    assert orders[0] == orders[1] == sorted(orders[0]) and len(orders[0]) == TRIALS and "stopped" in ends
