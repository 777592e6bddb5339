"""Asking and telling on the real store, without training: duplicates, retries, the yardstick, and how a study ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from finished_study import scores
from optuna.trial import TrialState

from hpo.errors import BadSetting
from hpo.settings import Settings
from hpo.spaces.reference import BASELINES, reference_candidate
from hpo.study import ATTEMPT, BASELINE, DUPLICATE_OF, MOST_ATTEMPTS, MOST_BAD_PROPOSALS, MOST_DUPLICATES, YARDSTICK, Asked, Ended, Search, Wait, most_failures
from hpo.worker import stored_settings
from storage import leases, results
from storage.errors import LeaseLost, SettingsDiffer, StorageUnreachable

Searching = Callable[..., Search]
IDENTITY = {"model": "m", "encoder": "e", "data": "d"}
FEW = ("full", "attention", "norm", "bias", "lora")  # methods of a space that is soon exhausted


@pytest.fixture
def searching(searching: Searching) -> Searching:
    """Studies without baselines, but where a test asks for them."""
    return lambda **changes: searching(**{"baselines": False, **changes})


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
    assert search.register(3, IDENTITY).trials == 3
    finish(search)
    assert search.state() is None
    search.register(1, IDENTITY)
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
    order = ["full", *sorted(set(BASELINES) - {"full"})]
    for name in order[:2]:
        asked = search.ask()
        assert asked.yardstick and asked.candidate == reference_candidate(name, 40)
        search.fail(asked, "TrainingDiverged: loss is nan", own_cause=True)
    assert finish(search).candidate == reference_candidate(order[2], 40)
    assert not search.ask().yardstick


def test_a_yardstick_is_measured_even_where_its_candidate_is_known(searching: Searching, finish: Callable, opened: Callable) -> None:
    """Else a study whose yardstick failed late would propose a finished baseline for ever."""
    search = searching(space="reference", steps=1, trials=100, methods=",".join(FEW))  # so many that it may fail often
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
    search = searching(trials=50, space="reference", steps=1, methods=",".join(FEW))
    seen = [finish(search).candidate for _ in range(len(FEW))]
    assert len(set(seen)) == len(FEW)
    told = [each for each in search.study.get_trials() if each.state == TrialState.FAIL]
    assert told, "all of them by chance alone is improbable"
    for each in told:
        known = trial(search, each.user_attrs[DUPLICATE_OF])
        assert known.state == TrialState.COMPLETE and known.params["method"] == each.params["method"]
    assert set(query("SELECT outcome FROM trial_scores WHERE study = :s AND state = 'FAIL'", s=search.settings.study)) == {("duplicate",)}
    counts = leases.counts(search.store, search.id)
    assert (counts.finished, counts.failed, counts.duplicates) == (len(FEW), 0, len(told))


def test_a_candidate_that_runs_elsewhere_is_a_duplicate_too(searching: Searching, opened: Callable) -> None:
    search = searching(trials=9, space="reference", steps=1, methods=",".join(FEW))
    others = [beside(search, opened) for _ in range(2)]
    running = [search.ask(), others[0].ask(), others[1].ask()]
    assert len({asked.candidate.hash for asked in running}) == 3


def test_an_exhausted_space_ends_the_study_with_status_0(searching: Searching, finish: Callable) -> None:
    search = searching(trials=50, space="reference", steps=1, sampler="random", methods=",".join(FEW))
    for _ in FEW:
        finish(search)
    assert search.ask() == Ended(0, f"the space is exhausted: {MOST_DUPLICATES} proposals in a row were known already")
    assert leases.counts(search.store, search.id).finished == len(FEW)


def test_a_space_of_which_nothing_works_is_no_good_end(searching: Searching, finish: Callable) -> None:
    search = searching(trials=50, space="reference", steps=1, sampler="random", methods="full,bias", baselines=True)
    for _ in BASELINES:
        finish(search)
    ended = search.ask()
    assert ended.status == 0, "both were run as baselines"
    search = searching(trials=50, space="reference", steps=2, sampler="random", methods="full,bias")
    finish(search)
    failed = 0
    while not isinstance(asked := search.ask(), Ended):
        search.fail(asked, "BadSelection: no such region", own_cause=True)
        failed += 1
    assert failed == 3 and asked.status == 1 and "3 trials failed: 3 × BadSelection: no such region" in asked.reason


def test_a_name_in_the_hub_s_cache_stays_a_name_and_a_folder_becomes_absolute(searching: Searching, settings: Callable, model, monkeypatch) -> None:
    search = searching()
    search.settings = replace(search.settings, model="clinic/base", encoder="pixels", data="data-of-ours")
    assert {name: search.free()[name] for name in ("model", "encoder", "data")} == {"model": "clinic/base", "encoder": "pixels", "data": "data-of-ours"}
    monkeypatch.chdir(model)
    search.settings = replace(search.settings, model="base", encoder="clip")
    free = search.free()
    assert free["model"] == str(model / "base") and free["encoder"] == str(model / "clip") and Path(free["out"]).is_absolute()


def test_nobody_ends_an_exhausted_study_while_a_trial_runs(searching: Searching, opened: Callable, finish: Callable, query: Callable) -> None:
    search = searching(trials=50, space="reference", steps=1, sampler="random", methods=",".join(FEW))
    other = beside(search, opened)
    for _ in range(len(FEW) - 1):
        finish(search)
    last = search.ask()
    assert isinstance(other.ask(), Wait) and other.state() is None
    expire(search, query, last)
    again = other.ask()
    assert again.candidate == last.candidate
    other.finish(again, scores(1, 1), 1.0)
    assert isinstance(other.ask(), Ended) and leases.counts(other.store, other.id).finished == len(FEW)


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
    search.register(5, IDENTITY)
    for _ in range(5):
        finish(search)
    assert search.state() == Ended(0, "all 5 trials are finished")


def test_a_worker_that_joins_does_not_forgive_failures(searching: Searching, opened: Callable) -> None:
    search = searching(trials=5)
    for _ in range(11):
        search.fail(search.ask(), "why", own_cause=True)
    other = beside(search, opened)
    other.register(None, IDENTITY)
    assert other.ask().status == 1


@pytest.mark.parametrize(("changed", "identity", "named"), [({"steps": 41}, {}, ("'steps'", "40", "41")), ({}, {"data": "other"}, ("'data'", "'d'", "'other'")),
                                                            ({"objectives": "fd,loss_gap"}, {}, ("'objectives'", "copy_excess", "loss_gap")),
                                                            ({"reward_weight": 0.4}, {}, ("'reward_weight'", "0.5", "0.4"))])
def test_what_decides_a_scores_meaning_must_agree(changed: dict, identity: dict, named: tuple, searching: Searching, opened: Callable) -> None:
    search = searching()
    other = Search(opened(), Settings(**{**search.settings.to_json(), **changed}))
    with pytest.raises(SettingsDiffer) as refused:
        other.register(5, {**IDENTITY, **identity})
    assert all(word in str(refused.value) for word in named)


def test_other_settings_may_change_and_paths_are_stored_absolute_and_the_url_is_not(searching: Searching, opened: Callable) -> None:
    search = searching()
    changed = Settings(**{**search.settings.to_json(), "workers": 7, "keep": "all", "out": "elsewhere", "encoder": "pixels",
                          "storage": "postgresql://u:secret@h/d", "sampler": "random"})
    Search(opened(), changed).register(5, IDENTITY)
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
    assert finish(search).trial.user_attrs == {} and baselines(search)[-1][1] is None, "then the space proposes"


def test_they_count_and_with_few_trials_the_first_are_run(searching: Searching, finish: Callable, states: Callable) -> None:
    search = searching(trials=3, baselines=True)
    for _ in range(3):
        finish(search)
    assert search.ask() == Ended(0, "all 3 trials are finished") and baselines(search) == FIRST[:3]
    assert states(search.settings.study) == {"COMPLETE": 3}, "none waits"


def test_without_them_the_yardstick_is_run_all_the_same(searching: Searching, finish: Callable) -> None:
    search = searching(trials=20, baselines=False)
    asked = [finish(search) for _ in range(3)]
    assert [BASELINE in each.trial.user_attrs for each in asked] == [True, False, False] and asked[0].yardstick


def test_workers_and_launches_side_by_side_share_them(searching: Searching, opened: Callable) -> None:
    search = searching(trials=20, baselines=True)
    other = beside(search, opened)
    asked = []
    for i in range(len(BASELINES)):
        asking = (search, other)[i % 2]
        asking.register(20, IDENTITY)  # as another launch does
        asked.append((asking, asking.ask()))
    assert [each.candidate.method for _, each in asked] == list(BASELINES)
    assert BASELINE not in other.ask().trial.user_attrs
    for asking, each in asked:
        asking.finish(each, scores(1, 1), 1.0)
    assert baselines(search)[:-1] == FIRST


def test_one_whose_worker_was_killed_is_run_again_and_none_twice(searching: Searching, opened: Callable, finish: Callable, query: Callable) -> None:
    search = searching(trials=20, baselines=True)
    finish(search)
    dead = search.ask()
    expire(search, query, dead)
    other = beside(search, opened)
    assert [finish(other).candidate.method for _ in BASELINES[1:]] == list(BASELINES[1:])
    assert baselines(search) == [FIRST[0], ("attention", "attention", "expired"), *FIRST[1:]]
    assert BASELINE not in other.ask().trial.user_attrs


def test_one_is_not_lost_if_whoever_found_it_expired_was_killed_too(searching: Searching, opened: Callable, finish: Callable, query: Callable) -> None:
    search = searching(trials=20, baselines=True)
    finish(search)
    expire(search, query, search.ask())
    other = beside(search, opened)
    assert leases.expire(other.store, other.id) == [1], "and nothing was enqueued in its place"
    assert [finish(other).candidate.method for _ in BASELINES[1:]] == list(BASELINES[1:])


def test_one_that_fails_by_its_own_fault_is_not_retried(searching: Searching, finish: Callable) -> None:
    search = searching(trials=20, baselines=True)
    finish(search)
    search.fail(search.ask(), "TrainingDiverged: loss is nan", own_cause=True)
    assert [finish(search).candidate.method for _ in BASELINES[2:]] == list(BASELINES[2:])
    assert search.ask().trial.user_attrs == {} and ("attention", "attention", "failed") in baselines(search)


def test_one_that_takes_the_yardsticks_place_is_not_run_twice(searching: Searching, finish: Callable) -> None:
    search = searching(trials=20, baselines=True)
    search.fail(search.ask(), "TrainingDiverged: loss is nan", own_cause=True)
    for _ in BASELINES[1:]:
        finish(search)
    assert baselines(search) == [("full", YARDSTICK, "failed"), ("attention", YARDSTICK, "finished"), *FIRST[2:]]
    assert search.ask().trial.user_attrs == {}


def test_they_wait_for_the_yardstick_of_a_joint_reward(searching: Searching, opened: Callable, finish: Callable) -> None:
    search = searching(trials=20, baselines=True, objectives="joint_reward")
    other = beside(search, opened)
    yardstick = search.ask()
    assert yardstick.yardstick and isinstance(other.ask(), Wait)
    search.finish(yardstick, scores(fd=1.0, copy_excess=0.5), 1.0)
    assert finish(other).candidate.method == "attention"


def test_one_that_was_proposed_before_is_a_duplicate_once(searching: Searching, opened: Callable, finish: Callable, query: Callable) -> None:
    """Baselines may be asked for later: they do not decide what a score means."""
    before = searching(trials=20, space="reference", steps=1, sampler="random")
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


# Users' own spaces.

SPACE = """
from trainers.candidate import Candidate

def propose(trial):
    if {condition}:
        raise ValueError("not this one")
    return Candidate.of("bias", ("up",), ("bias",), trial.suggest_float("rate", 1e-4, 1e-2), 4)
"""
IN_A_STUDY = "trial.study.study_name.startswith('test-')"  # not where a launch tries the function out


@pytest.fixture
def written(tmp_path) -> Callable[..., str]:
    """--space of a function that raises on this condition."""
    def make(condition: str, name: str = "space.py") -> str:
        (tmp_path / name).write_text(SPACE.format(condition=condition))
        return f"{tmp_path / name}:propose"

    return make


def test_a_proposal_that_raises_fails_its_trial_with_the_reason(searching: Searching, written: Callable, finish: Callable) -> None:
    search = searching(space=written("trial.number in (1, 2)"))
    finish(search), finish(search)
    rows = results.trials(search.store, search.settings.study)
    assert [row["outcome"] for row in rows] == ["finished", "failed", "failed", "finished"] and trial(search, 3).params.keys() == {"rate"}
    assert rows[1]["reason"] == f"--space {search.settings.space}: the function raised ValueError: not this one; mend it, or catch it there"
    assert leases.counts(search.store, search.id).failed == 2


def test_a_function_that_always_raises_ends_the_launch_before_any_trial(searching: Searching, written: Callable, states: Callable) -> None:
    with pytest.raises(BadSetting, match="the function raised ValueError: not this one"):
        searching(study="test-raises", space=written("True"))
    assert states("test-raises") == {}


def test_one_that_always_raises_only_in_a_study_ends_it_too(searching: Searching, written: Callable, finish: Callable) -> None:
    search = searching(space=written(IN_A_STUDY))
    finish(search)
    with pytest.raises(BadSetting, match=f"not this one; .* \\({MOST_BAD_PROPOSALS} proposals in a row failed\\)"):
        search.ask()
    assert leases.counts(search.store, search.id).running == 0


def test_a_database_that_is_away_is_no_fault_of_the_function(searching: Searching, written: Callable, finish: Callable) -> None:
    gone = "__import__('sqlalchemy').exc"
    search = searching(space=written(f"{IN_A_STUDY} and (_ for _ in ()).throw({gone}.OperationalError('SELECT', {{}}, Exception('gone')))"))
    finish(search)
    with pytest.raises(StorageUnreachable):
        search.ask()
    assert leases.counts(search.store, search.id).failed == 0


def test_a_lost_trial_of_a_function_is_run_again_as_it_was(searching: Searching, written: Callable, finish: Callable) -> None:
    search = searching(space=written("False"))
    finish(search)
    lost = search.ask()
    search.release(lost)
    again = search.ask()
    assert again.candidate == lost.candidate and again.number == lost.number + 1


def test_a_changed_space_is_refused_and_a_moved_one_is_not(searching: Searching, written: Callable, opened: Callable, tmp_path) -> None:
    search = searching(space=written("False"))
    stored = results.settings(search.store, search.id)
    assert stored["free"]["space"] == search.settings.space and "space" not in stored["binding"]
    assert stored_settings(search.store, search.settings.study).space == search.settings.space, "for workers"
    moved = Search(opened(), Settings(**{**search.settings.to_json(), "space": written("False", "moved.py")}))
    assert not moved.register(5, IDENTITY).created and results.settings(search.store, search.id)["free"]["space"] == moved.settings.space
    for other in (written("False or False"), "default"):
        with pytest.raises(SettingsDiffer, match="'space"):
            Search(opened(), Settings(**{**search.settings.to_json(), "space": other})).register(5, IDENTITY)


def test_a_space_of_ours_is_bound_by_its_name(searching: Searching, opened: Callable) -> None:
    search = searching(space="reference")
    assert stored_settings(search.store, search.settings.study).space == "reference"
    with pytest.raises(SettingsDiffer, match="setting 'space' is 'reference' .*in the stored study but 'default'"):
        Search(opened(), Settings(**{**search.settings.to_json(), "space": "default"})).register(5, IDENTITY)


def test_a_relative_path_is_stored_absolute(searching: Searching, tmp_path, monkeypatch) -> None:
    (tmp_path / "own.toml").write_text("[methods.bias]\n")
    monkeypatch.chdir(tmp_path)
    search = searching(space="own.toml")
    monkeypatch.undo()
    stored = stored_settings(search.store, search.settings.study)
    assert stored.space == str(tmp_path / "own.toml") and Search(search.store, stored).space.content == search.space.content
