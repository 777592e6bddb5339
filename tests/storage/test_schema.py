"""The database's tables: made once, whoever asks, and never made older."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import optuna
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

import storage
from storage import engine, leases, results, schema, trials
from storage.engine import connect, optuna_storage
from storage.errors import SchemaError, StorageUnreachable

OBJECTS = (
    "SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
    "WHERE n.nspname IN ('public', 'peft_pareto') AND c.relkind IN ('r', 'v') ORDER BY 1"
)


def _objects(url: str) -> list[str]:
    engine = connect(url)
    with engine.connect() as connection:
        found = list(connection.scalars(text(OBJECTS)))
    engine.dispose()
    return found


def test_opening_twice_changes_nothing(database: str) -> None:
    storage.open(database).close()
    first = _objects(database)
    assert {"public.pareto_front", "public.trial_scores", "public.trials", "peft_pareto.leases"} <= set(first)
    storage.open(database).close()
    assert _objects(database) == first


def test_four_at_once_make_one_schema(database: str) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            storage.open(database).close()
        except BaseException as error:  # handed to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert "public.pareto_front" in _objects(database)


PAUSED = """
import os, signal, sys, storage
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import BaseModel
from sqlalchemy import event
from storage import engine, schema
from storage.errors import StorageUnreachable
engine.IDLE_TRANSACTION = "SET idle_in_transaction_session_timeout = '1s'"

def pause(*given, **named):
    print("paused", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)

def then(first, second):
    return lambda *given, **named: (first(*given, **named), second(*given, **named)) and None

match sys.argv[2]:
    case "before it makes Optuna's tables":
        RDBStorage.__init__ = then(pause, RDBStorage.__init__)
    case "while it makes Optuna's tables":
        event.listen(BaseModel.metadata, "after_create", pause)
    case "while it makes ours":
        schema._install_code = then(schema._install_code, pause)
try:
    storage.open(sys.argv[1]).close()
    print("opened")
except StorageUnreachable:
    print("away")
"""


@pytest.mark.parametrize("place", ["before it makes Optuna's tables", "while it makes Optuna's tables", "while it makes ours"])
def test_a_process_that_is_paused_while_it_opens_a_database_keeps_nobody_out(place: str, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (engine, schema):
        monkeypatch.setattr(module, "SILENT_SECONDS", 1.0)
    process = subprocess.Popen([sys.executable, "-c", PAUSED, database, place], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "paused\n"
        opening = threading.Thread(target=lambda: storage.open(database).close(), daemon=True)
        opening.start()
        opening.join(timeout=60)
        assert not opening.is_alive()
        made = _objects(database)
        process.send_signal(signal.SIGCONT)
        said = process.communicate(timeout=60)[0]
        assert said in ("opened\n", "away\n") and process.returncode == 0, "it asks again"
        assert "public.pareto_front" in made and _objects(database) == made
    finally:
        process.kill()
        process.wait()


def test_a_newer_schema_is_refused_in_one_line(database: str) -> None:
    store = storage.open(database)
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE peft_pareto.alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaError, match=r"'9999'.*upgrade peft-pareto") as caught:
        schema.upgrade(store.engine, change=True)
    assert "\n" not in str(caught.value)
    store.close()


def test_without_optunas_tables_nothing_is_made(database: str) -> None:
    engine = connect(database)
    with pytest.raises(SchemaError, match="Optuna's tables are missing"):
        schema.upgrade(engine, change=False)
    engine.dispose()
    assert _objects(database) == []


def of_another_version(database: str) -> None:
    with connect(database).begin() as connection:
        connection.execute(text("DROP VIEW pareto_front"))
        connection.execute(text("CREATE OR REPLACE FUNCTION peft_pareto.most_losses() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 7'"))
        connection.execute(text("COMMENT ON SCHEMA peft_pareto IS 'functions and views of another version'"))


def most_losses(database: str) -> int:
    with connect(database).connect() as connection:
        return connection.scalar(text("SELECT peft_pareto.most_losses()"))


def test_changed_files_are_installed_again_by_a_launch_only(database: str) -> None:
    storage.open(database).close()
    of_another_version(database)
    for worker in (None, "me"):
        with pytest.raises(SchemaError, match="another version of peft-pareto: use that one, or launch") as caught:
            storage.open(database, worker)
        assert "\n" not in str(caught.value)
    assert most_losses(database) == 7 and "public.pareto_front" not in _objects(database)
    storage.open(database, upgrade=True).close()
    assert most_losses(database) == 3 and "public.pareto_front" in _objects(database)


def test_rules_by_which_workers_run_trials_are_not_changed(database: str) -> None:
    store = storage.open(database, "me")
    study = optuna.create_study(storage=store.optuna)
    results.register(store, study._study_id, 5, {}, {}, objectives=("fd",), directions={}, quality="fd", memorization="copy_excess")
    started = trials.start(store, study._study_id, request="one", candidate=None, parameters={}, distributions={}, internal={})
    of_another_version(database)
    with pytest.raises(SchemaError, match="by which workers run 1 trials now: wait until they have ended"):
        storage.open(database, upgrade=True)
    assert most_losses(database) == 7
    trials.leave(store, started.trial_id)
    storage.open(database, upgrade=True).close()
    assert most_losses(database) == 3
    store.close()


def test_optunas_tables_may_be_in_another_schema(database: str) -> None:
    engine = connect(database)
    with engine.begin() as connection:
        connection.execute(text('CREATE SCHEMA "my ""own"'))
    engine.dispose()
    url = database + "&options=-csearch_path%3D%22my%5C%20%22%22own%22"
    store = storage.open(url, "me")
    assert "public.pareto_front" not in _objects(database)
    with store.engine.connect() as connection:
        assert connection.execute(text("SELECT * FROM pareto_front")).all() == []
    store.close()


def test_a_role_without_rights_is_told_what_it_lacks(database: str) -> None:
    engine = connect(database)
    with engine.begin() as connection:
        connection.execute(text("DROP ROLE IF EXISTS weak"))
        connection.execute(text("CREATE ROLE weak LOGIN"))
    engine.dispose()
    with pytest.raises((SchemaError, StorageUnreachable), match="GRANT CREATE") as caught:
        storage.open(database.replace("postgres@", "weak@"))
    assert "\n" not in str(caught.value)


def test_a_role_named_like_our_schema_finds_optunas_tables(database: str) -> None:
    with connect(database).begin() as connection:
        connection.execute(text("DROP ROLE IF EXISTS peft_pareto"))
        connection.execute(text("CREATE ROLE peft_pareto LOGIN SUPERUSER"))
    theirs = database.replace("postgres@", "peft_pareto@")
    for _ in range(2):  # by the second time our schema is there, and first on this role's path
        store = storage.open(theirs)
        with store.engine.connect() as connection:
            assert schema.optuna_schema(connection) == "public"
            assert connection.scalar(text("SELECT count(*) FROM pareto_front")) == 0
        assert store.optuna.get_all_studies() == []
        store.close()


#: A study as revision 0002 left it: finished, failed, running and enqueued trials; told in the order 1, 0.
OLD = """
SET LOCAL session_replication_role = replica;
INSERT INTO studies (study_id, study_name) VALUES (1, 'old'), (2, 'rewarded'), (3, 'not ours');
INSERT INTO study_directions (direction, study_id, objective) VALUES ('MINIMIZE', 1, 0), ('MINIMIZE', 1, 1), ('MAXIMIZE', 2, 0), ('MINIMIZE', 3, 0);
INSERT INTO trials (trial_id, number, study_id, state, datetime_start, datetime_complete) VALUES
    (1, 0, 1, 'COMPLETE', '2026-01-01 10:00', '2026-01-01 10:01'), (2, 1, 1, 'COMPLETE', '2026-01-01 10:00', '2026-01-01 10:00:30'),
    (3, 2, 1, 'FAIL', '2026-01-01', '2026-01-01'), (4, 3, 1, 'FAIL', '2026-01-01', '2026-01-01'), (5, 4, 1, 'RUNNING', '2026-01-01', NULL),
    (6, 5, 1, 'WAITING', NULL, NULL), (7, 0, 2, 'COMPLETE', '2026-01-01', '2026-01-01'), (8, 0, 3, 'COMPLETE', '2026-01-01', '2026-01-01');
INSERT INTO trial_values (trial_id, objective, value, value_type) VALUES
    (1, 0, 2.0, 'FINITE'), (1, 1, 0.5, 'FINITE'), (2, 1, 0.25, 'FINITE'), (2, 0, 3.0, 'FINITE'), (7, 0, 0.125, 'FINITE'), (8, 0, 1, 'FINITE');
INSERT INTO peft_pareto.studies (study_id, trials, settings, objectives, directions, reward_weight, quality, memorization) VALUES
    (1, 4, '{"binding": {}, "free": {}}', '["fd", "copy_excess"]', '{}', 0.5, 'fd', 'copy_excess'),
    (2, 4, '{"binding": {}, "free": {}}', '["joint_reward"]', '{}', 0.5, 'fd', 'copy_excess');
INSERT INTO peft_pareto.leases (trial_id, study_id, worker, expires_at, outcome, settled_at) VALUES
    (1, 1, 'w', '2026-01-02', 'finished', '2026-01-01 10:01'), (2, 1, 'w', '2026-01-02', 'finished', '2026-01-01 10:00:30'),
    (3, 1, 'w', '2026-01-02', 'expired', '2026-01-01'), (4, 1, 'w', '2026-01-02', 'released', '2026-01-01'),
    (5, 1, 'w', '2026-01-02', NULL, NULL), (7, 2, 'w', '2026-01-02', 'finished', '2026-01-01');
INSERT INTO peft_pareto.candidates (trial_id, study_id, hash, words, method, steps, json, yardstick, seconds) VALUES
    (1, 1, 'a', 'words of a', 'full', 200, '{"a": 1}', true, 55), (2, 1, 'b', 'words of b', 'bias', 100, '{}', false, NULL),
    (3, 1, 'c', 'words of c', 'bias', 100, '{}', false, NULL), (5, 1, 'd', 'words of d', 'bias', 50, '{}', false, NULL),
    (7, 2, 'e', 'words of e', 'full', 200, '{}', true, 5);
INSERT INTO peft_pareto.scores (trial_id, name, value, low, high) VALUES (1, 'fd', 2.0, 1.5, 2.5), (1, 'copy_excess', 0.5, 0, 1), (2, 'fd', 3.0, 2, 4),
    (2, 'copy_excess', 0.25, 0, 1), (3, 'fd', 9, 9, 9), (7, 'copy_excess', 0.75, 0, 1), (7, 'fd', 4.0, 3, 5);
SELECT setval('trials_trial_id_seq', 100), setval('studies_study_id_seq', 100);
"""


def upgrade_to(connection: Connection, revision: str) -> None:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "storage:migrations")
    config.set_main_option("path_separator", "os")
    command.upgrade(config, revision)


def test_a_study_of_before_rungs_is_kept_and_read(database: str) -> None:
    engine = connect(database)
    optuna_storage(database)
    with engine.begin() as connection:
        upgrade_to(connection, "0002")
        connection.exec_driver_sql(OLD)
        # What the code of that revision had installed.
        connection.exec_driver_sql("CREATE FUNCTION peft_pareto.front_of(study integer) RETURNS SETOF integer LANGUAGE sql AS 'SELECT 1'")
        connection.exec_driver_sql("CREATE VIEW pareto_front AS SELECT peft_pareto.front_of(study_id) FROM peft_pareto.studies")
        connection.exec_driver_sql("COMMENT ON SCHEMA peft_pareto IS 'functions and views of revision 0002'")
    engine.dispose()
    store = storage.open(database, "me", upgrade=True)
    rows = {row["trial"]: row for row in results.trials(store, "old")}
    assert [rows[number]["state"] for number in range(6)] == ["COMPLETE", "COMPLETE", "FAIL", "FAIL", "RUNNING", "WAITING"]
    assert [rows[number]["outcome"] for number in range(5)] == ["finished", "finished", "expired", "released", None]
    assert [(rows[number]["reached"], rows[number]["seconds"], rows[number]["fd"]) for number in range(3)] == [(200, 55, 2), (100, 30, 3), (None, None, None)]
    front = [(row["trial"], row["steps"], row["candidate"], row["fd_low"], row["repeats"]) for row in results.front(store, "old")]
    assert front == [(0, 200, "words of a", 1.5, 1), (1, 100, "words of b", 2.0, 1)]
    read = trials.rungs_since(store, 1)
    assert [(row.number, row.values, row.root, row.repeat, row.own_steps) for row in read] == [(1, (3.0, 0.25), "b", 0, 100), (0, (2.0, 0.5), "a", 0, 200)]
    assert read[0].parameters is read[0].distributions is None
    (rewarded,) = trials.rungs_since(store, 2)
    assert rewarded.values == (4.0, 0.75), "[q, m]"
    counts = leases.counts(store, 1)
    assert (counts.finished, counts.running, counts.waiting, counts.expired, counts.released) == (2, 1, 1, 1, 1)
    assert trials.find_duplicate(store, 1, "a", 200) == 0 and trials.find_duplicate(store, 1, "d", 50) == 4
    assert trials.expire(store, 1) == [4], "its worker is long gone"
    taken = trials.take(store, 1, "request")
    assert (taken.number, taken.losses, taken.rungs) == (4, 1, {})
    trials.record_rung(store, taken.trial_id, 50, "d", "words of d", [1.0, 1.0], {}, 1.0)
    trials.tell(store, taken.trial_id, "finished", state="COMPLETE", values=[1.0, 1.0])
    assert optuna.load_study(study_name="old", storage=store.optuna).trials[4].values == [1.0, 1.0]
    store.close()


def test_hypervolumes_of_before_are_numbered_as_trials_ended(database: str) -> None:
    engine = connect(database)
    optuna_storage(database)
    with engine.begin() as connection:
        upgrade_to(connection, "0002")
        connection.exec_driver_sql(OLD)
        upgrade_to(connection, "0003")
        connection.exec_driver_sql("INSERT INTO peft_pareto.hypervolumes (trial_id, study_id, finished, seconds, hypervolume) "
                                   "VALUES (1, 1, 2, 85, 1.5), (2, 1, 2, 85, 1.0)")
        connection.exec_driver_sql("CREATE VIEW hypervolume_history AS SELECT finished, seconds FROM peft_pareto.hypervolumes")
        connection.exec_driver_sql("COMMENT ON SCHEMA peft_pareto IS 'functions and views of revision 0003'")
    engine.dispose()
    store = storage.open(database, upgrade=True)
    with store.engine.connect() as connection:
        rows = connection.execute(text("SELECT trial, finished, seconds, hypervolume FROM hypervolume_history WHERE study = 'old'"))
        assert [tuple(row) for row in rows] == [(1, 1, 30, 1.0), (0, 2, 85, 1.5)]
    store.close()
