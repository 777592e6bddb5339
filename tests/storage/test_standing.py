"""What the outer loop asks of a study: baselines, the front's candidates, repeats, and which files may go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from sqlalchemy import text

from metrics.scores import SCORES
from storage import results, standing, trials
from storage.errors import NotNow
from storage.store import Store


def test_baselines_are_listed_with_their_state_and_reason(study: Callable) -> None:
    made = study()
    yardstick, other = made.start(baseline="yardstick", yardstick=True, method="full"), made.start(baseline="bias", method="bias")
    made.start()
    made.fail(other)
    found = standing.baselines(made.store, made.id)
    assert [(row.baseline, row.method, row.state, row.reason) for row in found] == [("yardstick", "full", "RUNNING", None), ("bias", "bias", "FAIL", "a reason")]
    assert standing.yardstick(made.store, made.study.study_name) is None
    made.finish(yardstick, 2.0, 3.0)
    assert standing.yardstick(made.store, made.study.study_name)["trial"] == yardstick.number


def test_the_front_s_candidates_have_the_steps_of_their_rungs_and_how_often_they_were_run(study: Callable) -> None:
    made = study()
    trial = made.start("h", json={"method": "bias", "steps": 30})
    made.rung(trial, 1.0, 5.0, steps=10, hash="early")
    made.rung(trial, 5.0, 1.0, steps=30, hash="late")
    again = made.start("h", repeat=1, json={"method": "bias", "steps": 30})
    made.rung(again, 5.0, 1.0, steps=30, hash="late")
    assert standing.front_candidates(made.store, made.id) == [({"method": "bias", "steps": 10}, 1), ({"method": "bias", "steps": 30}, 2)]
    assert standing.repeats(made.store, made.id) == 1 and standing.is_contender(made.store, trial.trial_id)
    worse = made.start()
    made.rung(worse, 9.0, 9.0, steps=10)
    assert not standing.is_contender(made.store, worse.trial_id)


def test_what_was_begun_and_what_has_worked(study: Callable) -> None:
    made = study()
    assert not standing.has_worked(made.store, made.id)
    base = made.start("base", baseline="yardstick", yardstick=True)
    made.finish(base)
    assert standing.is_begun(made.store, made.id, "base") and not standing.is_begun(made.store, made.id, "new") and not standing.has_worked(made.store, made.id)
    trial = made.start("new")
    made.rung(trial, 1.5, 2.5, steps=10)
    assert standing.has_worked(made.store, made.id) and standing.values_at(made.store, trial.trial_id, 10) == [1.5, 2.5]


def test_tensors_go_when_their_rung_is_off_the_front_and_states_when_their_trial_has_ended(study: Callable) -> None:
    made = study()
    good, bad = made.start(), made.start()
    for name, trial in (("good", good), ("bad", bad)):
        for kind, path in (("weights", f"/w/trial-{name}10.pt"), ("weights", f"/w/trial-{name}30.pt"), ("state", f"/s/{name}.pt")):
            results.record_artifact(made.store, trial.trial_id, kind, path)

    def droppable(kept: str = "front") -> set[str]:
        return set(standing.droppable(made.store, made.id, "weights", "state", kept))

    assert droppable() == set(), "both run, and nothing is evaluated"
    made.rung(good, 1.0, 1.0, steps=10, hash="good10")
    made.rung(bad, 2.0, 2.0, steps=10, hash="bad10")
    assert droppable() == {"/w/trial-bad10.pt"}, "its next rung may be better, and its state is needed"
    made.finish(good, 3.0, 3.0, hash="good30")
    made.fail(bad)
    assert droppable() == {"/w/trial-bad10.pt", "/w/trial-bad30.pt", "/w/trial-good30.pt", "/s/bad.pt"}
    assert droppable("all") == {"/w/trial-bad30.pt"}, "it was never evaluated"


def test_a_point_is_dominated_for_good_only_by_one_whose_mean_is_final(study: Callable, store: Store) -> None:
    made = study(9, repeats=3)
    bad = made.start("bad")
    results.record_artifact(store, bad.trial_id, "weights", "/w/trial-bad.pt")
    made.finish(bad, 3.0, 3.0, hash="bad")
    for repeat in range(3):
        assert standing.droppable(store, made.id, "weights", "state", "front") == [] and standing.is_contender(store, bad.trial_id), "it may get worse"
        made.finish(made.start("good", repeat=repeat), 1.0, 1.0, hash="good")
    assert standing.droppable(store, made.id, "weights", "state", "front") == ["/w/trial-bad.pt"] and not standing.is_contender(store, bad.trial_id)


def files(made, trial: trials.Started, *hashes: str) -> None:
    for hash in hashes:
        results.record_artifact(made.store, trial.trial_id, "weights", f"/w/trial-{trial.number}-{hash}.pt")


def gone(made) -> list[str]:
    return sorted(standing.droppable(made.store, made.id, "weights", "state", "front"))


def final(made, fd: float, copy_excess: float) -> None:
    """Another point, with both of its runs."""
    for repeat in range(2):
        made.finish(made.start("good", repeat=repeat), fd, copy_excess, hash="good")


@pytest.mark.parametrize("waits", [False, True])
def test_nothing_of_a_point_goes_while_a_repeat_of_it_is_under_way(study: Callable, waits: bool) -> None:
    made = study(9, repeats=2)
    first = made.start("p")
    files(made, first, "p")
    made.finish(first, 1.0, 1.0, hash="p")
    again = made.start("p", repeat=1)
    if waits:
        trials.leave(made.store, again.trial_id)
    final(made, 0.8, 0.9)
    assert gone(made) == [] and standing.is_contender(made.store, first.trial_id)
    made.finish(made.take() if waits else again, 0.2, 0.4, hash="p")
    assert [(row["trial"], row["repeats"]) for row in results.front(made.store, made.study.study_name)] == [(0, 2)] and "/w/trial-0-p.pt" not in gone(made)


@pytest.mark.parametrize("end", ["worse", "failed", "known"])
def test_what_waited_for_a_repeat_goes_with_its_end(study: Callable, end: str) -> None:
    made = study(9, repeats=2)
    first = made.start("p")
    files(made, first, "p10", "p")
    made.rung(first, 1.0, 1.0, steps=10, hash="p10")
    made.finish(first, 1.0, 1.0, hash="p")
    again = made.start("p", repeat=1)
    final(made, 0.5, 0.5)
    assert gone(made) == []
    before = standing.moment(made.store, made.id)
    if end == "failed":
        made.fail(again)
    else:
        if end == "worse":
            made.rung(again, 2.0, 2.0, steps=10, hash="p10")
            assert gone(made) == ["/w/trial-0-p10.pt"], "the other rung may return"
        made.finish(again, 2.0, 2.0, hash="p")
    if end == "known":  # its first rung was not measured: then with the next rung of whatever trial
        made.rung(made.start(), 3.0, 3.0)
    assert gone(made) == ["/w/trial-0-p.pt", "/w/trial-0-p10.pt"]
    assert sorted(standing.droppable(made.store, made.id, "weights", "state", "front", replace(before, ended=before.ended + timedelta(days=1)))) == gone(made)


def test_no_repeat_of_a_point_that_is_outdone_is_begun_and_one_that_comes_by_counts_for_nothing(study: Callable) -> None:
    """Its tensors are deleted, and it must not return without them: a longer training of the same may be repeated."""
    made = study(9, repeats=2)
    short = made.start("r at 10", root="r", steps=10)
    files(made, short, "r at 10")
    made.finish(short, 2.0, 2.0, steps=10, hash="r at 10")
    final(made, 1.0, 1.0)
    assert gone(made) == ["/w/trial-0-r at 10.pt"]
    with pytest.raises(NotNow, match="no more runs are needed of what cannot be on the front: a candidate"):
        made.start("r at 10", root="r", steps=10, repeat=1)
    made.finish(made.start("r", root="r"), 0.5, 3.0, hash="r")
    longer = made.start("r", root="r", repeat=1)
    made.rung(longer, 0.0, 0.0, steps=10, hash="r at 10")
    made.finish(longer, 0.5, 3.0, hash="r")
    assert [(row["steps"], row["repeats"]) for row in results.front(made.store, made.study.study_name)] == [(30, 2), (30, 2)]
    assert [row.again for row in trials.rungs_since(made.store, made.id) if row.hash == "r at 10"] == [False, True] and gone(made) == ["/w/trial-0-r at 10.pt"]


def test_nothing_evaluated_goes_while_a_joint_reward_is_not_defined(study: Callable, store: Store) -> None:
    made = study(9, directions=("maximize",), objectives=("joint_reward",))
    results.record_references(store, made.id, q_base=9.0, q_real=0.0, m_base=0.0, scores={})
    yardstick, bad = made.start(baseline="yardstick", yardstick=True), made.start("bad")
    results.record_artifact(store, bad.trial_id, "weights", "/w/trial-bad.pt")
    made.rung(bad, 9.0, 3.0, steps=30, hash="bad")
    trials.tell(store, bad.trial_id, "failed", state="FAIL", reason="a reason")
    assert standing.droppable(store, made.id, "weights", "state", "front") == [] and standing.is_contender(store, bad.trial_id)
    made.rung(yardstick, 1.0, 4.0, steps=30)
    trials.tell(store, yardstick.trial_id, "finished", state="COMPLETE", values=[0.0])
    made.rung(made.start(), 2.0, 4.0)
    assert standing.droppable(store, made.id, "weights", "state", "front") == ["/w/trial-bad.pt"] and not standing.is_contender(store, bad.trial_id)


def test_only_what_has_changed_is_looked_at_again(study: Callable) -> None:
    made = study()
    first, good = made.start(), made.start()
    for name, trial in (("first", first), ("good", good)):
        results.record_artifact(made.store, trial.trial_id, "weights", f"/w/trial-{name}.pt")
    made.finish(first, 2.0, 2.0, hash="first")

    def droppable(since: standing.Moment) -> list[str]:
        return standing.droppable(made.store, made.id, "weights", "state", "front", since)

    before = standing.moment(made.store, made.id)
    made.rung(good, 1.0, 1.0, hash="good")
    after = standing.moment(made.store, made.id)
    assert droppable(before) == droppable(replace(after, ended=after.ended + timedelta(days=1))) == ["/w/trial-first.pt"], "by the newest rung"
    made.rung(good, 0.5, 0.5, steps=30, hash="better")
    later = standing.moment(made.store, made.id)
    assert droppable(replace(later, ended=later.ended + timedelta(days=1))) == ["/w/trial-good.pt"], "and the other was seen before"
    assert set(droppable(later)) == {"/w/trial-first.pt", "/w/trial-good.pt"}, "it ended a moment ago"


def test_another_value_for_a_rung_lets_those_return_that_it_dominated(study: Callable) -> None:
    made = study()
    first, second = made.start(), made.start()
    made.rung(first, 2.0, 2.0)
    made.rung(second, 1.0, 1.0)
    assert not standing.is_contender(made.store, first.trial_id)
    made.rung(second, 1.0, 3.0)
    assert standing.is_contender(made.store, first.trial_id) and len(standing.front_values(made.store, made.id)) == 2


@pytest.mark.parametrize(("directions", "repeats"), [(("minimize",), 1), (("minimize", "maximize"), 1), (("minimize", "maximize"), 2), (("minimize",) * 3, 2),
                                                     (("maximize",) * 4, 1)])
def test_the_front_is_that_of_all_points_however_they_came(study: Callable, directions: tuple[str, ...], repeats: int) -> None:
    """Against an independent way, after each rung: points in random order, with ties, infeasible ones and repeats."""
    made = study(99, directions=directions, repeats=repeats, objectives=tuple(SCORES)[: len(directions)])
    generator = np.random.default_rng(len(directions) + repeats)
    signs = np.array([1 if direction == "minimize" else -1 for direction in directions])
    runs: dict[str, list[tuple[np.ndarray, bool]]] = {}
    for _ in range(40):
        hash = generator.choice([name for name in map(str, range(45 // repeats)) if len(runs.get(name, ())) < repeats])
        values, feasible = generator.integers(0, 5, len(directions)).astype(float), bool(generator.random() < 0.9)
        try:
            begun = made.start(hash, repeat=len(runs.setdefault(hash, [])))
        except NotNow:
            assert runs[hash], "a repeat of what is outdone"
            continue
        made.rung(begun, *values, hash=hash, violations={"bound": 0.0 if feasible else 1.0})
        runs[hash].append((signs * values, feasible))
        means = {name: np.mean([value for value, _ in given], axis=0) for name, given in runs.items() if all(good for _, good in given)}
        front = [signs * one for one in means.values() if not any((other <= one).all() and (other < one).any() for other in means.values())]
        assert sorted(standing.front_values(made.store, made.id)) == sorted(list(each) for each in front)
    with made.store.engine.connect() as connection:
        assert connection.scalar(text("SELECT count(outdone) FROM peft_pareto.points WHERE study_id = :id"), {"id": made.id}) > 10
