"""Asking and telling on the real store, without training: duplicates, retries, the yardstick, and how a study ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from finished_study import scores
from optuna.trial import TrialState

from hpo.settings import Settings
from hpo.spaces.reference import reference_candidate
from hpo.study import ATTEMPT, BASELINE, DUPLICATE_OF, MOST_ATTEMPTS, MOST_DUPLICATES, YARDSTICK, Asked, Ended, Search, Wait, most_failures
from storage import leases, results
from storage.errors import LeaseLost, SettingsDiffer
from trainers.methods import METHODS

Searching = Callable[..., Search]


def beside(search: Search, opened: Callable) -> Search:
    """Another worker's view of the same study."""
    return Search(opened(), search.settings)


def expire(search: Search, query: Callable, asked: Asked) -> None:
    """Let a lease run out at once, as if its worker had been killed long ago. A trigger guards leases, so it is taken off for a moment."""
    query("ALTER TABLE peft_pareto.leases DISABLE TRIGGER guard")
    query("UPDATE peft_pareto.leases SET expires_at = clock_timestamp() - interval '1 s' WHERE trial_id = :id", id=asked.id)
    query("ALTER TABLE peft_pareto.leases ENABLE TRIGGER guard")


def trial(search: Search, number: int):
    return search.study.get_trials(deepcopy=False)[number]


def test_the_first_trial_is_the_yardstick_full_fine_tuning_for_all_steps(searching: Searching) -> None:
    asked = searching().ask()
    assert asked.number == 0 and asked.yardstick and asked.candidate == reference_candidate("full", 40)
    assert asked.trial.user_attrs[BASELINE] == YARDSTICK


def test_the_yardstick_teaches_the_sampler_with_parameters_of_its_own(searching: Searching, finish: Callable) -> None:
    search = searching()
    finish(search)
    assert trial(search, 0).params["method"] == "full" and trial(search, 0).params["steps"] == 40


def test_only_one_trial_is_the_yardstick(searching: Searching, finish: Callable) -> None:
    search = searching()
    assert [finish(search).yardstick for _ in range(5)] == [True] + [False] * 4


def test_exactly_as_many_trials_are_started_as_are_missing(searching: Searching, opened: Callable, finish: Callable) -> None:
    search = searching(trials=2)
    other = beside(search, opened)
    first, second = search.ask(), other.ask()
    assert isinstance(other.ask(), Wait) and isinstance(search.ask(), Wait)
    search.finish(first, scores(1, 1), 1.0)
    assert isinstance(search.ask(), Wait), "one runs and one is finished"
    other.finish(second, scores(1, 1), 1.0)
    assert search.ask() == other.ask() == search.state() == Ended(0, "all 2 trials are finished")


def test_the_last_launch_says_how_many_trials_there_shall_be(searching: Searching, finish: Callable) -> None:
    search = searching(trials=1)
    finish(search)
    assert search.register(3, {"model": "m", "encoder": "e", "data": "d"}).trials == 3
    finish(search)
    assert search.state() is None
    search.register(1, {"model": "m", "encoder": "e", "data": "d"})
    assert search.state().status == 0 and leases.counts(search.store, search.id).finished == 2, "nothing finished is lost"


def test_a_failed_trial_is_replaced_and_its_reason_stored(searching: Searching, finish: Callable, query: Callable) -> None:
    search = searching(trials=2)
    asked = search.ask()
    search.fail(asked, "TrainingDiverged: loss is nan", own_cause=True)
    finish(search), finish(search)
    assert search.state() == Ended(0, "all 2 trials are finished")
    assert trial(search, 0).state == TrialState.FAIL
    assert query("SELECT outcome, reason FROM trial_scores WHERE study = :s AND trial = 0", s=search.settings.study) == [
        ("failed", "TrainingDiverged: loss is nan")]


def test_a_yardstick_that_fails_by_its_own_fault_gives_way_to_the_next_baseline(searching: Searching, finish: Callable) -> None:
    search = searching()
    order = ["full", *sorted(set(METHODS) - {"full"})]
    for name in order[:2]:
        asked = search.ask()
        assert asked.yardstick and asked.candidate == reference_candidate(name, 40)
        search.fail(asked, "TrainingDiverged: loss is nan", own_cause=True)
    assert finish(search).candidate == reference_candidate(order[2], 40)
    assert not search.ask().yardstick


def test_a_yardstick_is_measured_even_where_its_candidate_is_known(searching: Searching, finish: Callable, opened: Callable) -> None:
    """Else a study whose yardstick failed late would propose a finished baseline for ever."""
    search = searching(space="reference", steps=1, trials=6)
    other = beside(search, opened)
    yardstick = search.ask()
    while (asked := other.ask()).candidate.method != "attention":
        other.fail(asked, "not this one", own_cause=True)
    other.finish(asked, scores(1, 1), 1.0)
    search.fail(yardstick, "TrainingDiverged: loss is nan", own_cause=True)
    again = finish(search)
    assert again.yardstick and again.candidate == asked.candidate


def test_what_is_not_the_candidates_fault_is_tried_again_but_not_for_ever(searching: Searching) -> None:
    search = searching()
    for attempt in range(1, MOST_ATTEMPTS + 1):
        asked = search.ask()
        assert asked.candidate.method == "full" and asked.yardstick and asked.trial.user_attrs.get(ATTEMPT, 1) == attempt
        search.fail(asked, "OSError: No space left on device", own_cause=False)
    assert search.ask().candidate.method == "attention", "the next baseline"


def test_a_killed_workers_trial_expires_and_is_tried_again(searching: Searching, opened: Callable, query: Callable) -> None:
    search = searching(trials=1)
    dead = search.ask()
    other = beside(search, opened)
    assert isinstance(other.ask(), Wait)
    expire(search, query, dead)
    again = other.ask()
    assert again.candidate == dead.candidate and again.yardstick and again.number == 1
    with pytest.raises(LeaseLost):
        search.finish(dead, scores(1, 1), 1.0)
    other.finish(again, scores(2, 2), 1.0)
    counts = leases.counts(other.store, other.id)
    assert (counts.finished, counts.expired, counts.failed, counts.running) == (1, 1, 0, 0), "an expired lease is no failure"
    assert trial(other, 1).values == [2, 2]


def test_a_released_trial_counts_as_nothing_however_often(searching: Searching, finish: Callable) -> None:
    search = searching(trials=1)
    for _ in range(MOST_ATTEMPTS + 2):
        asked = search.ask()
        assert asked.candidate.method == "full" and asked.yardstick
        search.release(asked)
    counts = leases.counts(search.store, search.id)
    assert (counts.running, counts.failed, counts.released, counts.waiting) == (0, 0, MOST_ATTEMPTS + 2, 1)
    assert finish(search).candidate.method == "full" and search.state() == Ended(0, "all 1 trials are finished")


def test_a_known_candidate_is_told_as_duplicate(searching: Searching, finish: Callable, query: Callable) -> None:
    search = searching(trials=9, space="reference", steps=1)
    seen = [finish(search).candidate for _ in range(len(METHODS))]
    assert len(set(seen)) == len(METHODS)
    told = [each for each in search.study.get_trials() if each.state == TrialState.FAIL]
    assert told, "five of five by chance alone is improbable"
    for each in told:
        known = trial(search, each.user_attrs[DUPLICATE_OF])
        assert known.state == TrialState.COMPLETE and known.params["method"] == each.params["method"]
    assert set(query("SELECT outcome FROM trial_scores WHERE study = :s AND state = 'FAIL'", s=search.settings.study)) == {("duplicate",)}
    counts = leases.counts(search.store, search.id)
    assert (counts.finished, counts.failed, counts.duplicates) == (len(METHODS), 0, len(told))


def test_a_candidate_that_runs_elsewhere_is_a_duplicate_too(searching: Searching, opened: Callable) -> None:
    search = searching(trials=9, space="reference", steps=1)
    others = [beside(search, opened) for _ in range(2)]
    running = [search.ask(), others[0].ask(), others[1].ask()]
    assert len({asked.candidate.hash for asked in running}) == 3


def test_an_exhausted_space_ends_the_study_with_status_0(searching: Searching, finish: Callable) -> None:
    search = searching(trials=50, space="reference", steps=1, sampler="random")
    for _ in METHODS:
        finish(search)
    assert search.ask() == Ended(0, f"the space is exhausted: {MOST_DUPLICATES} proposals in a row were known already")
    assert leases.counts(search.store, search.id).finished == len(METHODS)


def test_nobody_ends_an_exhausted_study_while_a_trial_runs(searching: Searching, opened: Callable, finish: Callable, query: Callable) -> None:
    search = searching(trials=50, space="reference", steps=1, sampler="random")
    other = beside(search, opened)
    for _ in range(len(METHODS) - 1):
        finish(search)
    last = search.ask()
    assert isinstance(other.ask(), Wait) and other.state() is None
    expire(search, query, last)
    again = other.ask()
    assert again.candidate == last.candidate
    other.finish(again, scores(1, 1), 1.0)
    assert isinstance(other.ask(), Ended) and leases.counts(other.store, other.id).finished == len(METHODS)


def test_too_many_failures_end_the_launch_with_the_reasons(searching: Searching) -> None:
    search = searching(trials=5)
    assert most_failures(5) == 10 and most_failures(200) == 40
    for _ in range(11):
        assert search.state() is None
        search.fail(search.ask(), "TrainingDiverged: loss is nan", own_cause=True)
    ended = search.ask()
    assert ended.status == 1 and "11 trials failed" in ended.reason and "11 × TrainingDiverged: loss is nan" in ended.reason


def test_a_new_launch_is_not_ended_by_the_failures_of_the_last(searching: Searching, finish: Callable) -> None:
    search = searching(trials=5)
    for _ in range(11):
        search.fail(search.ask(), "OSError: No space left on device", own_cause=False)
    assert search.state().status == 1
    search.register(5, {"model": "m", "encoder": "e", "data": "d"})
    for _ in range(5):
        finish(search)
    assert search.state() == Ended(0, "all 5 trials are finished")


def test_a_worker_that_joins_does_not_forgive_failures(searching: Searching, opened: Callable) -> None:
    search = searching(trials=5)
    for _ in range(11):
        search.fail(search.ask(), "why", own_cause=True)
    other = beside(search, opened)
    other.register(None, {"model": "m", "encoder": "e", "data": "d"})
    assert other.ask().status == 1


@pytest.mark.parametrize(("changed", "identity", "named"), [({"steps": 41}, {}, ("'steps'", "40", "41")), ({}, {"data": "other"}, ("'data'", "'d'", "'other'")),
                                                            ({"objectives": "fd,loss_gap"}, {}, ("'objectives'", "copy_excess", "loss_gap")),
                                                            ({"reward_weight": 0.4}, {}, ("'reward_weight'", "0.5", "0.4"))])
def test_what_decides_a_scores_meaning_must_agree(changed: dict, identity: dict, named: tuple, searching: Searching, opened: Callable) -> None:
    search = searching()
    other = Search(opened(), Settings(**{**search.settings.to_json(), **changed}))
    with pytest.raises(SettingsDiffer) as refused:
        other.register(5, {"model": "m", "encoder": "e", "data": "d", **identity})
    assert all(word in str(refused.value) for word in named)


def test_other_settings_may_change_and_paths_are_stored_absolute_and_the_url_is_not(searching: Searching, opened: Callable) -> None:
    search = searching()
    changed = Settings(**{**search.settings.to_json(), "workers": 7, "keep": "all", "out": "elsewhere", "encoder": "pixels",
                          "storage": "postgresql://u:secret@h/d", "sampler": "random"})
    Search(opened(), changed).register(5, {"model": "m", "encoder": "e", "data": "d"})
    free = results.settings(search.store, search.id)["free"]
    assert (free["workers"], free["keep"], free["encoder"], free["sampler"]) == (7, "all", "pixels", "random")
    assert free["out"].startswith("/") and free["out"].endswith("/elsewhere") and "storage" not in free


# joint_reward alone.

def test_others_wait_for_the_yardstick_of_a_joint_reward(searching: Searching, opened: Callable, finish: Callable) -> None:
    search = searching(trials=3, objectives="joint_reward")
    other = beside(search, opened)
    yardstick = search.ask()
    assert isinstance(other.ask(), Wait)
    search.finish(yardstick, scores(fd=1.0, copy_excess=0.5), 1.0)
    assert trial(search, 0).values == [pytest.approx(0.5 * 4 / 5 - 0.5)]
    better = finish(other, fd=1.0, copy_excess=0.0)
    assert trial(other, better.number).values == [pytest.approx(0.5 * 4 / 5)] and other.study.best_trial.number == better.number


def test_a_joint_reward_that_is_not_defined_ends_the_launch_with_status_1(searching: Searching) -> None:
    search = searching(trials=3, objectives="joint_reward")
    assert search.finish(search.ask(), scores(fd=1.0, copy_excess=-0.1), 1.0) == "failed"
    ended = search.ask()
    assert ended.status == 1 and "does not copy more than the untouched base" in ended.reason
    search.register(3, {"model": "m", "encoder": "e", "data": "d"})
    assert search.ask() == ended, "another launch would find the same"


def test_a_joint_reward_waits_for_the_next_baseline_if_the_yardstick_diverges(searching: Searching, opened: Callable) -> None:
    search = searching(trials=3, objectives="joint_reward")
    other = beside(search, opened)
    search.fail(search.ask(), "TrainingDiverged: loss is nan", own_cause=True)
    yardstick = other.ask()
    assert yardstick.candidate.method == "attention" and isinstance(search.ask(), Wait)


def test_a_joint_reward_without_any_baseline_ends_with_status_1(searching: Searching) -> None:
    search = searching(trials=3, objectives="joint_reward")
    for _ in METHODS:
        search.fail(search.ask(), "TrainingDiverged: loss is nan", own_cause=True)
    ended = search.ask()
    assert ended.status == 1 and "no baseline could be the yardstick" in ended.reason and "5 × TrainingDiverged" in ended.reason
