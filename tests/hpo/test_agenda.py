"""What a study runs before it proposes anything: the yardstick, the papers' methods, a queue, repeats of the front. On the real store, without training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from finished_study import scores, tell
from optuna.trial import TrialState
from told import asks, beside, expire, quickly, run, trial

from hpo.agenda import YARDSTICK
from hpo.settings import Settings
from hpo.spaces.reference import BASELINES, reference_candidate
from hpo.study import Ended, Search, Wait
from storage import leases, results, trials

Searching = Callable[..., Search]
IDENTITY = {"model": "m", "encoder": "e", "data": "d"}
FEW = ("full", "attention", "norm", "bias", "lora")  # methods of a space that is soon exhausted


@pytest.fixture
def searching(searching: Searching) -> Searching:
    """Studies without baselines, but where a test asks for them."""
    return lambda **changes: searching(**{"baselines": False, **changes})


def test_the_first_trial_is_the_yardstick_full_fine_tuning_for_all_steps(searching: Searching) -> None:
    asked = searching().ask()
    assert asked.number == 0 and asked.yardstick and asked.candidate == reference_candidate("full", 40)
    assert asked.baseline == YARDSTICK and asked.rungs == (4, 13, 40) and asked.exempt


def test_the_yardstick_teaches_the_sampler_with_parameters_of_its_own(searching: Searching, finish: Callable) -> None:
    search = searching()
    finish(search)
    assert trial(search, 0).params["method"] == "full" and trial(search, 0).params["steps"] == 40


def test_only_one_trial_is_the_yardstick(searching: Searching, finish: Callable) -> None:
    search = searching()
    assert [finish(search).yardstick for _ in range(5)] == [True] + [False] * 4


def test_a_yardstick_that_fails_by_its_own_fault_gives_way_to_the_next_baseline(searching: Searching, finish: Callable) -> None:
    search = searching()
    order = ["full", *sorted(set(BASELINES) - {"full"})]
    for name in order[:2]:
        asked = search.ask()
        assert asked.yardstick and asked.candidate == reference_candidate(name, 40)
        search.fail(asked, "TrainingDiverged: loss is nan", own_cause=True)
    assert finish(search).candidate == reference_candidate(order[2], 40)
    assert not search.ask().yardstick


def test_a_yardstick_is_measured_even_where_its_candidate_is_known(searching: Searching, finish: Callable, opened: Callable) -> None:
    """Else a study whose yardstick failed late would propose a finished baseline for ever."""
    search = searching(space="reference", steps=1, rungs=1, trials=100, methods=",".join(FEW))  # so many that it may fail often
    other = beside(search, opened)
    yardstick = search.ask()
    while (asked := other.ask()).candidate.method != "attention":
        other.fail(asked, "not this one", own_cause=True)
    tell(other, asked, scores(1, 1))
    search.fail(yardstick, "TrainingDiverged: loss is nan", own_cause=True)
    again = finish(search)
    assert again.yardstick and again.candidate == asked.candidate


# joint_reward alone.

def test_others_wait_for_the_yardstick_of_a_joint_reward(searching: Searching, opened: Callable, finish: Callable) -> None:
    search = searching(trials=3, objectives="joint_reward")
    other = beside(search, opened)
    yardstick = search.ask()
    assert isinstance(other.ask(), Wait)
    tell(search, yardstick, scores(fd=1.0, copy_excess=0.5))
    assert trial(search, 0).values == [pytest.approx(0.5 * 4 / 5 - 0.5)]
    better = finish(other, fd=1.0, copy_excess=0.0)
    assert trial(other, better.number).values == [pytest.approx(0.5 * 4 / 5)] and other.study.best_trial.number == better.number


def test_a_joint_reward_that_is_not_defined_ends_the_launch_with_status_1(searching: Searching) -> None:
    search = searching(trials=3, objectives="joint_reward")
    assert tell(search, search.ask(), scores(fd=1.0, copy_excess=-0.1)) == "failed"
    ended = search.ask()
    assert ended.status == 1 and "does not copy more than the untouched base" in ended.reason
    search.register(3, IDENTITY)
    assert search.ask() == ended, "another launch would find the same"


def test_a_joint_reward_waits_for_the_next_baseline_if_the_yardstick_diverges(searching: Searching, opened: Callable) -> None:
    search = searching(trials=3, objectives="joint_reward")
    other = beside(search, opened)
    search.fail(search.ask(), "TrainingDiverged: loss is nan", own_cause=True)
    yardstick = other.ask()
    assert yardstick.candidate.method == "attention" and isinstance(search.ask(), Wait)


def test_a_joint_reward_without_any_baseline_ends_with_status_1(searching: Searching) -> None:
    search = searching(trials=3, objectives="joint_reward")
    for _ in BASELINES:
        search.fail(search.ask(), "TrainingDiverged: loss is nan", own_cause=True)
    ended = search.ask()
    assert ended.status == 1 and "no baseline could be the yardstick" in ended.reason and f"{len(BASELINES)} × TrainingDiverged" in ended.reason


# Baselines: the papers' methods as published.

def baselines(search: Search) -> list[tuple[str, str | None, str]]:
    """Method, name as a baseline and outcome of every trial so far."""
    return [(row["method"], row["baseline"], row["outcome"]) for row in results.trials(search.store, search.settings.study)]


FIRST = [("full", YARDSTICK, "finished"), *((name, name, "finished") for name in BASELINES[1:])]


def test_the_first_trials_are_the_papers_methods_as_published(searching: Searching, finish: Callable) -> None:
    search = searching(trials=20, baselines=True)
    asked = [finish(search) for _ in BASELINES]
    assert [each.candidate for each in asked] == [reference_candidate(name, 40) for name in BASELINES]
    assert baselines(search) == FIRST and [each.yardstick for each in asked] == [True] + [False] * (len(BASELINES) - 1)
    assert [trial(search, each.number).params["method"] for each in asked] == list(BASELINES), "they teach the sampler"
    assert finish(search).baseline is None and baselines(search)[-1][1] is None, "then the space proposes"


def test_they_count_and_with_few_trials_the_first_are_run(searching: Searching, finish: Callable, states: Callable) -> None:
    search = searching(trials=3, baselines=True)
    for _ in range(3):
        finish(search)
    assert search.ask() == Ended(0, "all 3 trials are finished") and baselines(search) == FIRST[:3]
    assert states(search.settings.study) == {"COMPLETE": 3}, "none waits"


def test_without_them_the_yardstick_is_run_all_the_same(searching: Searching, finish: Callable) -> None:
    search = searching(trials=20, baselines=False)
    asked = [finish(search) for _ in range(3)]
    assert [each.baseline for each in asked] == [YARDSTICK, None, None]


def test_workers_and_launches_side_by_side_share_them(searching: Searching, opened: Callable) -> None:
    search = searching(trials=20, baselines=True)
    other = beside(search, opened)
    asked = []
    for i in range(len(BASELINES)):
        asking = (search, other)[i % 2]
        asking.register(20, IDENTITY)  # as another launch does
        asked.append((asking, asking.ask()))
    assert [each.candidate.method for _, each in asked] == list(BASELINES)
    assert asks(other).baseline is None
    for asking, each in asked:
        tell(asking, each, scores(1, 1))
    assert baselines(search)[:-1] == FIRST


def test_one_whose_worker_was_killed_is_run_again_and_none_twice(searching: Searching, opened: Callable, finish: Callable, query: Callable) -> None:
    search = searching(trials=20, baselines=True)
    finish(search)
    dead = search.ask()
    expire(query, dead)
    other = beside(search, opened)
    assert [finish(other).candidate.method for _ in BASELINES[1:]] == list(BASELINES[1:])
    assert baselines(search) == FIRST
    assert asks(other).baseline is None


def test_one_is_not_lost_if_whoever_found_it_expired_was_killed_too(searching: Searching, opened: Callable, finish: Callable, query: Callable) -> None:
    search = searching(trials=20, baselines=True)
    finish(search)
    expire(query, search.ask())
    other = beside(search, opened)
    assert trials.expire(other.store, other.id) == [1], "and nothing was enqueued in its place"
    assert [finish(other).candidate.method for _ in BASELINES[1:]] == list(BASELINES[1:])


def test_one_that_fails_by_its_own_fault_is_not_retried(searching: Searching, finish: Callable) -> None:
    search = searching(trials=20, baselines=True)
    finish(search)
    search.fail(search.ask(), "TrainingDiverged: loss is nan", own_cause=True)
    assert [finish(search).candidate.method for _ in BASELINES[2:]] == list(BASELINES[2:])
    assert asks(search).baseline is None and ("attention", "attention", "failed") in baselines(search)


def test_one_that_takes_the_yardsticks_place_is_not_run_twice(searching: Searching, finish: Callable) -> None:
    search = searching(trials=20, baselines=True)
    search.fail(search.ask(), "TrainingDiverged: loss is nan", own_cause=True)
    for _ in BASELINES[1:]:
        finish(search)
    assert baselines(search) == [("full", YARDSTICK, "failed"), ("attention", YARDSTICK, "finished"), *FIRST[2:]]
    assert asks(search).baseline is None


def test_they_wait_for_the_yardstick_of_a_joint_reward(searching: Searching, opened: Callable, finish: Callable) -> None:
    search = searching(trials=20, baselines=True, objectives="joint_reward")
    other = beside(search, opened)
    yardstick = search.ask()
    assert yardstick.yardstick and isinstance(other.ask(), Wait)
    tell(search, yardstick, scores(fd=1.0, copy_excess=0.5))
    assert finish(other).candidate.method == "attention"


def test_one_that_was_proposed_before_is_a_duplicate_once(searching: Searching, opened: Callable, finish: Callable, query: Callable) -> None:
    """Baselines may be asked for later: they do not decide what a score means."""
    before = searching(trials=20, space="reference", steps=1, rungs=1, sampler="random")
    known = [finish(before).candidate.method for _ in range(4)]
    after = Search(opened(), Settings(**{**before.settings.to_json(), "baselines": True}))
    after.register(20, IDENTITY)
    left = [name for name in BASELINES if name not in known]
    assert [finish(after).candidate.method for _ in left] == left
    told = [(row[0], row[2]) for row in baselines(after) if row[1] not in (None, YARDSTICK)]
    assert sorted(told) == sorted((name, "finished" if name in left else "duplicate") for name in BASELINES if name != "full")


def test_a_space_that_cannot_propose_them_has_them_all_the_same(searching: Searching, finish: Callable) -> None:
    search = searching(trials=20, baselines=True, methods="bias")
    asked = [finish(search) for _ in BASELINES]
    assert baselines(search) == FIRST
    assert {name for name, each in zip(BASELINES, asked) if trial(search, each.number).params} == {"bias"}, "the sampler learns what it can"



