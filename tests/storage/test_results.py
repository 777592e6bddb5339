"""Settings, candidates, scores, references and the views, on a real server; the front against a brute-force one."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable

import numpy
import optuna
import pytest
from sqlalchemy import event, text

from storage import leases, results, standing, trials
from storage.errors import BadValue, CodeDiffers, ForeignStudy, SettingsDiffer, UnknownStudy

SCORES = ("fd", "kid", "loss_gap", "copy_excess", "copy_rate", "amd_train", "amd_twin")
COLUMNS = ["study", "trial", "candidate", "method", "steps", "trainable", "trainable_share", "joint_reward", "seconds"]
COLUMNS += [name + bound for name in SCORES for bound in ("", "_low", "_high")]
TRIAL_COLUMNS = ["state", "outcome", "reason", "baseline", "repeat", "reached", "rungs", "on_front"]
RUNG_COLUMNS = ["state", "baseline", "repeat", "memory", "feasible", "on_front"]
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
    made = study(5)
    again = results.register(made.store, made.id, 8, {"data": "phantoms"}, {"workers": 2}, **KINDS)
    assert (again.trials, again.created) == (8, False)
    fewer = results.register(made.store, made.id, 3, {"data": "phantoms"}, {"workers": 4}, **KINDS)
    worker = results.register(made.store, made.id, None, {"data": "phantoms"}, {"workers": 1}, **KINDS)
    assert fewer.trials == worker.trials == leases.counts(made.store, made.id).trials == 3
    assert results.settings(made.store, made.id)["free"] == {"workers": 4}


def unregistered(store, name: str) -> optuna.Study:
    return optuna.create_study(storage=store.optuna, study_name=name, directions=["minimize", "minimize"], load_if_exists=True)


def left_of(store, study_id: int) -> int:
    """Rows of Optuna's tables of studies."""
    with store.engine.connect() as connection:
        return sum(connection.scalar(text(f"SELECT count(*) FROM {table} WHERE study_id = :id"), {"id": study_id})
                   for table in ("studies", "study_directions", "study_user_attributes", "study_system_attributes", "trials"))


def test_only_a_study_without_a_trial_that_is_not_registered_is_discarded(study: Callable, store) -> None:
    empty = unregistered(store, "empty")
    empty.set_user_attr("a", 1), store.optuna.set_study_system_attr(empty._study_id, "b", 2)
    results.discard(store, empty._study_id)
    assert left_of(store, empty._study_id) == 0
    results.discard(store, empty._study_id)
    waiting, made = unregistered(store, "waiting"), study()
    waiting.enqueue_trial({"x": 1})
    for kept in (waiting._study_id, made.id):
        before = left_of(store, kept)
        results.discard(store, kept)
        assert left_of(store, kept) == before > 0
    with pytest.raises(BadValue, match="does not exist"):
        results.register(store, empty._study_id, 5, {}, {}, **KINDS)


@pytest.mark.parametrize("beside", ["register", "enqueue", "discard"])
def test_who_discards_a_study_waits_for_who_registers_it_or_enqueues_there_and_the_other_way_round(beside: str, store, opened: Callable) -> None:
    """Each looked before the other wrote."""
    empty = unregistered(store, f"raced {beside}")
    row = json.dumps({"study_id": empty._study_id, "trials": 3, "lease_seconds": 60, "settings": {}, "reward_weight": 0.5, "queue": [], **KINDS})
    statements = {
        "register": f"SELECT FROM peft_pareto.register('{row}')",
        "enqueue": f"INSERT INTO trials (study_id, number, state) VALUES ({empty._study_id}, 0, 'WAITING')",
        "discard": f"SELECT peft_pareto.discard({empty._study_id})",
    }
    other, found = opened(), []
    calls = {True: lambda: results.register(other, empty._study_id, 3, {}, {}, **KINDS), False: lambda: results.discard(other, empty._study_id)}

    def call() -> None:
        try:
            found.append(calls[beside == "discard"]())
        except BadValue as error:
            found.append(str(error))

    with store.engine.connect() as connection:
        connection.exec_driver_sql(statements[beside])
        thread = threading.Thread(target=call)
        thread.start()
        with opened(None).engine.connect().execution_options(isolation_level="AUTOCOMMIT") as looking:
            while not looking.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%peft_pareto.%'")):
                assert thread.is_alive()
        connection.commit()
        thread.join()
    if beside == "discard":
        assert found == [f"study {empty._study_id} was deleted meanwhile, by a launch of that name for other objectives: launch again"]
        assert left_of(store, empty._study_id) == 0
    else:
        assert found == [None] and left_of(store, empty._study_id) > 0


def test_a_launch_of_other_code_changes_nothing_while_a_trial_runs(study: Callable) -> None:
    """Asked for in the same statement: a trial may begin after the launch has looked."""
    made = study()
    results.register(made.store, made.id, 5, {"data": "phantoms"}, {"code": "older"}, **KINDS)
    running = made.start()
    with pytest.raises(CodeDiffers, match="is run with code older, this worker has newer"):
        results.register(made.store, made.id, 7, {"data": "phantoms"}, {"code": "newer"}, **KINDS)
    assert (leases.counts(made.store, made.id).trials, leases.counts(made.store, made.id).code) == (5, "older")
    assert results.register(made.store, made.id, 7, {"data": "phantoms"}, {"code": "older"}, **KINDS).trials == 7
    made.finish(running)
    results.register(made.store, made.id, 8, {"data": "phantoms"}, {"code": "newer"}, **KINDS)
    assert leases.counts(made.store, made.id).code == "newer"


def paused_after_each_statement(made, query: str) -> list[str]:
    """Runs the query, which takes locks or fails, on another connection whenever this worker's store has been answered; gives what was answered."""
    answered = []

    def pause(_connection, _cursor, statement: str, *_) -> None:
        with made.store.optuna.engine.connect() as other:
            other.execute(text(query), {"study": made.id}).all()
        answered.append(statement)

    event.listen(made.store.engine, "after_cursor_execute", pause)
    return answered


@pytest.mark.parametrize("asked_for", [None, 7])
def test_who_is_paused_while_it_joins_keeps_nobody_waiting(study: Callable, asked_for: int | None) -> None:
    made = study(5)
    answered = paused_after_each_statement(made, "SELECT 1 FROM peft_pareto.studies JOIN studies USING (study_id) WHERE study_id = :study FOR UPDATE NOWAIT")
    results.register(made.store, made.id, asked_for, {"data": "phantoms"}, {}, **KINDS)
    assert answered


def test_who_is_paused_while_it_writes_a_curve_can_lose_its_lease(study: Callable) -> None:
    made = study(5)
    trial = made.start()
    answered = paused_after_each_statement(made, "SELECT 1 FROM peft_pareto.leases WHERE study_id = :study FOR UPDATE NOWAIT")
    results.record_curve(made.store, trial.trial_id, {10: (0.5, 0.6), 20: (0.4, 0.6)})
    assert len(answered) == 1


def test_a_transaction_rests_for_less_than_a_lease(store) -> None:
    with store.engine.connect() as connection:
        assert connection.scalar(text("SELECT 1000 * :lease > setting::integer AND setting::integer > 0 FROM pg_settings "
                                      "WHERE name = 'idle_in_transaction_session_timeout'"), {"lease": results.LEASE_SECONDS})


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
    for number in (None, 0, -1):
        with pytest.raises(BadValue, match="trials="):
            results.register(store, fresh._study_id, number, {}, {}, **KINDS)


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


def test_first_references_win(study: Callable) -> None:
    made = study()
    assert results.references(made.store, made.id) is None
    first = results.record_references(made.store, made.id, **REFERENCES, base={"seed": 1})
    second = results.record_references(made.store, made.id, **{**REFERENCES, "q_base": 7.0})
    assert first == second == results.references(made.store, made.id)
    assert (first.q_base, first.scores, first.base) == (5.0, {"fd": (5.0, 4.0, 6.0)}, {"seed": 1})


def test_joint_reward_by_hand(study: Callable) -> None:
    made = study(reward_weight=0.25)
    results.record_references(made.store, made.id, **REFERENCES)
    yardstick, point = made.start(yardstick=True), made.start()
    made.rung(yardstick, 9.0, 0.9, steps=10)
    made.rung(yardstick, 2.0, 0.8, steps=30)
    made.finish(point, 4.0, 0.2)
    rows = results.front(made.store, made.study.study_name)
    assert [row["joint_reward"] for row in rows] == [None, None], "the yardstick is not finished"
    made.finish(yardstick, 2.0, 0.8)
    rewards = {(row["trial"], row["steps"]): row["joint_reward"] for row in results.rungs(made.store, made.study.study_name)}
    # w (q_base - q) / (q_base - q_real) - (1 - w) (m - m_base) / (m_yard - m_base), m_yard that of the yardstick's last rung
    assert rewards[point.number, 30] == pytest.approx(0.25 * (5 - 4) / (5 - 1) - 0.75 * 0.2 / 0.8)
    assert rewards[yardstick.number, 30] == pytest.approx(0.25 * (5 - 2) / (5 - 1) - 0.75)
    assert rewards[yardstick.number, 10] == pytest.approx(0.25 * (5 - 9) / (5 - 1) - 0.75 * 0.9 / 0.8)
    assert results.joint_reward(made.store, made.id, 5.0, 0.0) == 0
    assert results.joint_reward(made.store, made.id, 1.0, 0.0) == pytest.approx(0.25)
    for view in (results.front, results.trials):
        assert all(row["joint_reward"] == rewards[row["trial"], row["steps"]] for row in view(made.store, made.study.study_name))


def test_joint_reward_of_maximised_scores_and_of_no_room(study: Callable) -> None:
    cases = [  # q_base, q_real, m_base, m_yard, expected for q = 3, m = 2; all scores higher = better
        (1.0, 5.0, 4.0, 0.0, 0.5 * 2 / 4 - 0.5 * 2 / 4),
        (5.0, 1.0, 4.0, 0.0, None),
        (1.0, 5.0, 4.0, 4.0, None),
        (1.0, 5.0, 4.0, 6.0, None),
    ]
    for q_base, q_real, m_base, m_yard, expected in cases:
        made = study(quality="amd_train", memorization="amd_twin", directions=("maximize", "maximize"))
        results.record_references(made.store, made.id, q_base=q_base, q_real=q_real, m_base=m_base, scores={})
        scores = {"amd_train": (3, 3, 3), "amd_twin": (m_yard, 0, 9)}
        made.finish(made.start(yardstick=True), 3.0, m_yard, scores=scores)
        assert results.joint_reward(made.store, made.id, 3.0, 2.0) == expected


def test_a_joint_reward_study_has_one_best_point_once_its_yardstick_is_finished(study: Callable) -> None:
    made = study(objectives=("joint_reward",), directions=("maximize",))
    results.record_references(made.store, made.id, **REFERENCES)

    def finish(q: float, m: float, **candidate: object) -> int:
        trial = made.start(**candidate)
        made.rung(trial, q, m, steps=30, scores={"fd": (q, q, q), "copy_excess": (m, m, m)})
        trials.tell(made.store, trial.trial_id, "finished", state="COMPLETE", values=[0.0])
        return trial.number

    point, best = finish(4.0, 0.2), finish(2.0, 0.2)
    assert results.front(made.store, made.study.study_name) == []
    finish(2.0, 0.8, yardstick=True)
    (row,) = results.front(made.store, made.study.study_name)
    assert row["trial"] == best and row["joint_reward"] == pytest.approx(0.5 * 3 / 4 - 0.5 * 0.2 / 0.8)
    assert results.progress(made.store, made.id).front == 1
    assert [row["on_front"] for row in results.trials(made.store, made.study.study_name)] == [False, True, False]
    assert point == 0


def _dominates(a: tuple, b: tuple) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


@pytest.mark.parametrize("directions", [("minimize",), ("minimize", "maximize"), ("maximize", "minimize", "minimize"),
                                        ("minimize",) * 4, ("minimize", "maximize") * 3])  # fmt: skip
def test_front_is_the_brute_force_front(study: Callable, directions: tuple[str, ...]) -> None:
    random.seed(len(directions))
    made = study(80, directions=directions, objectives=[f"objective {place}" for place in range(len(directions))])
    signs = [1 if direction == "minimize" else -1 for direction in directions]
    points, feasible = {}, {}
    for number in range(40):
        trial = made.start()
        for steps in (10, 30):
            # Few distinct values make many ties.
            values = tuple(random.choice((0.0, 0.5, 1.0, 1.5, 2.0, -1.5)) for _ in directions)
            feasible[number, steps] = random.random() > 0.1
            made.rung(trial, *values, steps=steps, violations={"bound": 0.0 if feasible[number, steps] else 0.5, "other": -1.0})
            points[number, steps] = tuple(sign * value for sign, value in zip(signs, values, strict=True))
            if number % 10 == 3:
                break
        if number % 10 == 3:
            trials.tell(made.store, trial.trial_id, "finished", state="PRUNED")
        elif number % 10 == 5:
            made.fail(trial)
        elif number % 10 == 7:
            trials.leave(made.store, trial.trial_id)
        elif number % 10 != 9:
            trials.tell(made.store, trial.trial_id, "finished", state="COMPLETE", values=values)
    made.start(outcome="duplicate")
    standing = {place: point for place, point in points.items() if feasible[place]}
    expected = [place for place, point in standing.items() if not any(_dominates(o, point) for o in standing.values())]
    rows = results.trials(made.store, made.study.study_name)
    assert [(row["trial"], row["steps"]) for row in results.front(made.store, made.study.study_name)] == expected
    of_rungs = results.rungs(made.store, made.study.study_name)
    assert [(row["trial"], row["steps"]) for row in of_rungs if row["on_front"]] == expected
    assert {(row["trial"], row["steps"]): row["feasible"] for row in of_rungs} == feasible
    assert [row["trial"] for row in rows if row["on_front"]] == sorted({number for number, _ in expected})
    assert results.progress(made.store, made.id).front == len(expected)
    assert len(rows) == 41 and {row["state"] for row in rows} == {"COMPLETE", "PRUNED", "FAIL", "WAITING", "RUNNING"}


def test_repeats_are_one_point_at_their_mean(study: Callable) -> None:
    made = study(10, repeats=3)

    def finish(hash: str, repeat: int, q: float, m: float, **more: object) -> None:
        made.finish(made.start(hash, repeat=repeat), q, m, hash=hash, seconds=10.0 * (repeat + 1), **more)

    finish("other", 0, 2.0, 2.0)
    finish("lucky", 0, 0.0, 1.0)
    (first,) = results.front(made.store, made.study.study_name)
    assert (first["trial"], first["repeats"], first["fd"]) == (1, 1, 0.0)
    finish("lucky", 1, 6.0, 3.0)
    (row,) = results.front(made.store, made.study.study_name)
    assert (row["trial"], row["repeats"]) == (0, 1), "its mean is (3, 2), which (2, 2) dominates"
    finish("lucky", 2, 0.0, 0.5)
    made.finish(made.start("longer", root="lucky", repeat=2, steps=90), 9.0, 9.0, hash="lucky", seconds=30.0)
    by_trial = {row["trial"]: row for row in results.front(made.store, made.study.study_name)}
    assert list(by_trial) == [1] and by_trial[1]["repeats"] == 3, "what was measured again with the same seed adds nothing"
    mean = by_trial[1]
    assert (mean["fd"], mean["fd_low"], mean["fd_high"], mean["copy_excess"], mean["seconds"]) == (2.0, 1.5, 2.5, 1.5, 20.0)
    assert [(row["repeat"], row["on_front"]) for row in results.rungs(made.store, made.study.study_name)] == [
        (0, False), (0, True), (1, True), (2, True), (2, True)]  # fmt: skip
    finish("lucky", 3, 0.0, 0.0, violations={"bound": 1.0})
    assert [row["trial"] for row in results.front(made.store, made.study.study_name)] == [0], "a repeat that is infeasible takes its point off"


def test_a_trial_is_shown_at_its_last_rung_and_a_rung_at_its_own(study: Callable) -> None:
    made = study()
    trial = made.start("h", baseline="full", repeat=1, trainable=numpy.int64(7), trainable_share=numpy.float32(0.5), words="own words")
    (row,) = results.trials(made.store, made.study.study_name)
    assert list(row) == COLUMNS + TRIAL_COLUMNS
    assert (row["steps"], row["reached"], row["rungs"], row["fd"], row["seconds"], row["on_front"]) == (30, None, 0, None, None, False)
    made.rung(trial, 1.0, 1.0, steps=10, seconds=4.0)
    made.rung(trial, 2.0, 0.5, steps=30, seconds=9.0, memory=5)
    made.fail(trial)
    (row,) = results.trials(made.store, made.study.study_name)
    assert (row["steps"], row["reached"], row["rungs"], row["fd"], row["seconds"], row["on_front"]) == (30, 30, 2, 2.0, 9.0, True)
    assert [row[name] for name in TRIAL_COLUMNS[:5]] == ["FAIL", "failed", "a reason", "full", 1]
    first, last = results.rungs(made.store, made.study.study_name)
    assert list(first) == COLUMNS + RUNG_COLUMNS
    assert (first["steps"], first["fd"], first["seconds"], first["memory"]) == (10, 1.0, 4.0, None)
    assert [last[name] for name in RUNG_COLUMNS] == ["FAIL", "full", 1, 5, True, True]
    rows = results.front(made.store, made.study.study_name)
    assert list(rows[0]) == COLUMNS + ["repeats"]
    assert [(row["steps"], row["candidate"], row["seconds"]) for row in rows] == [(10, "a rung", 4.0), (30, "a rung", 9.0)]
    assert (rows[0]["trainable"], rows[0]["trainable_share"], rows[0]["copy_excess_low"], rows[0]["kid"]) == (7, 0.5, 0.5, None)


def test_hypervolume_is_kept_against_begunand_time(study: Callable, store) -> None:
    made = study(name="history")

    def history() -> list[tuple]:
        with store.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text("SELECT * FROM hypervolume_history WHERE study = 'history'"))]

    begun = [made.start() for _ in range(4)]
    for trial in (begun[2], begun[0], begun[3]):  # the second two end before either has measured
        made.finish(trial, seconds=10.0)
    assert history() == [("history", 2, 1, 10.0, None), ("history", 0, 2, 20.0, None), ("history", 3, 3, 30.0, None)]
    for hypervolume in (0.0, numpy.float64(2.0)):
        trials.record_hypervolume(made.store, begun[0].trial_id, hypervolume)
    made.finish(begun[1], seconds=10.0, state="PRUNED")
    trials.record_hypervolume(made.store, begun[1].trial_id, 3.0)
    with pytest.raises(BadValue, match="hypervolume=nan"):
        trials.record_hypervolume(made.store, begun[1].trial_id, float("nan"))
    assert history() == [("history", 2, 1, 10.0, None), ("history", 0, 2, 20.0, 2.0), ("history", 3, 3, 30.0, None), ("history", 1, 4, 40.0, 3.0)]
    assert standing.hypervolumes(made.store, made.id) == [2.0, 2.0, 3.0], "the worker of the third died before it had measured"


def test_a_study_has_a_queue(study: Callable, store) -> None:
    made = study(queue=[{"candidate": {"steps": 10}, "why": "warm start"}])
    more = [{"candidate": {"steps": 10}, "why": "warm start"}, {"candidate": {"steps": 30}, "why": "mine"}]
    for _ in range(2):
        assert results.append_to_queue(made.store, made.id, more) == more
    assert results.queue(made.store, made.id) == more
    assert results.queue(made.store, study().id) == []


@pytest.mark.parametrize("name", ['it\'s a "study"', "two  words ", "пациенты 🫁", "%s :name {x} \\ ;--"])
def test_any_name_will_do(study: Callable, name: str) -> None:
    made = study(name=name)
    made.finish(made.start())
    assert [row["study"] for row in results.front(made.store, name)] == [name]


def test_an_unknown_study_is_named_with_those_there_are(study: Callable) -> None:
    made = study()
    with pytest.raises(UnknownStudy) as caught:
        results.front(made.store, "nope")
    assert made.study.study_name in caught.value.known


def test_progress_shows_who_is_at_what(study: Callable) -> None:
    made = study()
    done = made.start()
    made.rung(done, seconds=1.0)
    made.finish(done, seconds=4.0)
    trial = made.start(words="LoRA rank 8")
    leases.heartbeat(made.store, trial.trial_id, "sampling")
    progress = results.progress(made.store, made.id)
    (running,) = progress.running
    assert (running.number, running.worker, running.words) == (1, made.store.worker, "LoRA rank 8")
    assert running.stage == "sampling" and running.seconds >= 0
    assert (progress.front, progress.seconds, progress.counts.finished) == (2, 4.0, 1)


def test_artifacts_are_kept_by_trial_and_may_be_forgotten_later(study: Callable) -> None:
    made = study()
    trial = made.start()
    for path in ("b.png", "a.png", "a.png"):
        results.record_artifact(made.store, trial.trial_id, "picture", path)
    made.finish(trial)
    assert results.artifacts(made.store, made.id, "picture") == {0: ["a.png", "b.png"]}
    results.forget_artifact(made.store, "a.png")
    assert results.artifacts(made.store, made.id, "picture") == {0: ["b.png"]}
    assert results.artifacts(made.store, made.id, "weights") == {}


def test_views_and_fronts_of_many_rungs_are_quick(study: Callable) -> None:
    made = study(5000)
    made.fill(1500)
    times = {}
    with made.store.engine.connect() as connection:
        for view in ("pareto_front", "trial_scores", "rung_scores"):
            query = f"EXPLAIN (ANALYZE, FORMAT JSON) SELECT * FROM {view} WHERE study = :name"
            times[view] = connection.scalar(text(query), {"name": made.study.study_name})[0]["Execution Time"] / 1000
        query = "EXPLAIN (ANALYZE, FORMAT JSON) SELECT count(*) FROM peft_pareto.front_of(:id)"
        times["front_of"] = connection.scalar(text(query), {"id": made.id})[0]["Execution Time"] / 1000
    assert max(times.values()) < 1 and times["front_of"] < 0.1, times


def test_a_loss_curve_is_stored_by_step_and_can_be_queried(study: Callable) -> None:
    made = study(name="curves")
    trial = made.start()
    results.record_curve(made.store, trial.trial_id, {10: (0.5, 0.6)})
    results.record_curve(made.store, trial.trial_id, {numpy.int64(10): (numpy.float64(0.4), 0.55), 20: (0.3, 0.5)})
    assert results.curve(made.store, trial.trial_id) == {10: (0.4, 0.55), 20: (0.3, 0.5)}
    with pytest.raises(BadValue, match="train loss"):
        results.record_curve(made.store, trial.trial_id, {30: (0.2, 0.4), 40: (float("nan"), 0.4)})
    with made.store.engine.connect() as connection:
        rows = connection.execute(text("SELECT trial, step, train, twin FROM loss_curves WHERE study = 'curves'")).all()
    assert [tuple(row) for row in rows] == [(0, 10, 0.4, 0.55), (0, 20, 0.3, 0.5)]
