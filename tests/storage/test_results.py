"""Settings, candidates, scores, references and the views, on a real server; the front against a brute-force one."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import numpy
import optuna
import pytest
from sqlalchemy import text

from storage import leases, results
from storage.errors import BadValue, ForeignStudy, SettingsDiffer, UnknownStudy

SCORES = ("fd", "kid", "loss_gap", "copy_excess", "copy_rate", "amd_train", "amd_twin")
COLUMNS = ["study", "trial", "candidate", "method", "steps", "trainable", "trainable_share", "joint_reward", "seconds"]
COLUMNS += [name + bound for name in SCORES for bound in ("", "_low", "_high")]
KINDS = {
    "objectives": ("fd", "copy_excess"),
    "directions": {},
    "quality": "fd",
    "memorization": "copy_excess",
}
REFERENCES = {"q_base": 5.0, "q_real": 1.0, "m_base": 0.0, "scores": {"fd": (5.0, 4.0, 6.0)}}


def test_contents_that_differ_are_named_with_their_places(study: Callable) -> None:
    made = study()
    results.register(made.store, made.id, 5, {"data": "phantoms"}, {"data": None}, **KINDS)
    with pytest.raises(SettingsDiffer, match=r"'phantoms' \(the default\) in the stored study but '0af3' \(mimic\) in this run"):
        results.register(made.store, made.id, 5, {"data": "0af3"}, {"data": "mimic"}, **KINDS)


def test_a_study_is_joined_if_its_binding_settings_agree(study: Callable) -> None:
    made = study(trials=5)
    again = results.register(made.store, made.id, 8, {"data": "phantoms"}, {"workers": 2}, **KINDS)
    assert (again.trials, again.created) == (8, False)
    fewer = results.register(made.store, made.id, 3, {"data": "phantoms"}, {"workers": 4}, **KINDS)
    worker = results.register(made.store, made.id, None, {"data": "phantoms"}, {"workers": 1}, **KINDS)
    assert fewer.trials == worker.trials == leases.counts(made.store, made.id).trials == 3
    assert results.settings(made.store, made.id)["free"] == {"workers": 4}


@pytest.mark.parametrize(
    ("binding", "more", "name", "stored", "given"),
    [
        ({"data": "cxr"}, {}, "data", "phantoms", "cxr"),
        ({}, {}, "data", "phantoms", "(not set)"),
        ({"data": "phantoms", "encoder": "e"}, {}, "encoder", "(not set)", "e"),
        ({"data": "phantoms"}, {"objectives": ("kid", "fd")}, "objectives", ["fd", "copy_excess"], ["kid", "fd"]),
        ({"data": "phantoms"}, {"reward_weight": 0.7}, "reward_weight", 0.5, 0.7),
    ],
)
def test_another_setting_is_refused_with_both_values(
    study: Callable, binding: dict, more: dict, name: str, stored: object, given: object
) -> None:
    made = study()
    before = results.settings(made.store, made.id)
    with pytest.raises(SettingsDiffer) as caught:
        results.register(made.store, made.id, 5, binding, {}, **{**KINDS, **more})
    assert (caught.value.name, caught.value.stored, caught.value.given) == (name, stored, given)
    assert repr(stored) in str(caught.value) and repr(given) in str(caught.value) and "\n" not in str(caught.value)
    assert results.settings(made.store, made.id) == before


def test_a_study_with_trials_of_its_own_is_not_taken_over(store) -> None:
    foreign = optuna.create_study(storage=store.optuna)
    foreign.ask()
    with pytest.raises(ForeignStudy):
        results.register(store, foreign._study_id, 5, {}, {}, **KINDS)
    fresh = optuna.create_study(storage=store.optuna)
    for trials in (None, 0, -1):
        with pytest.raises(BadValue, match="trials="):
            results.register(store, fresh._study_id, trials, {}, {}, **KINDS)


def test_two_launches_register_one_study(opened: Callable, store) -> None:
    study = optuna.create_study(storage=store.optuna, directions=["minimize", "minimize"])
    made = []
    stores = [opened() for _ in range(3)]

    def run(mine) -> None:
        made.append(results.register(mine, study._study_id, 5, {"a": (1, 2)}, {}, **KINDS).created)

    threads = [threading.Thread(target=run, args=(one,)) for one in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False, False, True]


def test_scores_of_any_number_type_are_stored_and_nan_is_refused(study: Callable) -> None:
    made = study()
    trial = made.ask(hash="h", trainable=numpy.int64(7), trainable_share=numpy.float32(0.5))
    scores = {"fd": (numpy.float64(0.25), numpy.float32(0.125), 1), "kid": (2.0, None, None)}
    results.record_scores(made.store, trial._trial_id, scores, seconds=numpy.float64(3.5))
    for bad in (float("nan"), numpy.nan, float("inf")):
        with pytest.raises(BadValue, match="loss_gap"):
            results.record_scores(made.store, trial._trial_id, {"fd": (9, 9, 9), "loss_gap": (bad, 0, 1)})
    made.finish(trial)
    (row,) = results.front(made.store, made.study.study_name)
    assert list(row) == COLUMNS
    assert (row["fd"], row["fd_low"], row["fd_high"]) == (0.25, 0.125, 1.0)
    assert (row["kid"], row["kid_low"], row["loss_gap"]) == (2.0, None, None)
    assert (row["trainable"], row["trainable_share"], row["seconds"]) == (7, 0.5, 3.5)


def test_first_references_win(study: Callable) -> None:
    made = study()
    assert results.references(made.store, made.id) is None
    first = results.record_references(made.store, made.id, **REFERENCES, base={"seed": 1})
    second = results.record_references(made.store, made.id, **{**REFERENCES, "q_base": 7.0})
    assert first == second == results.references(made.store, made.id)
    assert (first.q_base, first.scores, first.base) == (5.0, {"fd": (5.0, 4.0, 6.0)}, {"seed": 1})


def test_duplicates_are_finished_running_or_guilty(study: Callable) -> None:
    made = study(trials=20)

    def duplicate(hash: str, trial: optuna.Trial) -> int | None:
        return results.find_duplicate(made.store, made.id, hash, trial._trial_id)

    finished, guilty, unlucky = made.ask(hash="f"), made.ask(hash="g"), made.ask(hash="u")
    made.finish(finished)
    made.fail(guilty, own_cause=True)
    made.fail(unlucky)
    first, second = made.ask(hash="r"), made.ask(hash="r")
    new = made.ask()
    assert duplicate("f", new) == finished.number
    assert duplicate("g", new) == guilty.number
    assert duplicate("u", new) is None
    assert duplicate("r", new) == first.number
    assert duplicate("r", second) == first.number
    assert duplicate("r", first) is None, "each would give way to the other and nobody would run"
    made.fail(second, "duplicate")
    made.fail(first, "released")
    assert duplicate("r", new) is None
    other = study()
    assert results.find_duplicate(made.store, other.id, "f", 0) is None


def test_joint_reward_by_hand(study: Callable) -> None:
    made = study(reward_weight=0.25)
    results.record_references(made.store, made.id, **REFERENCES)

    def run(q: float, m: float, **candidate: object) -> optuna.Trial:
        trial = made.ask(hash=str(q), **candidate)
        results.record_scores(made.store, trial._trial_id, {"fd": (q, q, q), "copy_excess": (m, m, m)})
        return trial

    yardstick, point = run(2.0, 0.8, yardstick=True), run(4.0, 0.2)
    made.finish(point, 4.0, 0.2)
    (row,) = results.front(made.store, made.study.study_name)
    assert row["joint_reward"] is None, "the yardstick is not finished"
    made.finish(yardstick, 2.0, 0.8)
    rewards = {row["trial"]: row["joint_reward"] for row in results.front(made.store, made.study.study_name)}
    # w (q_base - q) / (q_base - q_real) - (1 - w) (m - m_base) / (m_yard - m_base)
    assert rewards[point.number] == pytest.approx(0.25 * (5 - 4) / (5 - 1) - 0.75 * 0.2 / 0.8)
    assert rewards[yardstick.number] == pytest.approx(0.25 * (5 - 2) / (5 - 1) - 0.75)
    assert results.joint_reward(made.store, made.id, 5.0, 0.0) == 0
    assert results.joint_reward(made.store, made.id, 1.0, 0.0) == pytest.approx(0.25)


def test_joint_reward_of_maximised_scores_and_of_no_room(study: Callable) -> None:
    cases = [  # q_base, q_real, m_base, m_yard, expected for q = 3, m = 2; all scores higher = better
        (1.0, 5.0, 4.0, 0.0, 0.5 * 2 / 4 - 0.5 * 2 / 4),
        (5.0, 1.0, 4.0, 0.0, None),
        (1.0, 5.0, 4.0, 4.0, None),
        (1.0, 5.0, 4.0, 6.0, None),
    ]
    for q_base, q_real, m_base, m_yard, expected in cases:
        made = study(quality="amd_train", memorization="amd_twin")
        results.record_references(made.store, made.id, q_base=q_base, q_real=q_real, m_base=m_base, scores={})
        trial = made.ask(hash="y", yardstick=True)
        results.record_scores(made.store, trial._trial_id, {"amd_train": (3, 3, 3), "amd_twin": (m_yard, 0, 9)})
        made.finish(trial)
        assert results.joint_reward(made.store, made.id, 3.0, 2.0) == expected


def _dominates(a: tuple, b: tuple) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


@pytest.mark.parametrize("directions", [("minimize",), ("minimize", "maximize"), ("maximize", "minimize", "minimize"),
                                        ("minimize",) * 4, ("minimize", "maximize") * 3])  # fmt: skip
def test_front_is_the_brute_force_front(study: Callable, directions: tuple[str, ...]) -> None:
    random.seed(len(directions))
    made = study(trials=80, directions=directions)
    points = {}
    for number in range(50):
        # Few distinct values make many ties.
        values = tuple(random.choice((0.0, 0.5, 1.0, 1.5, 2.0, -1.5)) for _ in directions)
        trial = made.ask()
        if number % 10 == 3:
            made.fail(trial)
        elif number % 10 == 5:
            made.finish(trial, *(float("inf"), *values[1:]))
        elif number % 10 == 7:
            leases.settle(made.store, trial._trial_id, "finished")
            made.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            made.finish(trial, *values)
            signs = [1 if direction == "minimize" else -1 for direction in directions]
            points[trial.number] = tuple(sign * value for sign, value in zip(signs, values, strict=True))
    made.ask()
    expected = [number for number, point in points.items() if not any(_dominates(o, point) for o in points.values())]
    rows = results.trials(made.store, made.study.study_name)
    assert [row["trial"] for row in results.front(made.store, made.study.study_name)] == expected
    assert [row["trial"] for row in rows if row["on_front"]] == expected
    assert results.progress(made.store, made.id).front == len(expected)
    assert len(rows) == 51 and rows[50]["state"] == "RUNNING"


def test_all_trials_are_shown_with_how_they_ended(study: Callable) -> None:
    made = study()
    trial = made.ask(hash="h", baseline="full")
    made.fail(trial)
    (row,) = results.trials(made.store, made.study.study_name)
    more = ["state", "number", "outcome", "reason", "baseline", "on_front"]
    assert list(row) == COLUMNS + more
    assert [row[name] for name in more] == ["FAIL", 0, "failed", "a reason", "full", False]


@pytest.mark.parametrize("name", ['it\'s a "study"', "two  words ", "пациенты 🫁", "%s :name {x} \\ ;--"])
def test_any_name_will_do(study: Callable, name: str) -> None:
    made = study(name=name)
    made.finish(made.ask())
    assert [row["study"] for row in results.front(made.store, name)] == [name]


def test_an_unknown_study_is_named_with_those_there_are(study: Callable) -> None:
    made = study()
    with pytest.raises(UnknownStudy) as caught:
        results.front(made.store, "nope")
    assert made.study.study_name in caught.value.known


def test_progress_shows_who_is_at_what(study: Callable) -> None:
    made = study()
    done = made.ask(hash="a")
    results.record_scores(made.store, done._trial_id, {}, seconds=4.0)
    made.finish(done)
    trial = made.ask(hash="b", words="LoRA rank 8")
    leases.heartbeat(made.store, trial._trial_id, "sampling")
    progress = results.progress(made.store, made.id)
    (running,) = progress.running
    assert (running.number, running.worker, running.words) == (1, made.store.worker, "LoRA rank 8")
    assert running.stage == "sampling" and running.seconds >= 0
    assert (progress.front, progress.seconds, progress.counts.finished) == (1, 4.0, 1)


def test_artifacts_are_kept_by_trial_and_may_be_forgotten_later(study: Callable) -> None:
    made = study()
    trial = made.ask()
    for path in ("b.png", "a.png", "a.png"):
        results.record_artifact(made.store, trial._trial_id, "picture", path)
    made.finish(trial)
    assert results.artifacts(made.store, made.id, "picture") == {0: ["a.png", "b.png"]}
    results.forget_artifact(made.store, "a.png")
    assert results.artifacts(made.store, made.id, "picture") == {0: ["b.png"]}
    assert results.artifacts(made.store, made.id, "weights") == {}


def test_a_view_over_two_thousand_trials_is_quick(study: Callable) -> None:
    made = study(trials=5000)
    with made.store.engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        numbers = {"s": made.id, "n": 2000}
        connection.execute(text(
            "INSERT INTO trials (study_id, number, state) SELECT :s, i, 'COMPLETE' FROM generate_series(0, :n - 1) i"
        ), numbers)  # fmt: skip
        connection.execute(text(
            "INSERT INTO trial_values (trial_id, objective, value, value_type) SELECT trial_id, o, random(), 'FINITE' "
            "FROM trials, generate_series(0, 1) o WHERE study_id = :s"
        ), numbers)  # fmt: skip
        connection.execute(text(
            "INSERT INTO peft_pareto.scores SELECT trial_id, name, random(), 0, 1 FROM trials, "
            "unnest(CAST(:names AS text[])) name WHERE study_id = :s"
        ), {**numbers, "names": list(SCORES)})  # fmt: skip
    times = {}
    with made.store.engine.connect() as connection:
        for view in ("pareto_front", "trial_scores"):
            query = f"EXPLAIN (ANALYZE, FORMAT JSON) SELECT * FROM {view} WHERE study = :name"
            plan = connection.scalar(text(query), {"name": made.study.study_name})
            times[view] = plan[0]["Execution Time"] / 1000
    assert max(times.values()) < 1, times


def test_a_loss_curve_is_stored_by_step_and_can_be_queried(study: Callable) -> None:
    made = study(name="curves")
    trial = made.ask(hash="a")
    results.record_curve(made.store, trial._trial_id, {10: (0.5, 0.6)})
    results.record_curve(made.store, trial._trial_id, {numpy.int64(10): (numpy.float64(0.4), 0.55), 20: (0.3, 0.5)})
    assert results.curve(made.store, trial._trial_id) == {10: (0.4, 0.55), 20: (0.3, 0.5)}
    with pytest.raises(BadValue, match="train loss"):
        results.record_curve(made.store, trial._trial_id, {30: (0.2, 0.4), 40: (float("nan"), 0.4)})
    with made.store.engine.connect() as connection:
        rows = connection.execute(text("SELECT trial, step, train, twin FROM loss_curves WHERE study = 'curves'")).all()
    assert [tuple(row) for row in rows] == [(0, 10, 0.4, 0.55), (0, 20, 0.3, 0.5)]
