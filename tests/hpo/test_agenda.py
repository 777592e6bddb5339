"""What a study runs before it proposes anything: the yardstick, the papers' methods, a queue, repeats of the front. On the real store, without training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from finished_study import scores, tell
from optuna.trial import TrialState
from told import asks, beside, expire, quickly, run, rung, trial

from hpo.agenda import YARDSTICK, Entry
from hpo.ending import Ended
from hpo.settings import Settings
from hpo.spaces.reference import BASELINES, reference_candidate
from hpo.study import Search, Wait
from storage import results, trials

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


def test_the_next_yardstick_waits_for_the_baseline_that_is_the_same_and_takes_its_rungs_over(searching: Searching, opened: Callable, query: Callable) -> None:
    search = searching(trials=20, baselines=True)
    other, third = beside(search, opened), beside(search, opened)
    full, attention, left = asks(search), asks(other), asks(third)
    assert [each.baseline for each in (full, attention, left)] == [YARDSTICK, *BASELINES[1:3]] and BASELINES[1] == "attention"
    search.fail(full, "OutOfMemoryError: full fine-tuning needs more than this GPU has", own_cause=True)
    rung(other, attention, 4, 3.0, 1.0)
    assert isinstance(search.ask(), Wait), "a yardstick before all else"
    third.release(left)
    assert asks(search) == left, "but for what was left"
    run(other, lambda asked, steps: (2.0, 1.0), replace(attention, known={4: 4.0}))
    yardstick = asks(other)
    assert yardstick.yardstick and yardstick.candidate == attention.candidate and set(yardstick.known) == set(yardstick.rungs)
    expire(query, yardstick)
    again = asks(third)
    assert (again.number, set(again.known)) == (yardstick.number, set(yardstick.rungs)), "also where its worker is killed"
    assert third.finish(again) == "finished" and trial(search, again.number).values == trial(search, attention.number).values == [2.0, 1.0]
    assert asks(other).baseline == BASELINES[3]
    assert query("SELECT trial, steps FROM rung_scores WHERE study = :s ORDER BY 1, 2", s=search.settings.study) == [
        *((attention.number, steps) for steps in attention.rungs), (yardstick.number, 40)]
    assert {row[0] for row in query("SELECT trial FROM pareto_front WHERE study = :s", s=search.settings.study)} == {attention.number}


def test_the_next_yardstick_goes_on_from_the_rungs_of_what_was_stopped(searching: Searching) -> None:
    search = searching(trials=20, space="reference")
    first = asks(search)
    search.study.enqueue_trial({"method": "attention", "steps": 40})
    stopped = search.taken(trials.take(search.store, search.id, "taken beside the yardstick"))
    rung(search, stopped, 4, 9.0, 9.0)
    search.finish(stopped, stopped=True)
    search.fail(first, "TrainingDiverged: loss is nan", own_cause=True)
    yardstick = asks(search)
    assert yardstick.yardstick and yardstick.candidate == stopped.candidate and yardstick.known == {4: 0.0}


def test_who_is_paused_before_the_yardstick_begins_makes_no_second_one(searching: Searching, opened: Callable, monkeypatch) -> None:
    search = searching(trials=20, baselines=True)
    other, real = beside(search, opened), search.begin
    with monkeypatch.context() as patched:
        patched.setattr(search, "begin", lambda entry: (other.begin(entry), real(entry))[1])
        assert search.ask() == Wait()
    assert baselines(search) == [("full", YARDSTICK, None)] and asks(search).baseline == BASELINES[1]


def test_who_is_paused_before_a_baseline_begins_trains_nothing_twice(searching: Searching, opened: Callable, finish: Callable, monkeypatch) -> None:
    search = searching(trials=20, baselines=True)
    finish(search)
    other, real = beside(search, opened), search.begin
    with monkeypatch.context() as patched:
        patched.setattr(search, "begin", lambda entry: (other.begin(Entry(entry.candidate)), real(entry))[1])
        assert search.ask() == Wait()
    assert asks(search).baseline == BASELINES[2], "it comes later"
    assert baselines(search) == [("full", YARDSTICK, "finished"), ("attention", None, None), (BASELINES[2], BASELINES[2], None)]


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


def test_one_that_is_under_way_as_a_proposal_waits_for_it(searching: Searching, opened: Callable) -> None:
    search = searching(trials=20, space="reference", rungs=1, methods="attention,bias")
    quickly(search, 1.0, 1.0)
    proposed = asks(search)
    after = Search(opened(), replace(search.settings, baselines=True))
    after.register(20, IDENTITY)
    assert asks(after).candidate.method != proposed.candidate.method
    rung(search, proposed, 40, 1.0, 1.0)
    search.finish(proposed)
    told = {asks(after).candidate.method for _ in BASELINES[3:]}
    assert proposed.candidate.method not in told, "it was measured"


def test_one_whose_candidate_was_stopped_is_run_to_its_end(searching: Searching, opened: Callable) -> None:
    search = searching(trials=20, space="reference", methods="attention")
    quickly(search, 1.0, 1.0)
    search.study.enqueue_trial({"method": "attention", "steps": 40})
    stopped = asks(search)
    rung(search, stopped, 4, 9.0, 9.0)
    search.finish(stopped, stopped=True)
    after = Search(opened(), replace(search.settings, baselines=True))
    after.register(20, IDENTITY)
    again = asks(after)
    assert again.candidate == stopped.candidate and again.exempt and again.known == {4: 0.0}


# What was enqueued.

QUEUE = [reference_candidate(name, steps) for name, steps in (("lora", 13), ("bias", 40), ("full", 4))]


def queued(candidates: list) -> list[dict]:
    return [{"candidate": each.to_json(), "why": "enqueued"} for each in candidates]


def test_a_queue_is_run_in_its_order_before_anything_is_proposed(searching: Searching) -> None:
    search = searching(trials=20)
    search.register(20, IDENTITY, queued(QUEUE))
    yardstick, _ = run(search, lambda asked, steps: (1.0, 1.0))
    assert yardstick.yardstick
    assert [asks(search).candidate for _ in range(2)] == QUEUE[:2], "the third is a rung of the yardstick"
    assert asks(search).candidate not in QUEUE


def test_another_launch_adds_to_the_queue_and_nothing_is_run_twice(searching: Searching, opened: Callable) -> None:
    search = searching(trials=20)
    search.register(20, IDENTITY, queued(QUEUE[:1]))
    quickly(search, 1.0, 1.0), quickly(search, 1.0, 1.0)
    other = beside(search, opened)
    other.register(20, IDENTITY, queued(QUEUE[:2]))
    assert quickly(other, 1.0, 1.0).candidate == QUEUE[1] and results.queue(search.store, search.id) == queued(QUEUE[:2])


# Repeats of the front.

def test_points_of_the_front_are_run_again_and_a_point_is_the_mean_of_its_repeats(searching: Searching, query: Callable) -> None:
    search = searching(trials=4, repeats=2, rungs=1)
    first, second = quickly(search, 1.0, 1.0), quickly(search, 3.0, 3.0)
    assert second.repeat == 1 and second.candidate == first.candidate and second.number == 1 and second.exempt
    assert query("SELECT trial, fd, copy_excess, repeats FROM pareto_front WHERE study = :s", s=search.settings.study) == [(0, 2.0, 2.0, 2)]
    third = quickly(search, 1.5, 1.5)
    assert third.repeat == 0, "the front's point has its repeats"
    fourth = quickly(search, 1.7, 1.7)
    assert fourth.repeat == 1 and fourth.candidate == third.candidate
    assert search.state() == Ended(0, "all 4 trials are finished"), "repeats count"
    assert query("SELECT trial, fd, repeats FROM pareto_front WHERE study = :s", s=search.settings.study) == [(2, pytest.approx(1.6), 2)]
    assert trial(search, 3).state == TrialState.COMPLETE and trial(search, 3).params.keys() == trial(search, 2).params.keys(), "repeats teach too"


def test_at_most_every_second_trial_is_a_repeat(searching: Searching, opened: Callable) -> None:
    search = searching(trials=20, repeats=9, rungs=1)
    asked = [quickly(search, 1.0, 1.0 - i) for i in range(8)]
    assert [each.repeat > 0 for each in asked] == [False, True] * 4


def test_a_repeat_that_runs_is_not_begun_twice(searching: Searching, opened: Callable) -> None:
    search = searching(trials=20, repeats=2, rungs=1)
    quickly(search, 1.0, 1.0)
    one, other = asks(search), asks(beside(search, opened))
    assert one.repeat == 1 and other.repeat == 0
    search.release(one)
    assert asks(search) == one


def test_an_exhausted_space_still_has_its_front_repeated(searching: Searching) -> None:
    search = searching(trials=20, repeats=3, rungs=1, steps=1, space="reference", methods="full")
    repeats = [quickly(search, 1.0, 1.0).repeat for _ in range(3)]
    assert repeats == [0, 1, 2] and search.ask().status == 0


# joint_reward with rungs.

def test_a_yardstick_that_was_left_is_taken_up_by_who_waits_for_it(searching: Searching, opened: Callable, query: Callable) -> None:
    search = searching(trials=3, objectives="joint_reward")
    other = beside(search, opened)
    dead = asks(search)
    rung(search, dead, 4, 3.0, 0.2)
    assert isinstance(other.ask(), Wait)
    expire(query, dead)
    again = asks(other)
    assert again.yardstick and again.number == 0 and set(again.known) == {4}


def test_rewards_are_those_of_all_rungs_and_what_is_worse_is_stopped(searching: Searching, query: Callable) -> None:
    search = searching(trials=5, objectives="joint_reward", sampler="tpe")
    run(search, lambda asked, steps: (4.0, 0.1 + steps / 100))
    ends = [run(search, lambda asked, steps: (2.0, 0.0))[1], run(search, lambda asked, steps: (1.0, 0.0))[1], run(search, lambda asked, steps: (9.0, 0.9))[1]]
    assert ends == ["finished", "finished", "stopped"] and trial(search, 3).state == TrialState.PRUNED and trial(search, 3).values is None
    rewards = {tuple(row[:2]): row[2] for row in query("SELECT trial, steps, joint_reward FROM rung_scores WHERE study = :s", s=search.settings.study)}
    search.recall.refresh()
    taught = {(point.number, point.steps): point.values[0] for point in search.recall.proposer.history.points}
    assert taught == pytest.approx(rewards) and len(rewards) == 10
    assert rewards[0, 4] == pytest.approx(0.5 * 1 / 5 - 0.5 * 0.14 / 0.5), "the yardstick's early rungs, by its last one"
    assert query("SELECT trial FROM pareto_front WHERE study = :s", s=search.settings.study) == [(2,), (2,), (2,)], "equal points all stay"
