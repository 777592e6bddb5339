"""The life of a trial, on a real server: every step, repeated, raced for, and read by Optuna. Who may write: test_leases.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution, distribution_to_json
from optuna.trial import TrialState
from sqlalchemy import exc, text

from storage import leases, results, trials
from storage.errors import BadValue, CodeDiffers, LeaseLost, NotNow, NoWorker, SchemaError, StudyFull

X = distribution_to_json(FloatDistribution(0, 1))
DISTRIBUTIONS = {
    "rank": IntDistribution(1, 64, log=True),
    "rate": FloatDistribution(1e-5, 1e-1, log=True),
    "share": FloatDistribution(0, 1),
    "units": IntDistribution(0, 10, step=2),
    "method": CategoricalDistribution(("full", "LoRA", None, True, 3)),
}
PARAMETERS = {"rank": 8, "rate": 0.00012345678901234567, "share": 0.1 + 0.2, "units": 4, "method": "LoRA"}


def _start_with(made, request: str, **more: object) -> trials.Started:
    kinds = {name: distribution_to_json(one) for name, one in DISTRIBUTIONS.items()}
    internal = {name: one.to_internal_repr(PARAMETERS[name]) for name, one in DISTRIBUTIONS.items()}
    return trials.start(made.store, made.id, request=request, candidate=made.described("h", trainable=7, trainable_share=0.5), parameters=PARAMETERS, distributions=kinds,
                        internal=internal, **more)  # fmt: skip


def test_optuna_reads_a_started_trial_as_its_own(study: Callable) -> None:
    made = study()
    before = datetime.now()
    assert trials.next_number(made.store, made.id) == 0
    started = _start_with(made, f"a {made.id}", user_attrs={"note": [1, None, "é\0"]}, system_attrs={"some": {"a": 1}})
    assert trials.next_number(made.store, made.id) == 1
    (running,) = optuna.load_study(study_name=made.study.study_name, storage=made.store.optuna).get_trials()
    assert (running.number, running.state, running._trial_id) == (0, TrialState.RUNNING, started.trial_id)
    assert list(running.params.items()) == list(PARAMETERS.items())
    assert running.distributions == DISTRIBUTIONS
    assert (running.user_attrs, running.system_attrs) == ({"note": [1, None, "é\0"]}, {"some": {"a": 1}})
    assert abs(running.datetime_start - before) < timedelta(minutes=1)
    made.rung(started, 0.5, 0.25, steps=30)
    trials.tell(made.store, started.trial_id, "finished", state="COMPLETE", values=[np.float64(0.5), 0.25])
    (complete,) = made.study.get_trials()
    assert (complete.state, complete.values) == (TrialState.COMPLETE, [0.5, 0.25])
    assert abs(complete.datetime_complete - before) < timedelta(minutes=1)
    assert [trial.number for trial in made.study.best_trials] == [0]


def test_numbers_go_on_after_optunas_own(study: Callable) -> None:
    made = study()
    made.study.enqueue_trial({"x": 0.5})
    assert made.start().number == 1
    with leases.translated():
        assert made.study.ask().number == 0, "what is enqueued, which this connection has a worker's name for"
        assert made.study.ask().number == 2


def test_the_same_request_gives_the_same_trial(study: Callable) -> None:
    made = study()
    one, other = made.start("h", request=f"one {made.id}"), made.start("h", request=f"one {made.id}")
    assert one == other and len(made.study.get_trials()) == 1
    refused = [made.start("i", request=f"no {made.id}", outcome="duplicate", reason="known") for _ in range(2)]
    assert refused[0] == refused[1] and len(made.study.get_trials()) == 2
    made.study.enqueue_trial({"x": 0.25})
    taken = [trials.take(made.store, made.id, f"take {made.id}") for _ in range(2)]
    assert taken[0] == taken[1] and taken[0].number == 2
    assert trials.take(made.store, made.id, "another") is None


@pytest.mark.parametrize("how", ["expired", "left"])
def test_a_request_is_forgotten_with_the_trial_that_it_gave(study: Callable, opened: Callable, how: str) -> None:
    made = study()
    other = made.seen_by(opened())
    first, second = other.start(), made.start(request=f"mine {made.id}")
    for holder, trial in ((other, first), (made, second)):
        if how == "left":
            trials.leave(holder.store, trial.trial_id)
        else:
            made.run_out(trial)
    trials.expire(made.store, made.id)
    assert not trials.is_held(made.store, f"mine {made.id}")
    assert trials.take(made.store, made.id, f"mine {made.id}").number == first.number, "the oldest that waits"
    assert other.take().number == second.number
    assert made.start(request=f"other {made.id}").number == 2
    assert made.start(request=f"another {made.id}") != second


def test_the_same_request_gives_no_trial_that_another_holds(study: Callable, opened: Callable) -> None:
    made = study()
    made.start("h", request=f"mine {made.id}")
    with pytest.raises(exc.IntegrityError, match="leases_request_key"):
        made.seen_by(opened()).start("i", request=f"mine {made.id}")
    assert len(made.study.get_trials()) == 1


def test_a_refused_proposal_is_written_in_one_go_and_counts_nowhere(study: Callable) -> None:
    made = study(1)
    for outcome in ("duplicate", "infeasible", "infeasible"):
        refused = made.start(outcome=outcome, reason=f"an {outcome} one")
    frozen = made.study.get_trials()[refused.number]
    assert frozen.state is TrialState.FAIL and frozen.params == {"x": 0.5} and frozen.datetime_complete is not None
    counts = leases.counts(made.store, made.id)
    assert (counts.finished, counts.running, counts.failed) == (0, 0, 0)
    assert (counts.duplicates, counts.infeasible, counts.duplicates_in_a_row, counts.infeasible_in_a_row) == (1, 2, 1, 2)
    rows = results.trials(made.store, made.study.study_name)
    assert [(row["outcome"], row["reason"]) for row in rows[1:2]] == [("infeasible", "an infeasible one")]
    with pytest.raises(LeaseLost, match="already FAIL"):
        made.rung(refused)
    made.finish(made.start())
    assert leases.counts(made.store, made.id).duplicates_in_a_row == 0
    made.start(outcome="duplicate")
    with pytest.raises(StudyFull):
        made.start()
    with pytest.raises(BadValue, match="'finished' is no refusal"):
        made.start(outcome="finished")


@pytest.mark.parametrize("how", ["finished", "failed", "left"])
def test_duplicates_in_a_row_begin_anew_where_a_trial_has_ended(study: Callable, how: str) -> None:
    made = study()
    running = made.start()
    for _ in range(2):
        made.start(outcome="duplicate")
        made.start(outcome="infeasible")
    {"finished": made.finish, "failed": made.fail, "left": lambda trial: trials.leave(made.store, trial.trial_id)}[how](running)
    counts = leases.counts(made.store, made.id)
    assert (counts.duplicates_in_a_row, counts.infeasible_in_a_row) == (2 if how == "left" else 0, 2)
    made.start(outcome="duplicate")
    assert leases.counts(made.store, made.id).duplicates_in_a_row == (3 if how == "left" else 1)


def test_a_proposal_of_which_nothing_could_be_made_is_a_failed_trial_without_a_candidate(study: Callable) -> None:
    made = study()
    started = trials.start(made.store, made.id, request=f"bad {made.id}", candidate=None, parameters={}, distributions={}, internal={},
                           outcome="failed", reason="BadProposal: no candidate")
    counts = leases.counts(made.store, made.id)
    assert (counts.failed, counts.running, counts.finished) == (1, 0, 0) and made.study.get_trials()[started.number].state is TrialState.FAIL
    assert results.trials(made.store, made.study.study_name)[0]["reason"] == "BadProposal: no candidate"


def test_a_study_is_overdue_once_its_deadline_is_over_by_the_servers_clock(study: Callable) -> None:
    made = study()
    assert not leases.counts(made.store, made.id).overdue
    for seconds, overdue in ((60, False), (-1, True)):
        with made.store.engine.begin() as connection:
            query = "UPDATE peft_pareto.studies SET settings = jsonb_set(settings, '{free,deadline}', to_jsonb(CAST(:at AS double precision)))"
            connection.execute(text(query), {"at": leases.now(made.store) + seconds})
        assert leases.counts(made.store, made.id).overdue is overdue


def test_four_workers_finish_exactly_what_was_asked(study: Callable, opened: Callable, together: Callable) -> None:
    made = study(5)

    def work() -> StudyFull:
        mine = made.seen_by(opened())
        try:
            while True:
                mine.finish(mine.start())
        except StudyFull as error:
            return error

    full = together(*[work] * 4)
    assert [(error.study, error.trials) for error in full] == [(made.id, 5)] * 4
    counts = leases.counts(made.store, made.id)
    assert (counts.finished, counts.running, counts.failed) == (5, 0, 0)
    assert sorted(trial.number for trial in made.study.get_trials()) == [0, 1, 2, 3, 4]


def test_two_race_for_the_last_place(study: Callable, opened: Callable, together: Callable) -> None:
    for _ in range(5):
        made = study(1)
        answers = together(*[made.seen_by(opened()).start for _ in range(2)])
        assert sorted(type(answer).__name__ for answer in answers) == ["Started", "StudyFull"]
        assert leases.counts(made.store, made.id).running == len(made.study.get_trials()) == 1


def test_two_race_for_the_last_place_whatever_the_roles_default_is(database: str, opened: Callable, together: Callable) -> None:
    first = opened(url=database)
    study = optuna.create_study(storage=first.optuna)
    results.register(first, study._study_id, 1, {}, {}, objectives=("fd",), directions={}, quality="fd", memorization="copy_excess")
    with first.engine.begin() as connection:
        connection.execute(text(f"ALTER DATABASE {first.engine.url.database} SET default_transaction_isolation = 'repeatable read'"))
    others = [opened(url=database) for _ in range(2)]
    given = {"candidate": None, "parameters": {}, "distributions": {}, "internal": {}}
    for other in others * 2:
        for engine in (other.at_once, other.engine, other.optuna.engine):
            with engine.connect() as connection:
                assert connection.scalar(text("SHOW transaction_isolation")) == "read committed"
    lock = first.engine.connect()
    lock.execute(text("SELECT 1 FROM studies WHERE study_id = :s FOR UPDATE"), {"s": study._study_id})
    threading.Timer(1.0, lock.close).start()  # both wait by then, with the snapshots of their statements
    answers = together(*[partial(trials.start, other, study._study_id, request=other.worker, **given) for other in others])
    assert sorted(type(answer).__name__ for answer in answers) == ["Started", "StudyFull"]


def test_two_race_for_one_waiting_trial(study: Callable, opened: Callable, together: Callable) -> None:
    for _ in range(5):
        made = study(5)
        made.study.enqueue_trial({"x": 0.5})
        answers = together(*[made.seen_by(opened()).take for _ in range(2)])
        assert sorted(type(answer).__name__ for answer in answers) == ["NoneType", "Taken"]


def test_a_full_study_says_so_at_once(study: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    made = study(1)
    made.start()
    made.study.enqueue_trial({"x": 0.5})
    paused = []
    monkeypatch.setattr(time, "sleep", paused.append)  # Optuna tries other errors again, with pauses
    for full in (made.start, made.study.ask, lambda: made.take()):
        with pytest.raises(StudyFull), leases.translated():
            full()
    assert not paused
    assert leases.counts(made.store, made.id).waiting == 1


def test_failed_trials_are_replaced_and_stopped_ones_are_not(study: Callable) -> None:
    made = study(2)
    made.fail(made.start(), own_cause=True)
    stopped = made.start()
    made.rung(stopped, steps=10)
    trials.tell(made.store, stopped.trial_id, "finished", state="PRUNED")
    assert made.study.get_trials()[1].values is None
    made.finish(made.start())
    counts = leases.counts(made.store, made.id)
    assert (counts.failed, counts.finished, counts.stopped) == (1, 2, 1)
    with pytest.raises(StudyFull):
        made.start()


def test_without_a_workers_name_one_may_enqueue_but_not_run(study: Callable, opened: Callable) -> None:
    made = study()
    nameless = made.seen_by(opened(worker=None))
    nameless.study.enqueue_trial({"x": 0.25}, user_attrs={"why": "mine"})
    for attempt in (nameless.start, lambda: nameless.start(outcome="duplicate"), nameless.study.ask,
                    lambda: nameless.take()):  # fmt: skip
        with pytest.raises(NoWorker), leases.translated():
            attempt()
    assert leases.counts(made.store, made.id).waiting == len(made.study.get_trials()) == 1
    taken = made.take()
    assert (taken.candidate, taken.fixed_params, taken.user_attrs) == (None, {"x": 0.25}, {"why": "mine"})
    assert (taken.repeat, taken.rungs, taken.losses, taken.parameters) == (0, {}, 0, None)
    assert made.study.get_trials()[0].datetime_start is not None
    with pytest.raises(BadValue, match="not described yet"):
        made.rung(taken)
    for x in (0.5, 0.25):
        trials.describe(made.store, taken.trial_id, made.described("h"), {"x": x}, {"x": X}, {"x": x})
    assert made.study.get_trials()[0].params == {"x": 0.25}
    made.finish(taken)


def test_an_enqueued_trial_may_turn_out_a_duplicate(study: Callable) -> None:
    made = study(1)
    made.study.enqueue_trial({"x": 0.25})
    taken = made.take()
    made.fail(taken, "duplicate")
    counts = leases.counts(made.store, made.id)
    assert (counts.duplicates, counts.failed, counts.running) == (1, 0, 0)


def test_a_trial_that_is_left_goes_on_with_another(study: Callable, opened: Callable) -> None:
    made = study(2)
    other = made.seen_by(opened())
    first = made.start("h", x=0.125, baseline="full", repeat=2, yardstick=True)
    made.rung(first, steps=10, seconds=7.5)
    made.study.enqueue_trial({"x": 0.5})
    assert trials.leave(made.store, first.trial_id) is False
    assert trials.leave(made.store, first.trial_id) is False, "the answer was lost, and it is asked again"
    assert made.state(first) == "WAITING" and leases.read(made.store, first.trial_id).worker is None
    assert [one.number for one in trials.running_and_failed(made.store, made.id)[0]] == [0]
    for write in (lambda: made.rung(first), lambda: leases.heartbeat(made.store, first.trial_id), lambda: made.fail(first)):
        with pytest.raises(LeaseLost, match="nobody holds"):
            write()
    taken = other.take()
    assert (taken.trial_id, taken.number, taken.losses) == (first.trial_id, 0, 0), "what was left comes before what is enqueued"
    assert (taken.rungs, taken.parameters, taken.candidate) == ({10: 7.5}, {"x": 0.125}, {"method": "full"})
    assert (taken.repeat, taken.baseline, taken.yardstick) == (2, "full", True)
    with pytest.raises(LeaseLost, match="belongs to"):
        made.rung(first)
    assert trials.leave(other.store, first.trial_id, "no memory") is False
    with pytest.raises(LeaseLost, match="nobody holds"):
        trials.leave(made.store, first.trial_id)
    again = made.take()
    assert (again.trial_id, again.losses) == (first.trial_id, 1)
    made.finish(again)


def test_an_expired_lease_leaves_the_trial_to_others(study: Callable, opened: Callable) -> None:
    made = study(1)
    other = made.seen_by(opened())
    trial = made.start()
    assert trials.expire(other.store, made.id) == []
    made.run_out(trial)
    assert trials.expire(other.store, made.id) == [trial.number]
    assert trials.expire(other.store, made.id) == []
    assert made.state(trial) == "WAITING"
    lease = leases.read(made.store, trial.trial_id)
    assert (lease.outcome, lease.worker, lease.losses) == (None, None, 1) and made.store.worker in lease.reason
    with pytest.raises(LeaseLost):
        trials.leave(made.store, trial.trial_id)
    other.finish(other.take())
    assert leases.counts(made.store, made.id).finished == 1


@pytest.mark.parametrize("how", ["expired", "left"])
def test_three_losses_without_a_new_rung_fail_a_trial(study: Callable, how: str) -> None:
    made = study()

    def lose(trial: object) -> bool | None:
        if how == "left":
            return trials.leave(made.store, trial.trial_id, "it crashed")
        made.run_out(trial)
        assert trials.expire(made.store, made.id) == [0]
        return None

    take = made.take
    trial = made.start()
    made.rung(trial, steps=10)
    lose(trial), lose(take())
    taken = take()
    made.rung(taken, steps=10)
    assert leases.read(made.store, taken.trial_id).losses == 2, "not a new rung"
    made.rung(taken, steps=30)
    assert leases.read(made.store, taken.trial_id).losses == 0
    assert lose(taken) in (False, None) and lose(take()) in (False, None) and made.state(trial) == "WAITING"
    assert trials.leave(made.store, take().trial_id) is False and made.state(trial) == "WAITING", "released: not counted"
    assert lose(take()) in (True, None) and made.state(trial) == "FAIL"
    lease = leases.read(made.store, trial.trial_id)
    assert lease.outcome == "failed" and not lease.own_cause and lease.reason.startswith("its lease was lost 3 times without a new rung, at last: ")
    assert ("it crashed" if how == "left" else made.store.worker) in lease.reason
    assert take() is None and leases.counts(made.store, made.id).failed == 1
    if how == "left":
        assert trials.leave(made.store, trial.trial_id, "it crashed") is True, "the answer was lost, and it is asked again"
    assert [row["steps"] for row in results.front(made.store, made.study.study_name)] == [10, 30], "evaluated rungs stand"


def test_telling_again_is_no_error_and_telling_otherwise_is(study: Callable, opened: Callable) -> None:
    made = study()
    trial = made.start()
    for _ in range(2):
        made_values = {"state": "COMPLETE", "values": [1.0, 2.0]}
        trials.tell(made.store, trial.trial_id, "finished", **made_values)
    with pytest.raises(LeaseLost, match="already COMPLETE"):
        trials.tell(made.store, trial.trial_id, "finished", state="COMPLETE", values=[1.0, 3.0])
    with pytest.raises(LeaseLost, match="already COMPLETE"):
        made.fail(trial)
    with pytest.raises(LeaseLost, match="already COMPLETE"):
        trials.tell(opened(), trial.trial_id, "finished", **made_values)
    other = made.start()
    for _ in range(2):
        made.fail(other)
    assert leases.counts(made.store, made.id).failed == 1


def test_what_is_told_must_fit(study: Callable) -> None:
    made = study()
    trial = made.start()
    for outcome, state in (("finished", "FAIL"), ("failed", "COMPLETE"), ("expired", "FAIL"), ("released", "WAITING")):
        with pytest.raises(BadValue, match="is no end of a trial"):
            trials.tell(made.store, trial.trial_id, outcome, state=state)
    for values in (None, [1.0], [1.0, 2.0, 3.0], [float("nan"), 1.0], [1.0, float("inf")]):
        with pytest.raises(BadValue):
            trials.tell(made.store, trial.trial_id, "finished", state="COMPLETE", values=values)
    with pytest.raises(LeaseLost, match="nothing yet"), leases.translated():
        made.study.tell(trial.number, [1.0, 1.0])
    trials.tell(made.store, trial.trial_id, "failed", state="FAIL", reason="a 'b' \0 %s :x 🫁")
    assert leases.read(made.store, trial.trial_id).reason == "a 'b'  %s :x 🫁"


def test_only_what_was_never_taken_up_is_withdrawn(study: Callable, opened: Callable) -> None:
    made = study()
    nameless = opened(worker=None)
    left = made.start()
    trials.leave(made.store, left.trial_id)
    made.study.enqueue_trial({"x": 0.5})
    waiting = made.study.get_trials()[1]
    nameless.optuna.set_trial_state_values(waiting._trial_id, TrialState.FAIL)
    with pytest.raises(LeaseLost, match="waits to be taken up"), leases.translated():
        nameless.optuna.set_trial_state_values(left.trial_id, TrialState.FAIL)
    counts = leases.counts(made.store, made.id)
    assert (counts.waiting, counts.failed) == (1, 0)


def test_optunas_notes_and_attributes_can_be_written(study: Callable, opened: Callable) -> None:
    made = study()
    trial = made.start()
    made.store.optuna.set_trial_user_attr(trial.trial_id, "a", 1)
    opened(worker=None).optuna.set_trial_system_attr(trial.trial_id, "dashboard:note", "a note")
    frozen = made.study.get_trials()[0]
    assert (frozen.user_attrs, frozen.system_attrs) == ({"a": 1}, {"dashboard:note": "a note"})


def test_two_sweepers_at_once_share_the_work(study: Callable, opened: Callable, together: Callable) -> None:
    made = study(20)
    for trial in [made.start() for _ in range(20)]:
        made.run_out(trial)
    swept = together(*[lambda: trials.expire(opened(), made.id)] * 3)
    assert sorted(sum(swept, trials.expire(made.store, made.id))) == list(range(20))


def test_a_study_not_ours_is_left_alone(opened: Callable) -> None:
    store = opened(worker=None)
    study = optuna.create_study(storage=store.optuna)
    study.enqueue_trial({"x": 0.5})
    study.add_trial(optuna.trial.create_trial(value=3.0))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    assert len(study.trials) == 4
    optuna.delete_study(study_name=study.study_name, storage=store.optuna)


def test_a_study_of_ours_can_be_deleted(study: Callable) -> None:
    made = study()
    made.finish(made.start())
    trials.record_hypervolume(made.store, made.start().trial_id, 1.0)
    made.start(outcome="duplicate")
    trials.leave(made.store, made.start().trial_id)
    optuna.delete_study(study_name=made.study.study_name, storage=made.store.optuna)
    assert made.study.study_name not in results.study_names(made.store)


def test_duplicates(study: Callable) -> None:
    made = study(20)

    def duplicate(root: str, steps: int, repeat: int = 0) -> int | None:
        return trials.find_duplicate(made.store, made.id, root, steps, repeat)

    finished, stopped, guilty, unlucky, running, left = (made.start(name, root=name) for name in "fsgurl")
    made.rung(finished, steps=10)
    made.finish(finished)
    made.rung(stopped, steps=10)
    trials.tell(made.store, stopped.trial_id, "finished", state="PRUNED")
    made.rung(guilty, steps=10)
    made.fail(guilty, own_cause=True)
    made.fail(unlucky)
    trials.leave(made.store, left.trial_id)
    for root, trial, known in (
        ("f", finished, (10, 30)), ("s", stopped, (10, 20, 30)), ("g", guilty, (10, 30, 90)), ("u", unlucky, ()),
        ("r", running, (10, 30)), ("l", left, (10, 30)), ("new", None, ()),
    ):  # fmt: skip
        for steps in (10, 20, 30, 90):
            assert duplicate(root, steps) == (trial.number if steps in known else None), (root, steps)
        assert duplicate(root, 10, repeat=1) is None
    made.finish(running)
    longer = made.start("r at 90", root="r", steps=90)
    assert duplicate("r", 30) == running.number and duplicate("r", 90) == longer.number
    made.fail(made.start("h at 10", root="h", steps=10), own_cause=True)
    measured = made.start("h", root="h", baseline="full")
    made.rung(measured, steps=30)
    assert duplicate("h", 30) == measured.number, "an evaluated rung counts first"
    assert trials.find_duplicate(made.store, study().id, "f", 10) is None


def outcomes(made) -> list[tuple[str | None, str | None]]:
    return [(row["outcome"], row["reason"]) for row in results.trials(made.store, made.study.study_name)]


def test_two_that_do_not_take_turns_begin_one_candidate_once(study: Callable, opened: Callable, together: Callable) -> None:
    for steps in (30, 90):
        made = study(20)
        others = [made.seen_by(opened()) for _ in range(4)]
        starts = [partial(other.start, str(place), root="same", steps=30 if place else steps, request=f"{made.id} {place}") for place, other in enumerate(others)]
        answers = together(*starts)
        assert sorted(answer.outcome or "" for answer in answers) == ["", "duplicate", "duplicate", "duplicate"]
        begun = next(answer for answer in answers if answer.outcome is None)
        assert all(reason.startswith((f"the same candidate as trial {begun.number}", f"trial {begun.number} trains the same with another number of steps"))
                   for outcome, reason in outcomes(made) if outcome)
        counts = leases.counts(made.store, made.id)
        assert (counts.running, counts.duplicates) == (1, 3)
        assert [start() for start in starts] == answers, "the answers were lost, and it is asked again"


def test_a_duplicate_is_found_whatever_else_is_wrong_with_it(study: Callable) -> None:
    made = study()
    made.finish(made.start("h"))
    assert made.start("h", outcome="infeasible", reason="too large").outcome == "duplicate"
    assert made.start("i", outcome="infeasible", reason="too large").outcome == "infeasible"
    assert outcomes(made)[1:] == [("duplicate", "the same candidate as trial 0"), ("infeasible", "too large")]


def test_what_is_run_on_purpose_is_begun_all_the_same(study: Callable) -> None:
    made = study(20)
    made.finish(made.start("h"))
    assert made.start("h", yardstick=True, baseline="yardstick").outcome is None
    assert made.start("h", baseline="full").outcome == "duplicate", "its last rung is evaluated"
    assert [made.start("h", repeat=repeat).outcome for repeat in (1, 2, 2)] == [None, None, "duplicate"]
    stopped = made.start("s")
    made.rung(stopped, steps=10)
    trials.tell(made.store, stopped.trial_id, "finished", state="PRUNED")
    assert [made.start("s", baseline=baseline).outcome for baseline in (None, "full")] == ["duplicate", None], "one that was stopped is run to its end"


def test_there_is_one_yardstick_that_has_not_failed(study: Callable, opened: Callable, together: Callable) -> None:
    made = study(20)
    others = [made.seen_by(opened()) for _ in range(4)]
    answers = together(*[partial(other.start, str(place), baseline="yardstick", yardstick=True) for place, other in enumerate(others)])
    begun, *refused = sorted(answers, key=lambda answer: isinstance(answer, NotNow))
    assert [type(answer) for answer in refused] == [NotNow] * 3 and "the yardstick is trial 0" in str(refused[0])

    def refuses() -> bool:
        with pytest.raises(NotNow):
            made.start(baseline="yardstick", yardstick=True)
        return len(made.study.get_trials()) == 1

    trials.leave(others[answers.index(begun)].store, begun.trial_id)
    assert refuses(), "it waits"
    taken = made.take()
    assert refuses(), "it runs"
    made.fail(taken, own_cause=True)
    second = made.start(baseline="yardstick", yardstick=True)
    made.finish(second)
    with pytest.raises(NotNow):
        made.start(baseline="yardstick", yardstick=True)
    assert len(made.study.get_trials()) == 2, "what was refused left no trial"


@pytest.mark.parametrize("begun", [{}, {"baseline": "full"}])
@pytest.mark.parametrize("wanted", [{"baseline": "full"}, {"baseline": "yardstick", "yardstick": True}])
def test_a_baseline_is_not_begun_while_the_same_is_trained(study: Callable, begun: dict, wanted: dict) -> None:
    made = study()
    running = made.start("short", root="h", steps=10, **begun)
    with pytest.raises(NotNow, match="the same is trained by trial 0"):
        made.start("h", root="h", **wanted)
    assert made.start("h", root="h", **wanted, outcome="failed").outcome == "failed"
    made.finish(running, steps=10)
    assert made.start("h", root="h", **wanted).outcome is None


def test_the_yardstick_takes_over_the_last_rung_that_another_trial_evaluated(study: Callable) -> None:
    made = study()
    first = made.start("h", baseline="full")
    made.rung(first, 1.0, 2.0, steps=10, hash="h at 10")
    made.finish(first, 3.0, 0.5, hash="h")
    yardstick = made.start("h", baseline="yardstick", yardstick=True)
    *_, rung = trials.rungs_since(made.store, made.id)
    assert (rung.number, rung.steps, rung.values, rung.seconds, rung.again) == (1, 30, (3.0, 0.5), 0.0, True)
    trials.tell(made.store, yardstick.trial_id, "finished", state="COMPLETE", values=[3.0, 0.5])
    rows = results.trials(made.store, made.study.study_name)
    assert [(row["reached"], row["fd"], row["fd_low"]) for row in rows] == [(30, 3.0, 2.5)] * 2
    assert [row["repeats"] for row in results.front(made.store, made.study.study_name)] == [1, 1], "it is no point of its own"


def test_who_has_other_code_than_the_study_begins_and_takes_nothing(study: Callable) -> None:
    made = study()
    free = {"objectives": ("fd", "copy_excess"), "directions": {}, "quality": "fd", "memorization": "copy_excess"}
    results.register(made.store, made.id, 5, {"data": "phantoms"}, {"code": "newer"}, **free)
    made.study.enqueue_trial({"x": 0.5})
    for call in (partial(trials.take, request="r"), partial(trials.start, request="s", candidate=None, parameters={}, distributions={}, internal={}),
                 partial(trials.start, request="t", candidate=None, parameters={}, distributions={}, internal={}, outcome="failed")):
        with pytest.raises(CodeDiffers) as refused:
            call(made.store, made.id, code="older")
        assert (refused.value.stored, refused.value.own) == ("newer", "older")
    assert [each.state for each in made.study.get_trials()] == [TrialState.WAITING]
    assert trials.take(made.store, made.id, "r", "newer").number == 0
    assert trials.start(made.store, made.id, request="s", candidate=None, parameters={}, distributions={}, internal={}, code="newer").number == 1


def test_who_has_other_rules_than_the_database_begins_and_takes_nothing(opened: Callable, database: str) -> None:
    store = opened(url=database)
    found = optuna.create_study(storage=store.optuna)
    results.register(store, found._study_id, 5, {}, {}, objectives=("fd",), directions={}, quality="fd", memorization="copy_excess")
    found.enqueue_trial({"x": 0.5})
    with store.engine.begin() as connection:
        connection.execute(text("COMMENT ON SCHEMA peft_pareto IS 'functions and views of another version'"))
    for call in (partial(trials.take, request="r"), partial(trials.start, request="s", candidate=None, parameters={}, distributions={}, internal={})):
        with pytest.raises(SchemaError, match="another version of peft-pareto since this worker joined"):
            call(store, found._study_id)
    assert [each.state for each in found.get_trials()] == [TrialState.WAITING]


def _described(made, taken: trials.Taken, hash: str, outcome: str | None = None) -> str | None:
    return trials.describe(made.store, taken.trial_id, made.described(hash), {"x": 0.5}, {"x": X}, {"x": 0.5}, outcome=outcome, reason=outcome and "a reason")


def test_an_enqueued_trial_that_is_not_worth_running_ends_as_it_is_described(study: Callable, opened: Callable) -> None:
    made = study()
    made.finish(made.start("h"))
    for hash, outcome, then in (("h", None, "duplicate"), ("i", "infeasible", "infeasible"), ("h", "infeasible", "duplicate")):
        made.study.enqueue_trial({"x": 0.5})
        taken = made.take()
        assert _described(made, taken, hash, outcome) == then and made.state(taken) == "FAIL"
    assert outcomes(made)[1:] == [("duplicate", "the same candidate as trial 0"), ("infeasible", "a reason"), ("duplicate", "the same candidate as trial 0")]
    made.study.enqueue_trial({"x": 0.5})
    taken = made.take()
    assert [_described(made, taken, "j") for _ in range(2)] == [None, None], "it is no duplicate of itself"
    assert made.state(taken) == "RUNNING"


def test_what_failed_by_its_own_cause(study: Callable) -> None:
    made = study()
    for own in (False, True):
        trials.tell(made.store, _start_with(made, f"a {own} {made.id}").trial_id, "failed", state="FAIL", reason="NaN", own_cause=own)
    trials.start(made.store, made.id, request=f"bad {made.id}", candidate=None, parameters={}, distributions={}, internal={}, outcome="failed")
    running, (failed,) = trials.running_and_failed(made.store, made.id)
    assert not running
    assert failed.number == 1 and failed.parameters == PARAMETERS and '"rank"' in failed.distributions
    assert trials.running_and_failed(made.store, made.id, failed=[1]) == ([], [])


def test_sizes_and_what_runs(study: Callable) -> None:
    made = study()
    trial = _start_with(made, f"a {made.id}")
    made.finish(made.start())
    (running,), failed = trials.running_and_failed(made.store, made.id)
    (known,), _ = trials.running_and_failed(made.store, made.id, live=[running.number])
    assert not failed
    assert (known.number, known.parameters, known.distributions) == (running.number, None, None)
    assert (running.trial_id, running.number, running.root, running.repeat, running.steps) == (trial.trial_id, 0, "h", 0, 30)
    assert running.parameters == PARAMETERS and '"rank"' in running.distributions
    row = results.trials(made.store, made.study.study_name)[0]
    assert (row["trainable"], row["trainable_share"]) == (7, 0.5)


def test_malformed_candidates_are_refused(study: Callable) -> None:
    made = study()
    for rungs in ([30, 10], [10, 10, 30], [10], []):
        with pytest.raises(BadValue, match="must grow and end at"):
            made.start(rungs=rungs)
    with pytest.raises(BadValue, match="parameters y must each have"):
        trials.start(made.store, made.id, request="r", candidate=made.described("h"), parameters={"y": 1}, distributions={}, internal={})
    assert made.study.get_trials() == []
