"""One value that holds all that is needed to work on a study's database, and the order in which it is made."""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from sqlalchemy.engine import Engine

from storage import schema
from storage.engine import connect, normalise, optuna_storage

if TYPE_CHECKING:
    from optuna.storages import RDBStorage


@dataclass(frozen=True)
class Store:
    """An open database. `worker` is the name under which trials are leased; None may read and enqueue only."""

    url: str
    engine: Engine
    optuna: RDBStorage
    worker: str | None

    @cached_property
    def at_once(self) -> Engine:
        """The same connections, on which each statement is a transaction of its own: one message to the server and back, not three."""
        return self.engine.execution_options(isolation_level="AUTOCOMMIT")

    def close(self) -> None:
        """Gives all idle connections back to the server."""
        self.optuna.remove_session()
        self.optuna.engine.dispose()
        self.engine.dispose()


def worker_name() -> str:
    """A name for this process that no other process has had: host, process id and eight random hex digits."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def open_store(url: str, worker: str | None = None, upgrade: bool = False) -> Store:
    """Connects, makes Optuna's tables, then ours, whose triggers and views need those; safe in many processes at once.

    upgrade: what another version has made is brought up to date, if no worker holds a trial by its rules; else SchemaError. Raises BadStorageUrl, StorageUnreachable, SchemaError.
    """
    engine = connect(url, worker)
    try:
        optuna = optuna_storage(url, worker)
        schema.upgrade(engine, upgrade)
    except BaseException:
        engine.dispose()
        raise
    return Store(url=normalise(url), engine=engine, optuna=optuna, worker=worker)
