"""The state machine of trials, on a real server: who may start, write, finish and expire them."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import exc, text

from storage import leases, results
from storage.errors import BadValue, LeaseLost, NoWorker, StorageUnreachable, StudyFull
from storage.store import Store, worker_name


def _run_out(store: Store, trial: optuna.Trial) -> None:
    """Lets the trial's lease run out, as if its worker had slept; the guard is put aside for that."""
    with store.engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        query = "UPDATE peft_pareto.leases SET expires_at = clock_timestamp() - interval '1 second' WHERE trial_id = :t"
        connection.execute(text(query), {"t": trial._trial_id})


def _state(made, trial: optuna.Trial) -> TrialState:
    return made.study.get_trials(deepcopy=False)[trial.number].state


def test_four_workers_finish_exactly_what_was_asked(study: Callable, opened: Callable) -> None:
    made = study(trials=5)
    surprises: list[BaseException] = []
    full: list[StudyFull] = []

    def work() -> None:
        try:
            mine = made.seen_by(opened())
            while True:
                mine.finish(mine.ask())
        except StudyFull as error:
            full.append(error)
        except BaseException as error:  # handed to the test's own thread
            surprises.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert surprises == []
    assert [(error.study, error.trials) for error in full] == [(made.id, 5)] * 4
    counts = leases.counts(made.store, made.id)
    assert (counts.finished, counts.running, counts.failed) == (5, 0, 0)
    assert sorted(trial.number for trial in made.study.get_trials()) == [0, 1, 2, 3, 4]


def test_a_full_study_says_so_at_once(study: Callable) -> None:
    made = study(trials=1)
    made.ask()
    started = time.monotonic()
    with pytest.raises(StudyFull):
        made.ask()
    assert time.monotonic() - started < 1, "Optuna retried with pauses"


def test_failed_and_duplicate_trials_are_replaced(study: Callable) -> None:
    made = study(trials=1)
    made.fail(made.ask(), own_cause=True)
    made.fail(made.ask(), "duplicate")
    made.fail(made.ask(), "duplicate")
    counts = leases.counts(made.store, made.id)
    assert (counts.failed, counts.duplicates, counts.duplicates_in_a_row) == (1, 2, 2)
    made.finish(made.ask())
    counts = leases.counts(made.store, made.id)
    assert (counts.finished, counts.duplicates, counts.duplicates_in_a_row) == (1, 2, 0)
    with pytest.raises(StudyFull):
        made.ask()


def test_a_pruned_trial_counts_as_finished(study: Callable) -> None:
    made = study(trials=1)
    trial = made.ask()
    leases.settle(made.store, trial._trial_id, "finished")
    made.study.tell(trial, state=TrialState.PRUNED)
    assert leases.counts(made.store, made.id).finished == 1
    with pytest.raises(StudyFull):
        made.ask()


def test_a_connection_without_a_name_may_enqueue_but_not_start(study: Callable, opened: Callable) -> None:
    made = study()
    nameless = made.seen_by(opened(worker=None))
    nameless.study.enqueue_trial({"x": 0.25})
    assert leases.counts(made.store, made.id).waiting == 1
    with pytest.raises(NoWorker):
        nameless.ask()
    assert leases.counts(made.store, made.id).waiting == 1
    trial = made.ask()
    assert trial.params == {"x": 0.25}
    assert leases.read(made.store, trial._trial_id).worker == made.store.worker
    made.finish(trial)


def test_enqueued_trials_do_not_exceed_the_number_asked(study: Callable) -> None:
    made = study(trials=2)
    for value in (0.1, 0.2, 0.3):
        made.study.enqueue_trial({"x": value})
    made.finish(made.ask())
    made.finish(made.ask())
    with pytest.raises(StudyFull):
        made.ask()
    counts = leases.counts(made.store, made.id)
    assert (counts.finished, counts.waiting, counts.running) == (2, 1, 0)


def test_an_expired_lease_fails_the_trial_and_frees_its_place(study: Callable, opened: Callable) -> None:
    made = study(trials=1)
    other = made.seen_by(opened())
    trial = made.ask()
    assert leases.expire(other.store, made.id) == []
    _run_out(made.store, trial)
    assert leases.expire(other.store, made.id) == [trial.number]
    assert leases.expire(other.store, made.id) == []
    assert _state(made, trial) is TrialState.FAIL
    lease = leases.read(made.store, trial._trial_id)
    assert lease.outcome == "expired" and made.store.worker in lease.reason and lease.seconds_left < 0
    counts = leases.counts(made.store, made.id)
    assert (counts.expired, counts.failed, counts.running) == (1, 0, 0)
    other.finish(other.ask())
    assert leases.counts(made.store, made.id).finished == 1


@pytest.mark.parametrize("swept", [False, True], ids=["run out", "run out and swept"])
def test_a_late_worker_can_write_nothing(study: Callable, swept: bool) -> None:
    made = study()
    trial = made.ask(hash="h")
    leases.settle(made.store, trial._trial_id, "finished")
    _run_out(made.store, trial)
    if swept:
        leases.expire(made.store, made.id)
    number = trial._trial_id
    writes = [
        lambda: leases.heartbeat(made.store, number),
        lambda: leases.settle(made.store, number, "failed"),
        lambda: results.record_scores(made.store, number, {"fd": (1.0, 0.5, 1.5)}),
        lambda: results.record_artifact(made.store, number, "weights", "a.safetensors"),
        lambda: results.record_curve(made.store, number, {1: (1.0, 1.0)}),
        lambda: results.record_candidate(
            made.store, number, hash="i", words="w", method="m", steps=1, json={}),
    ]  # fmt: skip
    for write in writes:
        with pytest.raises(LeaseLost) as caught:
            write()
        assert (caught.value.trial, caught.value.worker) == (number, made.store.worker)
        assert "\n" not in str(caught.value)
    if not swept:
        with pytest.raises(LeaseLost), leases.translated():
            made.study.tell(trial, [1.0, 1.0])
        leases.expire(made.store, made.id)
    with pytest.raises(ValueError, match="Cannot tell a FAIL trial"):
        made.study.tell(trial, [1.0, 1.0])
    with made.store.engine.connect() as connection:
        query = text("SELECT count(*) FROM trial_values WHERE trial_id = :t")
        assert connection.scalar(query, {"t": number}) == 0


def test_another_worker_can_write_nothing(study: Callable, opened: Callable) -> None:
    made = study()
    trial = made.ask(hash="h")
    thief = made.seen_by(opened())
    with pytest.raises(LeaseLost, match="belongs to"):
        leases.heartbeat(thief.store, trial._trial_id)
    with pytest.raises(LeaseLost, match="belongs to"):
        results.record_scores(thief.store, trial._trial_id, {"fd": (1.0, 0.5, 1.5)})
    leases.settle(made.store, trial._trial_id, "finished")
    with pytest.raises(LeaseLost, match="belongs to"), leases.translated():
        thief.study.tell(trial.number, [1.0, 1.0])
    made.finish(trial)


def test_telling_must_fit_what_was_settled(study: Callable) -> None:
    made = study()
    trial = made.ask()
    with pytest.raises(LeaseLost, match="nothing yet"), leases.translated():
        made.study.tell(trial, [1.0, 1.0])
    leases.settle(made.store, trial._trial_id, "failed")
    with pytest.raises(LeaseLost, match="settled as failed"), leases.translated():
        made.study.tell(trial, [1.0, 1.0])
    made.finish(trial, 1.0, 2.0)
    assert made.study.trials[trial.number].values == [1.0, 2.0]


def test_a_finished_trial_never_changes(study: Callable) -> None:
    made = study()
    trial = made.ask(hash="h")
    results.record_scores(made.store, trial._trial_id, {"fd": (1.0, 0.5, 1.5)})
    made.finish(trial)
    changes = [
        "UPDATE trials SET state = 'FAIL' WHERE trial_id = :t",
        "UPDATE trials SET state = 'RUNNING' WHERE trial_id = :t",
        "UPDATE trial_values SET value = 0 WHERE trial_id = :t",
        "UPDATE peft_pareto.scores SET value = 0 WHERE trial_id = :t",
        "DELETE FROM peft_pareto.scores WHERE trial_id = :t",
        "UPDATE peft_pareto.leases SET outcome = 'failed' WHERE trial_id = :t",
    ]
    for change in changes:
        with pytest.raises(exc.DatabaseError, match="already COMPLETE"), made.store.engine.begin() as connection:
            connection.execute(text(change), {"t": trial._trial_id})


def test_a_trial_cannot_be_added_finished(study: Callable) -> None:
    made = study()
    with pytest.raises(LeaseLost, match="settled as nothing yet|nobody holds"), leases.translated():
        made.study.add_trial(optuna.trial.create_trial(values=[0.0, 0.0]))
    query = text("INSERT INTO trials (study_id, number, state) VALUES (:s, 0, 'COMPLETE')")
    with pytest.raises(exc.DatabaseError, match="added finished"), made.store.engine.begin() as connection:
        connection.execute(query, {"s": made.id})


def test_two_sweepers_at_once_share_the_work(study: Callable, opened: Callable) -> None:
    made = study(trials=20)
    for trial in [made.ask() for _ in range(20)]:
        _run_out(made.store, trial)
    swept: list[int] = []

    def sweep(store: Store) -> None:
        swept.extend(leases.expire(store, made.id))

    threads = [threading.Thread(target=sweep, args=(opened(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    swept.extend(leases.expire(made.store, made.id))
    assert sorted(swept) == list(range(20))


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
    trial = made.ask(hash="h")
    results.record_scores(made.store, trial._trial_id, {"fd": (1.0, 0.5, 1.5)})
    made.finish(trial)
    made.ask(hash="i")
    optuna.delete_study(study_name=made.study.study_name, storage=made.store.optuna)
    assert made.study.study_name not in results.study_names(made.store)


def test_heartbeat_keeps_a_short_lease_alive_and_tells_the_stage(study: Callable) -> None:
    made = study(lease_seconds=1.5)
    trial = made.ask()
    with leases.Heartbeat(made.store, trial._trial_id) as heartbeat:
        heartbeat.stage("training")
        time.sleep(2.5)
        assert leases.expire(made.store, made.id) == []
        assert not heartbeat.lost.is_set()
        lease = leases.read(made.store, trial._trial_id)
        assert lease.stage == "training" and lease.seconds_left > 0
        made.finish(trial)
    time.sleep(0.1)
    assert _state(made, trial) is TrialState.COMPLETE


def test_heartbeat_notices_that_the_lease_is_gone(study: Callable) -> None:
    made = study(lease_seconds=2)
    trial = made.ask()
    with leases.Heartbeat(made.store, trial._trial_id) as heartbeat:
        _run_out(made.store, trial)
        assert heartbeat.lost.wait(20)
    with pytest.raises(LeaseLost), leases.Heartbeat(made.store, trial._trial_id):
        pytest.fail("entered without a lease")


def test_heartbeat_outlives_lost_connections(study: Callable) -> None:
    made = study(lease_seconds=2)
    trial = made.ask()
    drop = text(
        "SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a WHERE a.pid <> pg_backend_pid() "
        "AND a.query LIKE '%peft_pareto.heartbeat%'"
    )
    with leases.Heartbeat(made.store, trial._trial_id) as heartbeat:
        for _ in range(4):
            time.sleep(0.7)
            with made.store.optuna.engine.begin() as connection:
                connection.execute(drop)
        assert not heartbeat.lost.is_set()
        assert leases.read(made.store, trial._trial_id).seconds_left > 0


def test_asking_lets_one_worker_in_at_a_time(study: Callable, opened: Callable) -> None:
    made = study()
    inside, most = [0], [0]

    def work(store: Store) -> None:
        for _ in range(3):
            with leases.asking(store, made.id):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.01)
                inside[0] -= 1

    threads = [threading.Thread(target=work, args=(opened(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


PAUSED = """
import sys, storage
from storage import leases
from storage.errors import StorageUnreachable
leases.TURN_SECONDS = 1.0
store = storage.open(sys.argv[1], sys.argv[2])
with leases.asking(store, int(sys.argv[3])) as turn:
    turn.check()
    print("asked", flush=True)
    sys.stdin.readline()
    try:
        turn.check()
    except StorageUnreachable:
        print("lost", flush=True)
"""


def test_a_paused_worker_loses_its_turn_and_a_slow_one_keeps_it(study: Callable, opened: Callable, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "TURN_SECONDS", 1.0)
    made, other = study(), opened()
    taken: list[float] = []

    def ask() -> None:
        with leases.asking(other, made.id):
            taken.append(time.monotonic())

    command = [sys.executable, "-c", PAUSED, server, worker_name(), str(made.id)]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert worker.stdout.readline() == "asked\n"
        waiting = threading.Thread(target=ask)
        waiting.start()
        time.sleep(4)
        assert not taken, "it is slow, but says so"
        worker.send_signal(signal.SIGSTOP)
        waiting.join(timeout=30)
        assert taken, "nobody could ask while a worker was paused in its turn"
        worker.send_signal(signal.SIGCONT)
        assert worker.communicate("go on\n", timeout=30)[0] == "lost\n"
        assert worker.returncode == 0
    finally:
        worker.kill()
        worker.wait()


KILLED = """
import sys, time, optuna, storage
from storage import leases
store = storage.open(sys.argv[1], sys.argv[2])
study = optuna.load_study(study_name=sys.argv[3], storage=store.optuna)
with leases.asking(store, study._study_id):
    study.ask()
    print("asked", flush=True)
    time.sleep(600)
"""


def test_a_killed_worker_leaves_nothing_running(study: Callable, server: str) -> None:
    made = study(trials=1, lease_seconds=2)
    command = [sys.executable, "-c", KILLED, server, worker_name(), made.study.study_name]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert worker.stdout.readline() == "asked\n"
    worker.kill()
    worker.wait()
    deadline = time.monotonic() + 30
    # The lock that the dead worker held is free, and its lease runs out by itself.
    with leases.asking(made.store, made.id):
        while not (expired := leases.expire(made.store, made.id)) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert expired == [0]
    made.finish(made.ask())
    counts = leases.counts(made.store, made.id)
    assert (counts.finished, counts.expired, counts.running) == (1, 1, 0)


def test_translated_leaves_other_errors_and_names_outages(server: str) -> None:
    with pytest.raises(ZeroDivisionError), leases.translated():
        1 / 0  # noqa: B018
    with pytest.raises(StorageUnreachable), leases.translated():
        raise exc.OperationalError("SELECT 1", None, Exception("server closed the connection unexpectedly"))


def test_an_unknown_outcome_is_refused(study: Callable) -> None:
    made = study()
    trial = made.ask()
    for outcome in ("expired", "done"):
        with pytest.raises(BadValue, match=outcome):
            leases.settle(made.store, trial._trial_id, outcome)


def test_reasons_may_hold_anything(study: Callable) -> None:
    made = study()
    trial = made.ask()
    leases.settle(made.store, trial._trial_id, "failed", "a 'b' \0 %s :x 🫁")
    assert leases.read(made.store, trial._trial_id).reason == "a 'b'  %s :x 🫁"
