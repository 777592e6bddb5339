"""Leases, on a real server: kept alive by heartbeats, given one at a time, and what the database's refusals become."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable

import psycopg2
import pytest
from sqlalchemy import exc, text

from storage import leases, trials
from storage.errors import LeaseLost, StorageUnreachable
from storage.store import Store, worker_name


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


KILLED = """
import sys, time, storage
from storage import leases, trials
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
