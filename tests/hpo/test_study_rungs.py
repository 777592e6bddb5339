"""Rungs of trials that are told scores on the real store: points, known candidates, and what stops a trial there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from optuna.trial import TrialState
from told import asks, beside, known, quickly, run, rung, trial

from hpo.ending import Ended
from hpo.study import Asked, Search
from storage import leases

Searching = Callable[..., Search]


@pytest.fixture
def searching(searching: Searching) -> Searching:
    """Studies without baselines, but where a test asks for them, and whose trials have more than one rung: the default sampler's first ones do not."""
    return lambda **changes: searching(**{"baselines": False, "sampler": "tpe", **changes})


# Rungs: the candidates with fewer steps.

def by_number(asked: Asked, steps: int) -> tuple[float, float]:
    """Scores of trials of which each trades one objective for the other, better with more steps."""
    return 3.0 + asked.number - steps / 100, 3.0 - asked.number - steps / 100


def proposing(search: Search, method: str, steps: int) -> Asked:
    """The next trial, which is this method as published: enqueued, since a space does not do as it is told."""
    search.study.enqueue_trial({"method": method, "steps": steps})
    return asks(search)


def reasons(search: Search, query: Callable) -> list[tuple[str, str]]:
    return [tuple(row) for row in query("SELECT outcome, reason FROM trial_scores WHERE study = :s AND state = 'FAIL' ORDER BY trial", s=search.settings.study)]


def test_a_rung_of_a_running_trial_is_a_point_of_the_front_and_a_known_candidate(searching: Searching, query: Callable) -> None:
    search = searching(space="reference", trials=9)
    asked = search.ask()
    rung(search, asked, 4, fd=4.0, copy_excess=0.0)
    assert query("SELECT trial, steps, candidate, fd FROM pareto_front WHERE study = :s", s=search.settings.study) == [(0, 4, asked.at(4).words, 4.0)]
    assert search.duplicate_of(asked.at(4), 0) == 0, "it is evaluated"
    assert search.duplicate_of(asked.at(13), 0) == 0, "it will be"
    assert search.duplicate_of(asked.at(7), 0) is None and search.under_way(asked.at(7)) == 0
    other = proposing(search, "full", 13)
    assert other.number == 2 and reasons(search, query) == [("duplicate", "the same candidate as trial 0")]
    rung(search, asked, 13, fd=3.0, copy_excess=0.1)
    rung(search, asked, 40, fd=5.0, copy_excess=0.2)
    search.finish(asked)
    assert query("SELECT trial, steps FROM pareto_front WHERE study = :s", s=search.settings.study) == [(0, 4), (0, 13)]
    assert leases.counts(search.store, search.id).finished == 1, "however many rungs it has"


def test_a_trial_is_evaluated_at_the_last_rungs_and_what_others_are_measured_by_at_all(searching: Searching, opened: Callable) -> None:
    search = searching(space="reference", trials=9, evaluated_rungs=2, baselines=True)
    yardstick, baseline = (beside(search, opened).ask() for _ in range(2))
    assert [(asked.baseline, asked.rungs) for asked in (yardstick, baseline)] == [("yardstick", (4, 13, 40)), (baseline.candidate.method, (4, 13, 40))]
    search = searching(space="reference", trials=9, evaluated_rungs=2)
    run(search, by_number)
    assert [proposing(search, method, steps).rungs for method, steps in (("bias", 40), ("attention", 13), ("lora", 4))] == [(13, 40), (13,), (4,)]


def test_nothing_is_trained_again_for_a_rung_below_one_that_is_known(searching: Searching, opened: Callable) -> None:
    search = searching(space="reference", trials=20, evaluated_rungs=2, baselines=True)
    yardstick, other = asks(search), beside(search, opened)
    stopped = proposing(other, "lora", 40)
    rung(other, stopped, 13, 50.0, 50.0)
    other.finish(stopped, stopped=True)
    run(search, by_number, yardstick)
    while (asked := asks(search)).candidate.root != stopped.candidate.root:
        run(search, by_number, asked)
    assert (asked.baseline, asked.rungs, list(asked.known), asked.left) == ("lora", (4, 13, 40), [13], (40,))


def test_what_was_stopped_is_not_known_where_it_was_not_evaluated(searching: Searching) -> None:
    search = searching(space="reference", trials=9, evaluated_rungs=2)
    run(search, by_number)
    stopped = proposing(search, "bias", 40)
    rung(search, stopped, 13, 50.0, 50.0)
    search.finish(stopped, stopped=True)
    assert [search.duplicate_of(stopped.at(steps), 0) for steps in (4, 12, 13, 14, 40, 41)] == [None, None, 1, 1, 1, None]
    assert proposing(search, "bias", 4).rungs == (4,)


def test_a_trial_that_is_taken_up_keeps_its_rungs(searching: Searching, opened: Callable) -> None:
    search = searching(space="reference", trials=9, evaluated_rungs=2)
    run(search, by_number)
    left = search.ask()
    search.release(left)
    other = beside(search, opened)
    other.settings = replace(other.settings, evaluated_rungs=3)
    taken = other.ask()
    assert (taken.number, taken.rungs) == (left.number, left.rungs) == (1, (13, 40))


def test_a_stopped_candidate_is_known_up_to_its_own_steps(searching: Searching) -> None:
    search = searching(space="reference", trials=9)
    quickly(search, 1.0, 1.0)
    stopped = proposing(search, "bias", 13)
    rung(search, stopped, 4, 9.0, 9.0)
    search.finish(stopped, stopped=True)
    assert [known(search, stopped.at(steps)) is not None for steps in (4, 13, 40)] == [True, True, False]


def test_a_longer_one_than_a_finished_one_is_run_and_nothing_is_measured_twice(searching: Searching, query: Callable) -> None:
    search = searching(space="reference", trials=9)
    quickly(search, 1.0, 1.0)
    short, _ = run(search, lambda asked, steps: (steps, 1.0), proposing(search, "bias", 13))
    assert short.rungs == (4, 13)
    longer = proposing(search, "bias", 40)
    assert longer.candidate.root == short.candidate.root and longer.rungs == (4, 13, 40) and longer.known == {4: 0.0, 13: 0.0}
    run(search, lambda asked, steps: (steps, 1.0), longer)
    rows = query("SELECT trial, steps FROM rung_scores WHERE study = :s AND method = 'bias' ORDER BY steps", s=search.settings.study)
    assert rows == [(1, 4), (1, 13), (2, 40)]


def test_a_longer_one_than_a_running_one_waits_until_that_has_ended(searching: Searching, query: Callable) -> None:
    """Two trainings of the same would measure the same rungs, and write one state file."""
    search = searching(space="reference", trials=9)
    quickly(search, 1.0, 1.0)
    short = proposing(search, "bias", 4)
    assert proposing(search, "bias", 40).candidate.method != "bias"
    assert reasons(search, query) == [("duplicate", "trial 1 trains the same with another number of steps now")]
    search.release(short)
    assert known(search, short.at(40)) == 1, "it will be taken up"
    run(search, by_number)
    assert known(search, short.at(40)) is None


# Stopping.

def bad_at(number: int) -> Callable[[Asked, int], tuple[float, float]]:
    return lambda asked, steps: (50.0, 50.0) if asked.number == number else by_number(asked, steps)


def test_a_clearly_bad_trial_is_stopped_and_its_rungs_stay_and_teach(searching: Searching, query: Callable) -> None:
    search = searching(trials=5)
    ends = [run(search, bad_at(3))[1] for _ in range(4)]
    assert ends == ["finished"] * 3 + ["stopped"]
    assert trial(search, 3).state == TrialState.PRUNED and trial(search, 3).values is None
    assert query("SELECT steps, fd, state FROM rung_scores WHERE study = :s AND trial = 3", s=search.settings.study) == [(4, 50.0, "PRUNED")]
    counts = leases.counts(search.store, search.id)
    assert (counts.finished, counts.stopped, counts.failed) == (4, 1, 0)
    search.recall.refresh()
    taught = search.recall.proposer.history.points
    assert [(point.number, point.steps) for point in taught[-1:]] == [(3, 4)] and not search.recall.proposer.history.running
    run(search, by_number)
    assert search.state() == Ended(0, "all 5 trials are finished"), "a stopped trial is a finished one"


def test_who_takes_up_a_trial_decides_as_the_one_that_was_lost(searching: Searching, opened: Callable) -> None:
    search = searching(trials=5)
    for _ in range(3):
        run(search, bad_at(3))
    asked = asks(search)
    assert rung(search, asked, 4, 50.0, 50.0), "it is to be stopped, but is given back"
    search.release(asked)
    other = beside(search, opened)
    again = asks(other)
    assert again.number == asked.number and other.stops(again, 4)


def test_without_a_pruner_nothing_is_stopped(searching: Searching) -> None:
    search = searching(trials=5, pruner="none")
    assert [run(search, bad_at(3))[1] for _ in range(5)] == ["finished"] * 5


def test_yardstick_baselines_and_repeats_are_never_stopped(searching: Searching, opened: Callable) -> None:
    search = searching(trials=9, baselines=True)
    others = [beside(search, opened) for _ in range(3)]
    yardstick = asks(search)
    for other in others:
        rung(other, asks(other), 4, 1.0, 1.0)
    assert not rung(search, yardstick, 4, 50.0, 50.0) and not rung(search, yardstick, 13, 50.0, 50.0)
    assert run(search, bad_at(4), asks(search))[1] == "finished"
    assert replace(yardstick, baseline=None, repeat=1).exempt and not replace(yardstick, baseline=None).exempt


def test_rungs_of_another_worker_count_as_soon_as_they_are_written(searching: Searching, opened: Callable) -> None:
    search = searching(trials=9)
    others = [beside(search, opened) for _ in range(3)]
    for each in (search, *others[:2]):
        rung(each, asks(each), 4, 1.0, 1.0)
    assert rung(others[2], asks(others[2]), 4, 50.0, 50.0)
