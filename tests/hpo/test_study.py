"""Asking and telling on the real store, without training: leases, duplicates, rungs, stopping, and how a study ends."""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from finished_study import scores, tell
from optuna.trial import TrialState
from told import asks, beside, expire, quickly, run, rung, trial

from hpo import constraints, stopping
from hpo.agenda import MOST_DUPLICATES, MOST_INFEASIBLE, Entry
from hpo.code import OtherCode
from hpo.ending import STABLE_TRIALS, Ended, most_failures
from hpo.errors import BadSetting
from hpo.history import NAME
from hpo.settings import Settings
from hpo.spaces.reference import BASELINES
from hpo.study import MOST_BAD_PROPOSALS, Asked, Search, Wait
from hpo.worker import stored_settings
from storage import embedded, leases, results, standing, trials
from storage.errors import LeaseLost, SettingsDiffer, StorageUnreachable
from storage.store import open_store, worker_name
from trainers.candidate import Candidate

Searching = Callable[..., Search]
IDENTITY = {"model": "m", "encoder": "e", "data": "d"}
FEW = ("full", "attention", "norm", "bias", "lora")  # methods of a space that is soon exhausted
MOST_LOSSES = 3  # as the database has it


@pytest.fixture
def searching(searching: Searching) -> Searching:
    """Studies without baselines, but where a test asks for them."""
    return lambda **changes: searching(**{"baselines": False, **changes})


def test_exactly_as_many_trials_are_started_as_are_missing(searching: Searching, opened: Callable, finish: Callable) -> None:
    search = searching(trials=2)
    other = beside(search, opened)
    first, second = search.ask(), other.ask()
    assert isinstance(other.ask(), Wait) and isinstance(search.ask(), Wait)
    tell(search, first, scores(1, 1))
    assert isinstance(search.ask(), Wait), "one runs and one is finished"
    tell(other, second, scores(1, 1))
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


def test_what_is_not_the_candidates_fault_goes_on_as_the_same_trial_but_not_for_ever(searching: Searching) -> None:
    search = searching()
    for loss in range(1, MOST_LOSSES + 1):
        asked = search.ask()
        assert asked.number == 0 and asked.yardstick and asked.candidate.method == "full"
        assert search.fail(asked, "OSError: No space left on device", own_cause=False) == ("failed" if loss == MOST_LOSSES else "left")
    assert trial(search, 0).state == TrialState.FAIL
    assert leases.read(search.store, asked.id).reason == (f"its lease was lost {MOST_LOSSES} times without a new rung, at last: "
                                                          "OSError: No space left on device")
    assert search.ask().candidate.method == "attention", "the next baseline"


def test_a_new_rung_forgives_the_losses_before_it(searching: Searching) -> None:
    search = searching()
    for steps in (4, 13):
        for _ in range(MOST_LOSSES - 1):
            assert search.fail(search.ask(), "OSError", own_cause=False) == "left"
        rung(search, asked := search.ask(), steps, 1.0, 1.0)
        search.release(asked)
    assert search.fail(search.ask(), "OSError", own_cause=False) == "left"


def test_a_killed_workers_trial_is_taken_up_with_its_rungs_and_the_old_one_cannot_write(searching: Searching, opened: Callable, query: Callable) -> None:
    search = searching(trials=1)
    dead = search.ask()
    rung(search, dead, 4, 3.0, 1.0)
    other = beside(search, opened)
    assert isinstance(other.ask(), Wait)
    expire(query, dead)
    again = other.ask()
    assert replace(again, known={}) == replace(dead, known={}) and again.known == {4: 4.0} and trial(search, 0).state == TrialState.RUNNING
    for write in (lambda: rung(search, dead, 13, 9, 9), lambda: rung(search, dead, 4, 9, 9), lambda: search.finish(dead, stopped=True), lambda: search.release(dead),
                  lambda: search.fail(dead, "why", own_cause=True)):
        with pytest.raises(LeaseLost):
            write()
    tell(other, again, scores(2, 2))
    counts = leases.counts(other.store, other.id)
    assert (counts.finished, counts.failed, counts.running, counts.waiting) == (1, 0, 0, 0), "an expired lease is no failure"
    assert trial(other, 0).values == [2, 2] and len(other.study.trials) == 1
    assert query("SELECT steps, fd FROM rung_scores WHERE study = :s ORDER BY steps", s=search.settings.study) == [(4, 3.0), (40, 2.0)]


def test_one_that_had_all_its_rungs_only_needs_to_be_told(searching: Searching, opened: Callable, query: Callable) -> None:
    search = searching(trials=1)
    dead = search.ask()
    for steps in dead.rungs:
        rung(search, dead, steps, steps, 1.0)
    expire(query, dead)
    other = beside(search, opened)
    again = other.ask()
    assert set(again.known) == set(again.rungs) and other.finish(again) == "finished" and trial(other, 0).values == [40, 1]


def test_left_trials_come_first_by_number_then_enqueued_ones_then_new_ones(searching: Searching, opened: Callable, finish: Callable) -> None:
    search = searching(trials=20)
    workers = [search, *(beside(search, opened) for _ in range(3))]
    held = [asks(worker) for worker in workers]
    search.study.enqueue_trial({"method": "bias", "steps": 13})
    for each in (3, 1, 2):
        workers[each].release(held[each])
    taken = [asks(beside(search, opened)) for _ in range(5)]
    assert [each.number for each in taken] == [1, 2, 3, 4, 5]
    assert (taken[3].candidate.method, taken[3].candidate.steps) == ("bias", 13)


def test_what_was_enqueued_through_optuna_waits_for_the_yardstick(searching: Searching) -> None:
    search = searching()
    search.study.enqueue_trial({"method": "bias"})
    first, second = asks(search), asks(search)
    assert first.yardstick and second.number == 0 and second.candidate.method == "bias"


def test_an_enqueued_duplicate_is_told_so(searching: Searching, query: Callable) -> None:
    search = searching(space="reference")
    run(search, lambda asked, steps: (1.0, 1.0))
    search.study.enqueue_trial({"method": "full", "steps": 13})
    assert asks(search).number == 2
    assert query("SELECT outcome, reason FROM trial_scores WHERE study = :s AND trial = 1", s=search.settings.study) == [
        ("duplicate", "the same candidate as trial 0")]


def test_a_released_trial_counts_as_nothing_however_often(searching: Searching, finish: Callable) -> None:
    search = searching(trials=1)
    for _ in range(MOST_LOSSES + 2):
        asked = search.ask()
        assert asked.number == 0 and asked.yardstick
        search.release(asked)
    counts = leases.counts(search.store, search.id)
    assert (counts.running, counts.failed, counts.released, counts.waiting) == (0, 0, 0, 1)
    assert finish(search).candidate.method == "full" and search.state() == Ended(0, "all 1 trials are finished")


def test_a_known_candidate_is_told_as_duplicate(searching: Searching, finish: Callable, query: Callable) -> None:
    search = searching(trials=50, space="reference", steps=1, rungs=1, methods=",".join(FEW))
    seen = [finish(search).candidate for _ in range(len(FEW))]
    assert len(set(seen)) == len(FEW)
    told = [each for each in search.study.get_trials() if each.state == TrialState.FAIL]
    assert told, "all of them by chance alone is improbable"
    for each in told:
        known = trial(search, int(leases.read(search.store, each._trial_id).reason.removeprefix("the same candidate as trial ")))
        assert known.state == TrialState.COMPLETE and known.params["method"] == each.params["method"]
    assert set(query("SELECT outcome FROM trial_scores WHERE study = :s AND state = 'FAIL'", s=search.settings.study)) == {("duplicate",)}
    counts = leases.counts(search.store, search.id)
    assert (counts.finished, counts.failed, counts.duplicates) == (len(FEW), 0, len(told))


def test_a_candidate_that_runs_elsewhere_is_a_duplicate_too(searching: Searching, opened: Callable) -> None:
    search = searching(trials=9, space="reference", steps=1, rungs=1, methods=",".join(FEW))
    others = [beside(search, opened) for _ in range(2)]
    running = [search.ask(), others[0].ask(), others[1].ask()]
    assert len({asked.candidate.hash for asked in running}) == 3


def test_an_exhausted_space_ends_the_study_with_status_0(searching: Searching, finish: Callable) -> None:
    search = searching(trials=50, space="reference", steps=1, rungs=1, sampler="random", methods=",".join(FEW))
    for _ in FEW:
        finish(search)
    assert search.ask() == Ended(0, f"the space is exhausted: {MOST_DUPLICATES} proposals in a row were known already")
    assert leases.counts(search.store, search.id).finished == len(FEW)


def test_a_space_of_which_nothing_works_is_no_good_end(searching: Searching, finish: Callable) -> None:
    search = searching(trials=50, space="reference", steps=1, rungs=1, sampler="random", methods="full,bias", baselines=True)
    for _ in BASELINES:
        finish(search)
    ended = search.ask()
    assert ended.status == 0, "both were run as baselines"
    search = searching(trials=50, space="reference", steps=2, rungs=2, reduction=2, sampler="random", methods="full,bias")
    finish(search)
    failed = 0
    while not isinstance(asked := search.ask(), Ended):
        search.fail(asked, "BadSelection: no such region", own_cause=True)
        failed += 1
    assert failed > 1 and asked.status == 1 and f"{failed} trials failed: {failed} × BadSelection: no such region" in asked.reason


def test_a_name_in_the_hub_s_cache_stays_a_name_and_a_folder_becomes_absolute(searching: Searching, settings: Callable, model, monkeypatch) -> None:
    search = searching()
    search.settings = replace(search.settings, model="clinic/base", encoder="pixels", data="data-of-ours")
    assert {name: search.free()[name] for name in ("model", "encoder", "data")} == {"model": "clinic/base", "encoder": "pixels", "data": "data-of-ours"}
    monkeypatch.chdir(model)
    search.settings = replace(search.settings, model="base", encoder="clip")
    free = search.free()
    assert free["model"] == str(model / "base") and free["encoder"] == str(model / "clip") and Path(free["out"]).is_absolute()


def test_the_default_exhausts_a_space_of_fewer_candidates_than_its_first_trials(searching: Searching) -> None:
    """Its first trials end at the first rung, also where those of all candidates were evaluated."""
    search = searching(space="reference", methods="bias,norm", sampler="auto", trials=99)
    while not isinstance(found := search.state(), Ended):
        if isinstance(asked := search.ask(), Asked):
            run(search, lambda asked, steps: (3.0 - steps / 40, 1.0), asked)
    assert found.status == 0 and "exhausted" in found.reason
    whole = {row["method"] for row in results.trials(search.store, search.settings.study) if row["outcome"] == "finished" and row["steps"] == search.settings.steps}
    assert whole == {"full", "bias", "norm"}, "and the yardstick"


@pytest.mark.parametrize("seed", range(2))
def test_the_last_of_many_candidates_is_found_before_a_space_counts_as_exhausted(seed: int, searching: Searching) -> None:
    search = searching(space="reference", sampler="random", seed=seed, pruner="none", trials=99)
    while not isinstance(found := search.state(), Ended):
        if isinstance(asked := search.ask(), Asked):
            run(search, lambda asked, steps: (3.0, 1.0), asked)
    assert "exhausted" in found.reason
    evaluated = {(row["method"], row["steps"]) for row in results.rungs(search.store, search.settings.study)}
    assert len(evaluated) == len(search.bounds.methods) * len(search.settings.ladder)


def test_a_refused_launch_binds_no_later_one(searching: Searching, query: Callable) -> None:
    """The same name, other objectives: their number and directions are those of the launch that was not refused."""
    with pytest.raises(BadSetting, match="none of"):
        searching(study="test-refused", max_trainable="5")
    search = searching(study="test-refused", objectives="fd,copy_excess,amd_train")
    assert query("SELECT direction::text FROM study_directions WHERE study_id = :id ORDER BY objective", id=search.id) == [("MINIMIZE",), ("MINIMIZE",), ("MAXIMIZE",)]
    with pytest.raises(SettingsDiffer):
        searching(study="test-refused", objectives="fd,amd_train")


def test_a_launch_for_other_objectives_deletes_nothing_of_one_that_registers_meanwhile(searching: Searching, opened: Callable, monkeypatch) -> None:
    other = Settings(study="test-raced", steps=40, rungs=3, objectives="fd,copy_excess,amd_train")
    Search(opened(), other)  # a launch that has not registered yet
    real = results.discard

    def paused(*given) -> None:
        first = Search(opened(), other)
        first.register(3, IDENTITY)
        tell(first, asks(first), scores(1, 1))
        real(*given)

    with monkeypatch.context() as patched, pytest.raises(SettingsDiffer):
        patched.setattr(results, "discard", paused)
        searching(study="test-raced")
    assert [row["outcome"] for row in results.trials(opened(), "test-raced")] == ["finished"] and len(results.rungs(opened(), "test-raced")) == 1


def test_who_waits_for_the_turn_to_ask_stops_when_told_to(searching: Searching, opened: Callable, monkeypatch) -> None:
    search = searching()
    with leases.asking(opened(), search.id), pytest.raises(stopping.Stopped):
        monkeypatch.setattr(stopping, "requested", threading.Event())
        threading.Timer(1, stopping.requested.set).start()
        search.ask()
    monkeypatch.undo()
    assert asks(search).number == 0


def test_a_launch_does_not_cut_a_study_down_that_others_run(searching: Searching, opened: Callable) -> None:
    search = searching(trials=5)
    asked = search.ask()
    other = Search(opened(), replace(search.settings, trials=3))
    with pytest.raises(BadSetting, match=r"--trials 3: study .* runs now for 5 trials, 0 of them finished and 1 running, .* give --trials 5 or more, or stop"):
        other.register(3, IDENTITY)
    assert results.settings(search.store, search.id)["free"]["trials"] == 5 and leases.counts(search.store, search.id).trials == 5
    more = other.register(9, IDENTITY)
    assert (more.before.trials, more.trials) == (5, 9)
    search.release(asked)
    assert other.register(3, IDENTITY).trials == 3, "nobody is harmed"


def test_the_share_that_a_refusal_advises_is_allowed(searching: Searching) -> None:
    with pytest.raises(BadSetting, match=r"the smallest trains [\d,]+ parameters \([\d.]+% of the U-Net\)") as refused:
        searching(max_trainable="5", space="reference")
    share = re.search(r"\(([\d.]+%) of", str(refused.value))[1]
    searching(max_trainable=share, space="reference")


@pytest.mark.parametrize(("count", "total"), [(1, 3), (1230, 1_000_000), (999_999, 1_000_000), (7, 7)])
def test_an_advised_share_allows_the_count(count: int, total: int) -> None:
    limit, is_share = constraints.amount(constraints.allowing(count, total))
    assert is_share and count / total <= limit <= count / total + 1e-5


@pytest.mark.parametrize("sampler", ["auto", "gp"])
def test_a_model_proposes_within_what_is_known_before(sampler: str, searching: Searching) -> None:
    """A third of random proposals are, and none of the baselines that the model has seen."""
    search = searching(trials=40, baselines=True, max_trainable="0.2%", sampler=sampler)
    for _ in range(len(BASELINES) + 8):
        run(search, lambda asked, steps: (asked.candidate.learning_rate * 1000, 1.0 - steps / 80))
    proposed = [row["outcome"] for row in results.trials(search.store, search.settings.study) if row["baseline"] is None]
    first = next(place for place in range(len(proposed)) if proposed[:place].count("finished") == 5)
    assert proposed[first:] == ["finished"] * 3


def test_nobody_ends_an_exhausted_study_while_a_trial_runs(searching: Searching, opened: Callable, finish: Callable, query: Callable) -> None:
    search = searching(trials=50, space="reference", steps=1, rungs=1, sampler="random", methods=",".join(FEW))
    other = beside(search, opened)
    for _ in range(len(FEW) - 1):
        finish(search)
    last = search.ask()
    assert isinstance(other.ask(), Wait) and other.state() is None
    expire(query, last)
    again = other.ask()
    assert again.number == last.number and again.candidate == last.candidate
    tell(other, again, scores(1, 1))
    assert isinstance(other.ask(), Ended) and leases.counts(other.store, other.id).finished == len(FEW)


def test_a_space_is_not_exhausted_by_what_only_runs_now(searching: Searching, opened: Callable, tmp_path) -> None:
    (tmp_path / "two.py").write_text(TWO_METHODS)
    search = searching(trials=20, space=f"{tmp_path / 'two.py'}:propose", sampler="random", pruner="none")
    tell(search, asks(search), scores(5, 5))
    others = [beside(search, opened) for _ in range(2)]
    running = [asks(other) for other in others]
    assert {asked.candidate.method for asked in running} == {"bias", "norm"}, "of each one only, however many steps"
    assert isinstance(search.ask(), Wait)
    for other, asked in zip(others, running):
        for steps in asked.rungs:
            rung(other, asked, steps, 1.0, 1.0)
        other.finish(asked)
    while not isinstance(asked := search.ask(), Ended):
        run(search, lambda asked, steps: (1.0, 1.0), asked)
    measured = {(each.candidate["method"], each.candidate["steps"]) for each in standing.evaluated(search.store, search.id, standing.last_recorded(search.store, search.id))}
    assert measured >= {(method, steps) for method in ("bias", "norm") for steps in (4, 13, 40)}, asked


def test_too_many_failures_end_the_launch_with_the_reasons(searching: Searching) -> None:
    search = searching(trials=5)
    assert most_failures(5) == 10 and most_failures(200) == 40
    for _ in range(11):
        assert search.state() is None
        search.fail(search.ask(), "TrainingDiverged: loss is nan", own_cause=True)
    ended = search.ask()
    assert ended.status == 1 and "11 trials failed" in ended.reason and "11 × TrainingDiverged: loss is nan" in ended.reason


def test_a_server_that_goes_away_while_the_end_is_looked_for_is_away_and_no_end_of_the_launch(monkeypatch) -> None:
    folder = Path(tempfile.mkdtemp(prefix="pp"))  # short: a socket's path has 107 characters
    try:
        search = Search(open_store(embedded.start(folder), worker_name()), Settings(study="away", steps=40, rungs=3))
        search.register(1, IDENTITY)
        search.fail(search.ask(), "its own fault", own_cause=True)
        real = leases.counts

        def counts(*given) -> leases.Counts:
            """The real ones; what is asked next, through Optuna, finds no server."""
            found = real(*given)
            embedded.stop(folder)
            return found

        monkeypatch.setattr(leases, "counts", counts)
        with pytest.raises(StorageUnreachable):
            search.state()
        search.store.close()
    finally:
        embedded.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_new_launch_is_not_ended_by_the_failures_of_the_last(searching: Searching, finish: Callable) -> None:
    search = searching(trials=5)
    for _ in range(11):
        search.fail(search.ask(), "TrainingDiverged: loss is nan", own_cause=True)
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


def reasons(search: Search, query: Callable) -> list[tuple[str, str]]:
    return [tuple(row) for row in query("SELECT outcome, reason FROM trial_scores WHERE study = :s AND state = 'FAIL' ORDER BY trial", s=search.settings.study)]


# Constraints.

def test_an_infeasible_proposal_is_told_so_and_counts_as_nothing(searching: Searching, query: Callable) -> None:
    search = searching(space="reference", trials=6, methods=",".join(FEW), max_trainable="2%", sampler="random")
    asked = [quickly(search, 1.0, 1.0) for _ in range(6)]
    assert asked[0].candidate.method == "full", "the yardstick is run whatever it trains"
    assert {each.candidate.method for each in asked[1:]} <= {"norm", "bias"}
    assert search.state() == Ended(0, "all 6 trials are finished")
    refused = [row for row in reasons(search, query) if row[0] == "infeasible"]
    counts = leases.counts(search.store, search.id)
    assert (counts.finished, counts.failed, counts.infeasible) == (6, 0, len(refused))
    assert refused and all(reason.endswith("trainable parameters violate max-trainable 2%") for _, reason in refused)


def test_baselines_are_run_regardless_and_stand_on_no_front(searching: Searching, query: Callable) -> None:
    search = searching(trials=len(BASELINES), baselines=True, max_trainable="2%")
    for i in range(len(BASELINES)):
        quickly(search, 1.0 + i, -i)
    feasible = {row[0] for row in query("SELECT method FROM trial_scores WHERE study = :s AND trainable_share <= 0.02", s=search.settings.study)}
    assert {row[0] for row in query("SELECT method FROM pareto_front WHERE study = :s", s=search.settings.study)} == feasible
    assert feasible and "full" not in feasible


def test_measured_bounds_keep_a_point_off_the_front_and_are_handed_to_the_sampler(searching: Searching, finish: Callable, query: Callable) -> None:
    search = searching(trials=9, require="fd_high<=2.05,copy_excess<=5", max_seconds=10.0)
    finish(search, fd=1.0, copy_excess=2.0), finish(search, fd=2.0, copy_excess=1.0)
    assert query("SELECT trial FROM pareto_front WHERE study = :s", s=search.settings.study) == [(0,)], "the upper bound of the second is 2.1"
    assert query("SELECT feasible FROM rung_scores WHERE study = :s ORDER BY trial", s=search.settings.study) == [(True,), (False,)]
    search.recall.refresh()
    known = search.recall.proposer.history.study.get_trials(states=[TrialState.COMPLETE])
    assert [sorted(each.constraints.values()) for each in known] == [pytest.approx([-0.9, -0.6, -0.95 / 2.05]), pytest.approx([-0.9, -0.8, 0.05 / 2.05])]


def test_a_constraint_that_no_random_proposal_meets_is_refused_before_the_first_trial(searching: Searching, states: Callable) -> None:
    with pytest.raises(BadSetting, match=r"^--max-trainable 5: none of 1,000 random proposals meets it, the smallest trains [\d,]+ parameters "
                                         r"\(\d\.\d+% of the U-Net\): allow as many, or take another --space or --methods$"):
        searching(study="test-hard", max_trainable="5")
    assert states("test-hard") == {}
    assert searching(max_trainable="50%").ask().yardstick


def test_proposals_that_are_all_infeasible_end_with_the_constraints_name(searching: Searching, written: Callable, finish: Callable, monkeypatch) -> None:
    monkeypatch.setattr("hpo.agenda.MOST_INFEASIBLE", 20)  # 1,000 take a minute
    assert MOST_INFEASIBLE == 1000
    search = searching(space=written("False", kinds='("bias",) if CALLS.append(1) or len(CALLS) < 3 else ("bias", "norm")'), max_trainable="2600")
    finish(search)
    assert search.ask() == Ended(1, "20 proposals in a row violated --max-trainable 2600: loosen it or take another --space, "
                                   "in a study of another name (--study)")


def test_all_that_a_hard_constraint_allows_being_known_is_a_good_end(searching: Searching, finish: Callable, monkeypatch) -> None:
    monkeypatch.setattr("hpo.agenda.MOST_INFEASIBLE", 20)
    search = searching(trials=50, space="reference", steps=1, rungs=1, sampler="random", methods=",".join(FEW), max_trainable="5%")
    assert finish(search).yardstick
    while not isinstance(found := search.ask(), Ended):
        tell(search, found, scores(1, 1))
    assert found.status == 0 and re.fullmatch(r"the space is exhausted: the last 2\d proposals but those that were known already violated --max-trainable 5%", found.reason)
    assert leases.counts(search.store, search.id).finished == 1 + sum(search.is_small_enough(search.agenda.reference(name)) for name in FEW)


# Ends that are asked for.

def test_no_trial_begins_after_the_hours_are_over_by_the_servers_clock(searching: Searching, opened: Callable, query: Callable) -> None:
    search = searching(trials=9, hours=1.0)
    running, other = asks(search), beside(search, opened)
    query("UPDATE peft_pareto.studies SET settings = jsonb_set(settings, '{free,deadline}', '1') WHERE study_id = :id", id=search.id)
    assert isinstance(other.ask(), Wait), "what runs goes on"
    tell(search, running, scores(1, 1))
    assert search.ask() == other.state() == Ended(0, "the time of --hours is over, with 1 of 9 trials finished")
    Search(opened(), replace(search.settings, hours=None)).register(9, IDENTITY)
    assert asks(search).number == 1, "another launch has no limit"


def test_a_front_that_no_longer_grows_ends_the_study(searching: Searching, finish: Callable, monkeypatch) -> None:
    monkeypatch.setattr("hpo.ending.STABLE_TRIALS", 3)
    assert STABLE_TRIALS == 20
    search = searching(trials=99, until_stable=True, pruner="none")
    for fd in (4.0, 3.0, 2.0, 1.0):  # the reference point is (5, 0.4)
        finish(search, fd=fd, copy_excess=fd / 10)
    for _ in range(2):
        finish(search, fd=4.5, copy_excess=0.5)
        assert search.state() is None
    finish(search, fd=0.999, copy_excess=0.1)
    assert search.ask() == Ended(0, "the front is stable: its hypervolume grew by less than 1% over the last 3 finished trials")
    volumes = standing.hypervolumes(search.store, search.id)
    assert len(volumes) == 7 and volumes == sorted(volumes) and volumes[-1] < 1.01 * volumes[3]


def test_a_front_that_a_repeat_made_smaller_is_not_stable_while_it_grows_and_none_is_not_stable_either(searching: Searching, monkeypatch) -> None:
    monkeypatch.setattr("hpo.ending.STABLE_TRIALS", 3)
    search = searching(until_stable=True)
    for volumes, stable in (([5.0, 4.0, 4.5, 4.8], False), ([5.0, 4.0, 4.0, 4.01], True), ([5.0, 5.0, 5.02], False), ([5.0, 5.0, 5.02, 5.02], True),
                            ([0.0, 0.0, 0.0, 0.0], False), ([0.0, 0.0, 0.0, 1.0], False)):
        monkeypatch.setattr(standing, "hypervolumes", lambda store, study, volumes=volumes: volumes)
        assert (search.ending.stable() is not None) == stable, volumes


def test_an_unstable_front_or_another_wish_goes_on(searching: Searching, finish: Callable, monkeypatch) -> None:
    monkeypatch.setattr("hpo.ending.STABLE_TRIALS", 2)
    search = searching(trials=99, until_stable=True, pruner="none")
    for fd in (4.0, 3.0, 2.0, 1.0):
        finish(search, fd=fd, copy_excess=fd / 10)
    assert search.state() is None


# Users' own spaces.

TWO_METHODS = """
from hpo.spaces.reference import reference_candidate

def propose(trial, bounds):
    return reference_candidate(trial.suggest_categorical("method", ["bias", "norm"]), trial.suggest_categorical("steps", list(bounds.steps)))
"""

SPACE = """
from trainers.candidate import Candidate

CALLS = []  # the first is the launch's

def propose(trial):
    if {condition}:
        raise ValueError("not this one")
    return Candidate.of("bias", ("up",), {kinds}, trial.suggest_float("rate", 1e-4, 1e-2), 4)
"""
# Not where a launch tries the function out, nor where a model looks for what it can give.
IN_A_STUDY = f"type(trial).__name__ == 'Trial' and trial.study.study_name == {NAME!r}"


@pytest.fixture
def written(tmp_path) -> Callable[..., str]:
    """--space of a function that raises on this condition."""
    def make(condition: str, name: str = "space.py", kinds: str = '("bias",)') -> str:
        (tmp_path / name).write_text(SPACE.format(condition=condition, kinds=kinds))
        return f"{tmp_path / name}:propose"

    return make


def test_a_proposal_that_raises_fails_its_trial_with_the_reason(searching: Searching, written: Callable, finish: Callable) -> None:
    search = searching(space=written(f"{IN_A_STUDY} and (CALLS.append(1) or len(CALLS) in (1, 2))"))
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


def test_a_lost_trial_of_a_function_is_run_again_as_it_was(searching: Searching, written: Callable, finish: Callable) -> None:
    search = searching(space=written("False"))
    finish(search)
    lost = search.ask()
    search.release(lost)
    assert search.ask() == lost


def test_a_changed_space_is_refused_and_a_moved_one_is_not(searching: Searching, written: Callable, opened: Callable, tmp_path) -> None:
    search = searching(space=written("False"))
    stored = results.settings(search.store, search.id)
    assert stored["free"]["space"] == search.settings.space and "space" not in stored["binding"]
    assert stored_settings(search.store, search.settings.study).space == search.settings.space, "for workers"
    moved = Search(opened(), Settings(**{**search.settings.to_json(), "space": written("False", "moved.py")}))
    assert not moved.register(5, IDENTITY).created and results.settings(search.store, search.id)["free"]["space"] == moved.settings.space
    for other in (written("False or False"), "default"):
        with pytest.raises(SettingsDiffer) as refused:
            Search(opened(), Settings(**{**search.settings.to_json(), "space": other})).register(5, IDENTITY)
        said = str(refused.value)
        assert f"give --space as it was ({moved.settings.space}), or another study name" in said and f"({other})" in said and "(not set)" not in said


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


@pytest.mark.parametrize("trials_asked", [5, 1])
def test_a_trial_whose_answer_was_lost_is_the_next_that_is_asked_for(trials_asked: int, searching: Searching, monkeypatch) -> None:
    search = searching(trials=trials_asked)
    real = trials.start

    def lost(*given, **more):
        real(*given, **more)
        raise StorageUnreachable("the answer was lost")

    with monkeypatch.context() as patched, pytest.raises(StorageUnreachable):
        patched.setattr(trials, "start", lost)
        search.ask()
    asked = search.ask()
    assert (asked.number, asked.yardstick, len(search.study.trials)) == (0, True, 1)
    if trials_asked > 1:
        assert search.ask().number == 1, "and the one after it is another"


def test_a_trial_whose_answer_was_lost_and_whose_lease_ran_out_is_asked_for_like_any_other(searching: Searching, opened: Callable, query: Callable,
                                                                                            monkeypatch) -> None:
    search = searching()
    other = beside(search, opened)
    tell(search, asks(search), scores(1, 1))
    older = asks(other)
    real = trials.start

    def lost(*given, **more):
        begun.append(real(*given, **more))
        raise StorageUnreachable("the answer was lost")

    begun: list[trials.Started] = []
    with monkeypatch.context() as patched, pytest.raises(StorageUnreachable):
        patched.setattr(trials, "start", lost)
        search.ask()
    expire(query, older)
    query("ALTER TABLE peft_pareto.leases DISABLE TRIGGER guard")
    query("UPDATE peft_pareto.leases SET expires_at = clock_timestamp() WHERE trial_id = :id", id=begun[0].trial_id)
    query("ALTER TABLE peft_pareto.leases ENABLE TRIGGER guard")
    assert [asks(search).number for _ in range(2)] == [older.number, begun[0].number]


@pytest.mark.parametrize("how", ["started", "left", "enqueued"])
def test_a_trial_after_which_the_server_went_away_is_the_next_that_is_asked_for(how: str, searching: Searching, opened: Callable, monkeypatch) -> None:
    """It is this worker's already when it asks which rungs are paid for."""
    search = searching(space="reference")
    run(search, lambda asked, steps: (1.0, 1.0))
    if how == "left":
        search.release(asks(search))
    elif how == "enqueued":
        search.study.enqueue_trial({"method": "bias", "steps": 40})
    real, calls = trials.known_rungs, []

    def away(*given):
        calls.append(given)
        if len(calls) == 1:
            raise StorageUnreachable("it restarts")
        return real(*given)

    with monkeypatch.context() as patched, pytest.raises(StorageUnreachable):
        patched.setattr(trials, "known_rungs", away)
        search.ask()
    (begun,) = (each for each in search.study.trials if each.state == TrialState.RUNNING)
    asked = asks(search)
    assert asked.id == begun._trial_id and leases.read(search.store, asked.id).worker == search.store.worker
    assert asks(search).number > asked.number, "and the one after it is another"


@pytest.mark.parametrize("trials_asked", [5, 1])
def test_who_loses_a_trial_whose_answer_was_lost_while_it_takes_it_up_asks_anew(trials_asked: int, searching: Searching, opened: Callable, query: Callable,
                                                                                monkeypatch) -> None:
    """It is paused after it has seen that it holds the trial."""
    search = searching(trials=trials_asked)
    other, start, is_held = beside(search, opened), trials.start, trials.is_held

    def lost(*given, **more):
        start(*given, **more)
        raise StorageUnreachable("the answer was lost")

    with monkeypatch.context() as patched, pytest.raises(StorageUnreachable):
        patched.setattr(trials, "start", lost)
        search.ask()

    def paused(*given):
        found = is_held(*given)
        query("ALTER TABLE peft_pareto.leases DISABLE TRIGGER guard")
        query("UPDATE peft_pareto.leases SET expires_at = clock_timestamp() - interval '1 s' WHERE study_id = :s", s=search.id)
        query("ALTER TABLE peft_pareto.leases ENABLE TRIGGER guard")
        trials.expire(other.store, other.id)
        assert trials.take(other.store, other.id, f"other-{other.id}").number == 0
        return found

    with monkeypatch.context() as patched:
        patched.setattr(trials, "is_held", paused)
        asked = search.ask()
    assert asked == Wait() if trials_asked == 1 else asked.number == 1


def test_who_is_paused_before_a_trial_begins_begins_none_that_another_began_since(searching: Searching, opened: Callable, monkeypatch) -> None:
    """Its turn is over by then, which it would find out only with the next question."""
    search = searching(space="reference", trials=9, methods="full,bias", steps=1, rungs=1, sampler="random")
    tell(search, asks(search), scores(1, 1))
    other, real, begun = beside(search, opened), trials.start, []

    def paused(store, *given, **more):
        if store is search.store and more["candidate"].method == "bias" and not begun:
            begun.append(None)  # the other's own start is let through
            begun[0] = other.begin(Entry(Candidate.from_json(more["candidate"].json)))
        return real(store, *given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(trials, "start", paused)
        assert search.ask() == Wait(), "all there is runs elsewhere"
    assert begun[0].candidate.method == "bias" and leases.counts(search.store, search.id).running == 1


def test_an_enqueued_duplicate_whose_worker_dies_is_run_by_nobody(searching: Searching, opened: Callable, query: Callable, monkeypatch) -> None:
    class Killed(BaseException):
        """As kill -9 ends a worker once its call is answered."""

    search = searching(space="reference")
    run(search, lambda asked, steps: (1.0, 1.0))
    search.study.enqueue_trial({"method": "full", "steps": 13})
    real = trials.describe

    def killed(*given, **more):
        real(*given, **more)
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(trials, "describe", killed)
        search.ask()
    assert trial(search, 1).state == TrialState.FAIL and reasons(search, query) == [("duplicate", "the same candidate as trial 0")]
    assert asks(beside(search, opened)).number == 2


def test_a_launch_does_not_cut_a_study_down_in_which_a_trial_began_since_it_looked(searching: Searching, opened: Callable, monkeypatch) -> None:
    search = searching(trials=2)
    later = Search(opened(), replace(search.settings, trials=1))
    with monkeypatch.context() as patched:
        patched.setattr(later, "check", lambda: asks(search))
        with pytest.raises(BadSetting, match="--trials 1: study .* runs now for 2 trials, .* would be cut down"):
            later.register(1, IDENTITY)
    assert leases.counts(search.store, search.id).trials == 2


def test_a_launch_of_other_code_waits_for_the_trials_that_run_and_ends_the_workers_of_before(searching: Searching, opened: Callable, query: Callable) -> None:
    search = searching(trials=9)
    running = asks(search)
    query("UPDATE peft_pareto.studies SET settings = jsonb_set(settings, '{free,code}', '\"older\"') WHERE study_id = :s", s=search.id)
    with pytest.raises(OtherCode, match="is run with code older"):
        beside(search, opened).ask()
    later = Search(opened(), search.settings)
    with pytest.raises(BadSetting, match="has 1 trials that run with another version of this program \\(older") as refused:
        later.register(9, IDENTITY)
    assert "\n" not in str(refused.value) and results.settings(search.store, search.id)["free"]["code"] == "older"
    expire(query, running)
    later.register(9, IDENTITY)
    assert asks(later).number == running.number


@pytest.mark.parametrize("is_left", [False, True])
def test_a_worker_of_other_code_begins_nothing_where_a_launch_registers_meanwhile(is_left: bool, searching: Searching, query: Callable, monkeypatch) -> None:
    search = searching(trials=9)
    run(search, lambda asked, steps: (1.0, 1.0))
    if is_left:
        search.release(asks(search))
    real = search.start

    def slow(counts) -> Asked | None:
        query("UPDATE peft_pareto.studies SET settings = jsonb_set(settings, '{free,code}', '\"newer\"') WHERE study_id = :s", s=search.id)
        return real(counts)

    monkeypatch.setattr(search, "start", slow)
    with pytest.raises(OtherCode, match="is run with code newer, this worker has"):
        search.ask()
    assert [each.state for each in search.study.get_trials()] == [TrialState.COMPLETE] + [TrialState.WAITING] * is_left


def test_a_launch_of_other_code_waits_for_a_trial_that_began_since_it_looked(searching: Searching, opened: Callable, query: Callable, monkeypatch) -> None:
    search = searching(trials=9)
    query("UPDATE peft_pareto.studies SET settings = jsonb_set(settings, '{free,code}', '\"older\"') WHERE study_id = :s", s=search.id)
    later = Search(opened(), search.settings)
    with monkeypatch.context() as patched:
        patched.setattr(later, "check", lambda: patched.setattr("hpo.code.content_hash", lambda: "older") or asks(search) and patched.undo())
        with pytest.raises(BadSetting, match="has 1 trials that run with another version of this program \\(older"):
            later.register(9, IDENTITY)
    assert results.settings(search.store, search.id)["free"]["code"] == "older"
