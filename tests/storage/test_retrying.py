"""Patience: an answer that was lost is asked for again, on a real server, and not for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from sqlalchemy import text

from storage import leases, trials
from storage.errors import StorageUnreachable
from storage.retrying import retrying


def test_patience_ends() -> None:
    calls = []

    def call() -> int:
        calls.append(time.monotonic())
        if len(calls) < 3:
            raise StorageUnreachable("away")
        return 7

    assert retrying(call) == 7 and len(calls) == 3
    with pytest.raises(StorageUnreachable, match="still away"):
        retrying(lambda: (_ for _ in ()).throw(StorageUnreachable("still away")), seconds=0.3)
    with pytest.raises(StorageUnreachable):
        retrying(lambda: (_ for _ in ()).throw(StorageUnreachable("away")), give_up=lambda: True)
    with pytest.raises(ZeroDivisionError):
        retrying(lambda: 1 // 0)


def test_a_lost_answer_is_asked_for_again(study: Callable) -> None:
    """The server ends the connection while the call waits for a lock; the same call again does it once."""
    made = study()
    trial = made.start()
    blocker = made.store.optuna.engine.connect()
    blocker.execute(text("SELECT 1 FROM peft_pareto.studies WHERE study_id = :s FOR UPDATE"), {"s": made.id})
    drop = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%record_rung%' AND pid <> pg_backend_pid() AND wait_event_type = 'Lock'"

    def cut() -> None:
        # Each look in a transaction of its own: the server shows a transaction one state of its connections.
        with made.store.optuna.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not connection.execute(text(drop)).all():
                time.sleep(0.02)
        blocker.rollback()

    thread = threading.Thread(target=cut)
    thread.start()
    retrying(lambda: made.rung(trial, steps=10))
    thread.join()
    blocker.close()
    assert len(trials.rungs_since(made.store, made.id)) == 1
    assert leases.read(made.store, trial.trial_id).losses == 0
