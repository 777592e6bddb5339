"""What a worker that joins late knows: a study that is resumed before every trial proposes what an unbroken one would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from finished_study import BASE, new_database
from sqlalchemy import text
from told import asks, beside, run, rung

from hpo.settings import Settings
from hpo.study import Asked, Search
from hpo.trial import is_own_cause
from metrics.estimate import Estimate
from metrics.scores import Scores
from storage import results, standing, trials
from storage.errors import RungLost, StorageUnreachable
from storage.retrying import retrying
from storage.store import open_store, worker_name

TRIALS = 14


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


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", "random", "auto"])
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


@pytest.mark.parametrize("settings", [dict(sampler="nsga2"), dict(sampler="nsga2", objectives="joint_reward", baselines=True), dict(sampler="random", objectives="joint_reward")],
                         ids=lambda settings: " ".join(map(str, settings.values())))
def test_what_was_read_when_the_server_went_away_is_read_again(settings: dict, searching: Callable[..., Search], opened: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the reads it is that fails, worker and latecomer know the same at last."""
    search = searching(trials=99, seed=3, **{"baselines": False, **settings})
    other = beside(search, opened)
    for _ in range(4):
        run(other, scored)
    wanted = known(beside(search, opened))
    reads = [(trials, "running_and_failed"), (trials, "rungs_since"), (standing, "system_attributes"), (results, "references")]
    for module, name in reads:
        reading = getattr(module, name)

        def cut(*given: Any, reading: Callable = reading, **named: Any) -> Any:
            cut.calls += 1
            if cut.calls == 1:
                raise StorageUnreachable("the server went away: try again")
            return reading(*given, **named)

        cut.calls = 0
        late = beside(search, opened)
        monkeypatch.setattr(module, name, cut)
        retrying(late.recall.refresh)
        monkeypatch.setattr(module, name, reading)
        assert known(late) == wanted, name


def fail_over(search: Search, recorded: int) -> None:
    """To a standby that lagged behind: rungs after that place in the order are lost, and their places are given to later ones."""
    with search.store.engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))  # without triggers
        for table in ("scores", "hypervolumes"):
            connection.execute(text(f"DELETE FROM peft_pareto.{table} WHERE trial_id IN (SELECT trial_id FROM peft_pareto.rungs WHERE recorded > :r)"), {"r": recorded})
        connection.execute(text("DELETE FROM peft_pareto.rungs WHERE recorded > :r"), {"r": recorded})
        connection.execute(text("SELECT setval(pg_get_serial_sequence('peft_pareto.rungs', 'recorded'), :r)"), {"r": recorded})


def test_who_knows_rungs_that_a_fail_over_lost_learns_all_anew() -> None:
    search = Search(open_store(new_database(), worker_name()), Settings(study="lost", trials=99, steps=40, rungs=3, evaluated_rungs=3, sampler="tpe", baselines=False, seed=3))
    search.register(99, {"model": "m", "encoder": "e", "data": "d"})
    results.record_references(search.store, search.id, q_base=9.0, q_real=0.0, m_base=0.0, scores=BASE)
    for _ in range(6):
        run(search, scored)
    asked = asks(search)
    while len(asked.rungs) < 3:
        run(search, scored, asked)
        asked = asks(search)
    before = standing.last_recorded(search.store, search.id)
    rung(search, asked, asked.rungs[0], *scored(asked, asked.rungs[0]))
    fail_over(search, before)
    rung(search, asked, asked.rungs[1], *scored(asked, asked.rungs[1]))
    late = Search(open_store(search.store.url, worker_name()), search.settings)
    assert known(search) == known(late) and sorted(search.recall.pruner.trials[asked.number].values) == [asked.rungs[1]]
    with pytest.raises(RungLost, match=f"no rung at {asked.rungs[-1]} steps any more"):  # it was written, then the server failed over
        search.finish(asked)
    assert search.fail(asked, "RungLost: a fail-over", own_cause=is_own_cause(RungLost(asked.id, asked.rungs[-1]))) == "left"
    again = asks(late)
    assert again.number == asked.number and asked.rungs[-1] in again.left
    for each in (search, late):
        each.store.close()


@pytest.mark.parametrize("sampler", ["tpe", "auto", "random"])
def test_trials_that_failed_by_their_own_cause_are_known_to_all(sampler: str, searching: Callable[..., Search], opened: Callable) -> None:
    search, own = searching(trials=99, sampler=sampler, baselines=False, seed=3, pruner="none"), []
    for place in range(TRIALS):
        asked = asks(search)
        if place % 4 == 1:
            own.append(asked.number)
            if len(asked.rungs) > 1:  # fails later
                rung(search, asked, asked.rungs[0], *scored(asked, asked.rungs[0]))
            search.fail(asked, "TrainingDiverged: the loss is NaN", own_cause=True)
        else:
            run(search, scored, asked)
    late = beside(search, opened)
    late.recall.refresh()
    search.recall.refresh()
    assert late.recall.failed == search.recall.failed == set(own)
    if sampler != "random":
        assert sorted(late.recall.proposer.history.failed) == own
        assert {point.number for point in late.recall.proposer.history.points} & set(own), "rungs that were evaluated stay"
    assert late.recall.proposer.propose(TRIALS) == search.recall.proposer.propose(TRIALS)
    search.fail(asks(search), "ConnectionError: gone", own_cause=False)
    late.recall.refresh()
    assert late.recall.failed == set(own), "what the machine is to blame for says nothing of the candidate"


def known(search: Search) -> tuple:
    """What a worker's sampler and stopping rule were taught."""
    search.recall.refresh()
    return ([(point.number, point.steps, tuple(point.values), dict(point.system_attrs)) for point in search.recall.proposer.history.points],
            {number: sorted(trial.values) for number, trial in search.recall.pruner.trials.items()}, search.recall.volume())


def noisy(search: Search, asked: Asked, steps: int, generator: np.random.Generator) -> bool:
    """A rung whose scores have replicates of their own; whether the trial is to be stopped."""
    values = dict(zip(("fd", "copy_excess"), scored(asked, steps)))
    told = {name: Estimate(value, value - 1, value + 1, (value + 2 * generator.normal(size=256)).astype(np.float32)) for name, value in values.items()}
    return search.report(asked, steps, Scores(told), 1234, float(steps), None)


@pytest.mark.parametrize("objectives", ["fd,copy_excess", "joint_reward"])
def test_a_worker_that_joins_late_stops_the_same_trials(objectives: str, searching: Callable[..., Search], opened: Callable) -> None:
    search = searching(trials=99, sampler="random", baselines=True, seed=3, objectives=objectives)
    generator, shares = np.random.default_rng(0), []
    for _ in range(20):
        asked = asks(search)
        for steps in asked.rungs:
            stop = noisy(search, asked, steps, generator)
            if not asked.exempt and steps < asked.candidate.steps:
                late = beside(search, opened)
                shares.append(search.recall.decide(asked.number, steps).share)
                assert late.recall.decide(asked.number, steps) == search.recall.pruner.decide(asked.number, steps)
            if stop:
                break
        search.finish(asked, stop)
    assert len({share for share in shares if 0 < share < 1}) > 3, "replicates must have counted"
    read = [rung for trial in late.recall.pruner.trials.values() for rung in trial.replicates]
    known = [rung for trial in late.recall.pruner.trials.values() for rung in trial.values]
    assert 0 < len(read) < len(known), "those that are not compared are not read"


def test_without_replicates_the_values_decide(searching: Callable[..., Search], opened: Callable) -> None:
    search, longer = searching(trials=99, sampler="random", baselines=False, seed=3), []
    for _ in range(8):
        asked = asks(search)
        rung(search, asked, asked.rungs[0], *scored(asked, asked.rungs[0]))
        longer += [asked] if len(asked.rungs) > 1 else []
    late = beside(search, opened)
    assert {late.recall.decide(asked.number, asked.rungs[0]).share for asked in longer} == {0.0, 1.0}
