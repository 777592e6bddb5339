"""The database's tables: made once, whoever asks, and never made older."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import text

import storage
from storage import schema
from storage.engine import connect
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


def test_a_newer_schema_is_refused_in_one_line(database: str) -> None:
    store = storage.open(database)
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE peft_pareto.alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaError, match=r"'9999'.*upgrade peft-pareto") as caught:
        schema.upgrade(store.engine)
    assert "\n" not in str(caught.value)
    store.close()


def test_without_optunas_tables_nothing_is_made(database: str) -> None:
    engine = connect(database)
    with pytest.raises(SchemaError, match="Optuna's tables are missing"):
        schema.upgrade(engine)
    engine.dispose()
    assert _objects(database) == []


def test_changed_files_are_installed_again(database: str) -> None:
    store = storage.open(database)
    with store.engine.begin() as connection:
        connection.execute(text("DROP VIEW pareto_front"))
        connection.execute(text("COMMENT ON SCHEMA peft_pareto IS 'functions and views of another version'"))
    store.close()
    assert "public.pareto_front" not in _objects(database)
    storage.open(database).close()
    assert "public.pareto_front" in _objects(database)


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
