"""Leases, on a real server: kept alive by heartbeats, given one at a time, and who may write a trial, whatever path is tried."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import optuna
import psycopg2
import pytest
from optuna.distributions import FloatDistribution, distribution_to_json
from sqlalchemy import exc, text

from storage import leases, results, trials
from storage.errors import LeaseLost, StorageUnreachable
from storage.life import Life
from storage.store import Store, worker_name

X = distribution_to_json(FloatDistribution(0, 1))


def test_heartbeat_keeps_a_short_lease_alive_and_tells_the_stage(study: Callable) -> None:
    made = study(lease_seconds=1.5)
    trial = made.start()
    with leases.Heartbeat(made.store, trial.trial_id) as heartbeat:
        heartbeat.stage("training")
        time.sleep(2.5)
        assert trials.expire(made.store, made.id) == []
        assert not heartbeat.lost.is_set()
        lease = leases.read(made.store, trial.trial_id)
        assert lease.stage == "training" and lease.seconds_left > 0
        made.finish(trial)
    time.sleep(0.1)
    assert made.state(trial) == "COMPLETE"


def test_heartbeat_notices_that_the_lease_is_gone(study: Callable) -> None:
    made = study(lease_seconds=2)
    trial = made.start()
    with leases.Heartbeat(made.store, trial.trial_id) as heartbeat:
        made.run_out(trial)
        assert heartbeat.lost.wait(20)
    with pytest.raises(LeaseLost), leases.Heartbeat(made.store, trial.trial_id):
        pytest.fail("entered without a lease")


def test_heartbeat_outlives_lost_connections(study: Callable) -> None:
    made = study(lease_seconds=2)
    trial = made.start()
    drop = text(
        "SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a WHERE a.pid <> pg_backend_pid() "
        "AND a.query LIKE '%peft_pareto.heartbeat%'"
    )
    with leases.Heartbeat(made.store, trial.trial_id) as heartbeat:
        for _ in range(4):
            time.sleep(0.7)
            with made.store.optuna.engine.begin() as connection:
                connection.execute(drop)
        assert not heartbeat.lost.is_set()
        assert leases.read(made.store, trial.trial_id).seconds_left > 0


@pytest.fixture
def failing(server: str) -> Iterator[Callable[[int, int], Callable[[], int]]]:
    """`failing(trial, times)`: the server fails at so many heartbeats of a trial with an internal error; gives a count of its heartbeats since."""
    connection = psycopg2.connect(server)
    connection.autocommit = True
    with connection.cursor() as cursor:
        def make(trial: int, times: int) -> Callable[[], int]:
            cursor.execute("CREATE SEQUENCE beats MINVALUE 0")  # it counts also where the transaction fails
            cursor.execute(
                f"CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF nextval('beats') < {times} THEN "
                "RAISE 'out of order' USING ERRCODE = 'XX000'; END IF; RETURN NEW; END $$"
            )
            cursor.execute(f"CREATE TRIGGER a BEFORE UPDATE ON peft_pareto.leases FOR EACH ROW WHEN (NEW.trial_id = {trial}) EXECUTE FUNCTION fail()")

            def beats() -> int:
                cursor.execute("SELECT last_value FROM beats")
                return cursor.fetchone()[0]

            return beats

        yield make
        cursor.execute("DROP TRIGGER IF EXISTS a ON peft_pareto.leases; DROP FUNCTION IF EXISTS fail; DROP SEQUENCE IF EXISTS beats")
    connection.close()


def test_heartbeat_bears_a_server_that_fails_in_an_unforeseen_way(study: Callable, failing: Callable, caplog: pytest.LogCaptureFixture) -> None:
    made = study(lease_seconds=20)
    trial = made.start()
    with leases.Heartbeat(made.store, trial.trial_id) as heartbeat:
        beats = failing(trial.trial_id, 2)
        heartbeat.stage("training")
        deadline = time.monotonic() + 60
        while beats() < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not heartbeat.lost.is_set() and leases.read(made.store, trial.trial_id).stage == "training"
    assert "could not be extended: out of order" in caplog.text


def test_heartbeat_says_that_the_lease_is_gone_where_the_server_only_fails(study: Callable, failing: Callable) -> None:
    made = study(lease_seconds=2)
    trial = made.start()
    with leases.Heartbeat(made.store, trial.trial_id) as heartbeat:
        failing(trial.trial_id, 1_000_000)
        assert heartbeat.lost.wait(60)


def test_without_a_sign_of_life_the_lease_runs_out_and_whoever_hangs_is_told_of_it(study: Callable, opened: Callable, caplog: pytest.LogCaptureFixture) -> None:
    made = study(lease_seconds=2)
    other, trial, told = made.seen_by(opened()), made.start(), queue.Queue()
    with leases.Heartbeat(made.store, trial.trial_id, Life("trial 0", 1.0, told.put)) as heartbeat:
        heartbeat.stage("training")
        assert told.get(timeout=60).startswith("trial 0: no sign of life for ")  # while this thread does nothing
        deadline = time.monotonic() + 60
        while not (expired := trials.expire(other.store, made.id)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert expired == [0] and other.take().number == 0
        heartbeat.stage("training")
        assert heartbeat.lost.wait(60), "it has come back too late"
    assert "s at: training; it is not kept from others any longer" in caplog.text


def test_who_hangs_after_the_trial_is_lost_is_told_of_it_too(study: Callable) -> None:
    made, told = study(lease_seconds=2), queue.Queue()
    trial = made.start()
    with leases.Heartbeat(made.store, trial.trial_id, Life("trial 0", 1.0, told.put)) as heartbeat:
        made.run_out(trial)
        assert heartbeat.lost.wait(60) and told.get(timeout=60)


def test_signs_of_life_keep_the_lease(study: Callable) -> None:
    made, told = study(lease_seconds=1.5), queue.Queue()
    trial = made.start()
    life = Life("trial 0", 1.0, told.put)
    with leases.Heartbeat(made.store, trial.trial_id, life) as heartbeat:
        for _ in range(40):
            time.sleep(0.1)
            life.sign()
        assert told.empty() and not heartbeat.lost.is_set() and leases.read(made.store, trial.trial_id).seconds_left > 0


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


def test_one_that_hangs_in_its_turn_loses_it(study: Callable, opened: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "TURN_SECONDS", 1.0)
    made, other, told = study(), opened(), queue.Queue()
    taken = threading.Event()

    def ask() -> None:
        with leases.asking(other, made.id):
            taken.set()

    waiting = threading.Thread(target=ask)
    with leases.asking(made.store, made.id, Life("the turn", 1.0, told.put)) as turn:
        waiting.start()
        for _ in range(30):
            time.sleep(0.1)
            turn.check()
        assert not taken.is_set() and told.empty(), "it is slow, but gives signs of life"
        assert taken.wait(60), "nobody could ask while a worker hung in its turn"
        assert told.get(timeout=60).startswith("the turn: no sign of life for ")
        with pytest.raises(StorageUnreachable):
            turn.check()
    waiting.join()


KILLED = """
import sys, time, storage
from storage import leases, results, trials
store = storage.open(sys.argv[1], sys.argv[2])
with leases.asking(store, int(sys.argv[3])):
    assert trials.take(store, int(sys.argv[3]), "killed " + sys.argv[2]) is not None
    print("taken", flush=True)
    time.sleep(600)
"""


def test_a_killed_worker_leaves_its_trial_to_the_next(study: Callable, server: str) -> None:
    made = study(1, lease_seconds=2)
    made.study.enqueue_trial({"x": 0.25})
    command = [sys.executable, "-c", KILLED, server, worker_name(), str(made.id)]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert worker.stdout.readline() == "taken\n"
    worker.kill()
    worker.wait()
    deadline = time.monotonic() + 30
    # The lock that the dead worker held is free, and its lease runs out by itself.
    with leases.asking(made.store, made.id):
        while not (expired := trials.expire(made.store, made.id)) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert expired == [0]
    taken = trials.take(made.store, made.id, "next")
    assert (taken.number, taken.losses, taken.fixed_params) == (0, 1, {"x": 0.25})


def test_translated_leaves_other_errors_and_names_outages(server: str) -> None:
    with pytest.raises(ZeroDivisionError), leases.translated():
        1 / 0  # noqa: B018
    with pytest.raises(StorageUnreachable), leases.translated():
        raise exc.OperationalError("SELECT 1", None, psycopg2.OperationalError("server closed the connection unexpectedly"))
    with pytest.raises(StorageUnreachable), leases.translated():
        raise psycopg2.OperationalError("server closed the connection unexpectedly")


@pytest.mark.parametrize("state", ["57014", "55P03", "58030", "53100", "57P01", "40P01"])
def test_translated_names_what_passes(store: Store, state: str) -> None:
    with pytest.raises(StorageUnreachable, match="cannot go on: in vain"), leases.translated(), store.at_once.connect() as connection:
        connection.execute(text(f"DO $$ BEGIN RAISE 'in vain' USING ERRCODE = '{state}'; END $$"))


def test_a_statement_that_the_server_cancels_passes(store: Store) -> None:
    with pytest.raises(StorageUnreachable, match="statement timeout"), leases.translated(), store.engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = 10"))
        connection.execute(text("SELECT pg_sleep(60)"))


def _writes(made, trial: trials.Started) -> list[Callable[[], object]]:
    number = trial.trial_id
    return [
        lambda: leases.heartbeat(made.store, number),
        lambda: made.rung(trial, steps=30),
        lambda: made.rung(trial, steps=10),
        lambda: trials.describe(made.store, number, made.described("i"), {"x": 1}, {"x": X}, {"x": 1}),
        lambda: results.record_artifact(made.store, number, "weights", "a.safetensors"),
        lambda: results.record_curve(made.store, number, {1: (1.0, 1.0)}),
        lambda: trials.tell(made.store, number, "finished", state="COMPLETE", values=[1.0, 1.0]),
        lambda: trials.tell(made.store, number, "failed", state="FAIL"),
        lambda: trials.leave(made.store, number),
        lambda: trials.leave(made.store, number, "a reason"),
        lambda: made.study.tell(trial.number, [1.0, 1.0]),
        lambda: _write(made, trial, "UPDATE trials SET state = 'COMPLETE' WHERE trial_id = :t"),
        lambda: _write(made, trial, "UPDATE trials SET state = 'PRUNED' WHERE trial_id = :t"),
        lambda: _write(made, trial, "INSERT INTO trial_values (trial_id, objective, value, value_type) VALUES (:t, 0, 1, 'FINITE')"),
    ]


def _write(made, trial: trials.Started, statement: str) -> None:
    with made.store.engine.begin() as connection:
        connection.execute(text(statement), {"t": trial.trial_id})


@pytest.mark.parametrize("gone", ["run out", "swept", "taken", "failed"])
def test_the_old_holder_can_write_nothing(study: Callable, opened: Callable, gone: str) -> None:
    made = study()
    other = made.seen_by(opened())
    trial = made.start()
    made.rung(trial, steps=10)
    if gone == "failed":
        with made.store.engine.begin() as connection:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            connection.execute(text("UPDATE peft_pareto.leases SET losses = 2 WHERE trial_id = :t"), {"t": trial.trial_id})
    made.run_out(trial)
    if gone != "run out":
        trials.expire(other.store, made.id)
    if gone == "taken":
        other.take()
    for place, write in enumerate(_writes(made, trial)):
        with pytest.raises((LeaseLost, ValueError)) as caught, leases.translated():
            write()
        if isinstance(caught.value, LeaseLost):
            assert (caught.value.trial, caught.value.worker) == (trial.trial_id, made.store.worker), place
            assert "\n" not in str(caught.value)
        else:
            assert f"Cannot tell a {made.state(trial)} trial" in str(caught.value), "Optuna's own refusal"
    assert made.state(trial) == {"run out": "RUNNING", "taken": "RUNNING", "swept": "WAITING", "failed": "FAIL"}[gone]
    frozen = made.study.get_trials()[0]
    assert frozen.values is None and frozen.params == {"x": 0.5}
    assert [row["steps"] for row in results.rungs(made.store, made.study.study_name)] == [10]


def test_a_finished_trial_never_changes(study: Callable) -> None:
    made = study()
    trial = made.start()
    made.finish(trial)
    changes = [
        "UPDATE trials SET state = 'FAIL' WHERE trial_id = :t",
        "UPDATE trials SET state = 'RUNNING' WHERE trial_id = :t",
        "UPDATE trial_values SET value = 0 WHERE trial_id = :t",
        "UPDATE peft_pareto.scores SET value = 0 WHERE trial_id = :t",
        "DELETE FROM peft_pareto.scores WHERE trial_id = :t",
        "UPDATE peft_pareto.rungs SET seconds = 0 WHERE trial_id = :t",
        "DELETE FROM peft_pareto.rungs WHERE trial_id = :t",
        "UPDATE peft_pareto.candidates SET hash = 'i' WHERE trial_id = :t",
        "UPDATE peft_pareto.leases SET outcome = 'failed' WHERE trial_id = :t",
        "UPDATE peft_pareto.leases SET worker = NULL WHERE trial_id = :t",
    ]
    for change in changes:
        with pytest.raises(exc.DatabaseError, match="already COMPLETE"):
            _write(made, trial, change)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("UPDATE trials SET state = 'WAITING' WHERE trial_id = :t", "nothing yet"),
        ("UPDATE peft_pareto.leases SET worker = NULL WHERE trial_id = :t", "does not go with its lease"),
        ("UPDATE peft_pareto.leases SET worker = 'thief' WHERE trial_id = :t", "cannot be handed on"),
        ("UPDATE peft_pareto.leases SET losses = 2 WHERE trial_id = :t", "lost too often"),
        ("UPDATE peft_pareto.leases SET outcome = 'finished', settled_at = now() WHERE trial_id = :t", "does not go with its lease"),
        ("INSERT INTO peft_pareto.leases (trial_id, study_id, worker, expires_at) SELECT max(trial_id), study_id, 'me', now() "
         "FROM trials WHERE study_id = (SELECT study_id FROM trials WHERE trial_id = :t) GROUP BY study_id", "given by starting"),
    ],
)  # fmt: skip
def test_no_path_around_the_functions(study: Callable, change: str, why: str) -> None:
    made = study()
    trial = made.start()
    made.study.enqueue_trial({"x": 0.5})
    with pytest.raises(exc.DatabaseError, match=why):
        _write(made, trial, change)
    assert made.state(trial) == "RUNNING"


@pytest.mark.parametrize("table", ["scores", "rungs", "candidates"])
def test_what_a_trial_has_written_cannot_be_moved_to_another(study: Callable, table: str) -> None:
    made = study()
    first = made.start()
    made.finish(first)
    second = made.start()
    with pytest.raises(exc.DatabaseError, match="cannot be moved"):
        _write(made, second, f"UPDATE peft_pareto.{table} SET trial_id = :t WHERE trial_id = {first.trial_id}")


def test_a_trial_cannot_be_added_finished(study: Callable) -> None:
    made = study()
    with pytest.raises(LeaseLost, match="settled as nothing yet|nobody holds"), leases.translated():
        made.study.add_trial(optuna.trial.create_trial(values=[0.0, 0.0]))
    for state in ("COMPLETE", "FAIL"):
        query = text(f"INSERT INTO trials (study_id, number, state) VALUES (:s, 0, '{state}')")
        with pytest.raises(exc.DatabaseError, match="added finished"), made.store.engine.begin() as connection:
            connection.execute(query, {"s": made.id})
