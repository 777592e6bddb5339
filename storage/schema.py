"""Brings the database's own schema `peft_pareto` up to date: tables by migrations, functions and views from sql/."""

from __future__ import annotations

import hashlib
import logging
from functools import cache

import sqlalchemy
from sqlalchemy import exc
from sqlalchemy.engine import Connection, Engine

from storage.engine import SCHEMA_LOCK, SILENT_SECONDS, advisory_lock, hidden, refused
from storage.errors import SchemaError
from storage.resources import SCRIPTS, placed, text_of

SCHEMA = "peft_pareto"
FIND_OPTUNA = (
    "SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass('trials')"
)
#: Trials that workers hold now.
HELD = "SELECT count(*) FROM peft_pareto.leases WHERE worker IS NOT NULL AND outcome IS NULL AND expires_at > clock_timestamp()"


def upgrade(engine: Engine, change: bool) -> None:
    """Makes everything in `peft_pareto`, and the views, in one transaction, where there is nothing; does nothing if all is as this version has it.
    Else, with `change`, it is upgraded, which only a launch may ask for.

    Optuna's tables must be there. A session advisory lock keeps two launches apart, and goes to the next if this process is paused.
    Functions, triggers and views are
    made again whenever their files differ from what is installed, so that changing one of them needs no migration.
    Raises SchemaError (a newer version made the schema, another made it and it must not be changed, or cannot while workers hold
    trials by its rules; Optuna's tables are missing, a right is missing) and StorageUnreachable.
    """
    url = engine.url.render_as_string(hide_password=True)
    try:
        with advisory_lock(engine, SCHEMA_LOCK, SILENT_SECONDS) as hold, engine.begin() as connection:
            _upgrade(connection, change)
            hold.check()  # a process that was paused meanwhile changes nothing
    except exc.SQLAlchemyError as error:
        raise refused(url, error) from error


def run_script(connection: Connection, sql: str) -> None:
    """Runs a file of statements; `optuna.` in it is replaced by the schema of Optuna's tables."""
    connection.execution_options(no_parameters=True).exec_driver_sql(placed(sql, optuna_schema(connection)))


def optuna_schema(connection: Connection) -> str:
    """The schema in which this connection finds Optuna's tables."""
    name = connection.scalar(sqlalchemy.text(FIND_OPTUNA))
    if name is None:
        raise SchemaError("Optuna's tables are missing: open the store with storage.open, which makes them first")
    return name


def _upgrade(connection: Connection, change: bool) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    logging.getLogger("alembic").setLevel(logging.WARNING)
    optuna_schema(connection)
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "storage:migrations")
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    installed = _installed(connection)
    if installed is not None and installed not in {script.revision for script in scripts.walk_revisions()}:
        raise SchemaError(
            f"storage {hidden(str(connection.engine.url))!r} has tables of revision {installed!r}, this version knows "
            f"up to {scripts.get_current_head()!r}: upgrade peft-pareto, or use another database"
        )
    newest = installed == scripts.get_current_head()
    if newest and _has_code(connection):
        return
    if installed is not None:
        _check_free(connection, change)
    if not newest:
        command.upgrade(config, "head")
    _install_code(connection)


def _installed(connection: Connection) -> str | None:
    """The revision of our tables, None if there are none."""
    if connection.scalar(sqlalchemy.text("SELECT to_regclass('peft_pareto.alembic_version')")) is None:
        return None
    return connection.scalar(sqlalchemy.text("SELECT version_num FROM peft_pareto.alembic_version"))


def _check_free(connection: Connection, change: bool) -> None:
    """Raises SchemaError where what another version made must stay. No trial starts until the transaction is over."""
    name = hidden(str(connection.engine.url))
    if not change:
        raise SchemaError(f"storage {name!r} was set up by another version of peft-pareto: use that one, or launch a study there with this one, "
                          "which brings it up to date")
    connection.execute(sqlalchemy.text("LOCK TABLE trials IN SHARE ROW EXCLUSIVE MODE"))
    held = connection.scalar(sqlalchemy.text(HELD))
    if held:
        raise SchemaError(f"storage {name!r} was set up by another version of peft-pareto, by which workers run {held} trials now: wait until they have "
                          "ended, or stop them, then launch again")


@cache
def digest() -> str:
    """The schema's comment: which files its functions, triggers and views are made by."""
    return "functions and views " + hashlib.sha256("".join(text_of(name) for name in SCRIPTS).encode()).hexdigest()


def _has_code(connection: Connection) -> bool:
    return connection.scalar(sqlalchemy.text("SELECT obj_description('peft_pareto'::regnamespace)")) == digest()


def _install_code(connection: Connection) -> None:
    """Functions, triggers and views."""
    for name in SCRIPTS:
        run_script(connection, text_of(name))
    connection.exec_driver_sql(f"COMMENT ON SCHEMA peft_pareto IS '{digest()}'")
