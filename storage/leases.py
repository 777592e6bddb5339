"""Who may write a trial: its lease, kept alive by heartbeats. What a trial goes through is in trials.py; the rules of both
are triggers in sql/leases.sql."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import psycopg2
from sqlalchemy import exc, text

from storage.engine import SILENT_SECONDS, Hold, advisory_lock, first_line
from storage.errors import BadValue, CodeDiffers, LeaseLost, NotNow, NoWorker, SchemaError, StorageError, StorageUnreachable, StudyFull
from storage.life import Life
from storage.retrying import retrying
from storage.store import Store

log = logging.getLogger(__name__)

#: A heartbeat every quarter of a lease: three may be lost before the lease runs out.
BEATS_PER_LEASE = 4
MOST_SECONDS_BETWEEN_BEATS = 30.0
SECONDS_TO_NEXT_TRY = 1.0  # of a heartbeat that found no server
TURN_SECONDS = SILENT_SECONDS  # that others wait for a worker whose turn it is to ask and that says nothing

#: SQLSTATEs of what passes: 08 connection, 53 no memory, disk or connection left, 57P stopping or starting, 25006 a standby
#: that is not yet the primary, 25P03 idle for too long in a transaction, 40 deadlock, 57014 and 55P03 a statement or a lock
#: that took longer than the server allows, 58 the server's disk or system.
PASSING = ("08", "53", "57P", "25006", "25P03", "40", "57014", "55P03", "58")


@dataclass(frozen=True)
class Counts:
    """How many trials of a study are where. `trials` is the number asked for; `finished` is COMPLETE + PRUNED, `stopped` the
    latter.

    `waiting`: enqueued, or left by their workers. `failed` counts what was run and failed, not duplicates and infeasible
    proposals, nor the expired and released trials of studies of before. `duplicates_in_a_row`, `infeasible_in_a_row`: since the
    last trial that was run, by trial number, and duplicates since the last that ended. `overdue`: the deadline of the study's
    settings is over by the server's clock. `code`: of the program that the study was last launched with, as it says itself.
    """

    trials: int
    finished: int
    stopped: int
    running: int
    waiting: int
    failed: int
    duplicates: int
    infeasible: int
    expired: int
    released: int
    duplicates_in_a_row: int
    infeasible_in_a_row: int
    overdue: bool
    code: str | None


@dataclass(frozen=True)
class Lease:
    """One trial's lease as just read. `seconds_left` is negative once it has run out; outcome None: not ended.

    worker: who holds it, None while nobody does; of an ended trial, who held it last. `losses`: how often it was lost since
    the last new rung; `reason`: why, the last time, or why the trial failed.
    """

    trial_id: int
    worker: str | None
    stage: str | None
    seconds_left: float
    outcome: str | None
    own_cause: bool
    losses: int
    reason: str | None


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turns what the database refused, inside Optuna or not, into the error of its cause in `storage.errors`.

    Other exceptions pass unchanged.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:  # whatever Optuna wrapped around the driver's error
        ours = _translation(error)
        if ours is None:
            raise
        raise ours from error


class Turn:
    """The turn to ask. Each look at it by the thread that has it is a sign of life."""

    def __init__(self, hold: Hold, life: Life) -> None:
        self._hold, self._life = hold, life

    def check(self) -> None:
        """Raises StorageUnreachable if the turn is lost: what was proposed may have been proposed by another one since."""
        self._life.sign()
        with translated():
            self._hold.check()


@contextlib.contextmanager
def asking(store: Store, study_id: int, life: Life | None = None, waiting: Callable[[], None] = lambda: None) -> Iterator[Turn]:
    """One worker of the study at a time, over all machines; the server lets go if the process dies, and others take the turn from
    one that has been silent for TURN_SECONDS (paused, cut off without the server's knowledge, or without a sign of life).

    Hold it around `trials.expire`, `take`, the proposal, the search for duplicates and `start`, so that the sampler sees one history; check the turn
    before `start`. life: of the thread that calls this, which begins anew when its turn comes (default: one that never hangs). waiting: called twice a second
    until then; what it raises ends the wait.
    """
    # Keys from 1 on: 0 is the lock of the schema, and Optuna's ids begin at 1.
    life = life or Life()
    with advisory_lock(store.engine, study_id, TURN_SECONDS, life.goes_on, waiting) as hold:
        life.begin(TURN_SECONDS)
        yield Turn(hold, life)


def heartbeat(store: Store, trial_id: int, stage: str | None = None) -> float:
    """Extends the lease, and notes in a word what the worker is at; gives the lease's length in seconds.

    Raises LeaseLost, StorageUnreachable.
    """
    query = "SELECT peft_pareto.heartbeat(:trial, :stage)"
    return float(_scalar(store, query, trial=trial_id, stage=stage))


def now(store: Store) -> float:
    """The server's clock, in seconds since 1970: the only one that machines of a study have in common."""
    with translated(), store.at_once.connect() as connection:
        return float(connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())")))


def counts(store: Store, study_id: int) -> Counts:
    """The study's trials by state. The study must be registered, else BadValue."""
    with translated(), store.at_once.connect() as connection:
        row = connection.execute(text("SELECT * FROM peft_pareto.counts(:study)"), {"study": study_id}).one_or_none()
    if row is None:
        raise BadValue(f"study {study_id} is not registered: call results.register first")
    return Counts(**row._mapping)


def read(store: Store, trial_id: int) -> Lease | None:
    """The trial's lease, None if it was never started under one."""
    query = (
        "SELECT trial_id, worker, stage, extract(epoch FROM expires_at - clock_timestamp())::double precision AS "
        "seconds_left, outcome, own_cause, losses, reason FROM peft_pareto.leases WHERE trial_id = :trial"
    )
    with translated(), store.at_once.connect() as connection:
        row = connection.execute(text(query), {"trial": trial_id}).one_or_none()
    return None if row is None else Lease(**row._mapping)


class Heartbeat:
    """Keeps a lease alive from a daemon thread while the `with` block runs, as long as the thread that runs it gives signs of life.

    `lost` (a threading.Event) is set once the lease is gone: stop working on the trial then. A server that is unreachable, or that
    fails in whatever way, is asked again until the lease must have run out. life: of the thread that enters this (default: one that never hangs); without a
    sign the lease runs out. Entering raises LeaseLost if the lease is gone already.
    """

    def __init__(self, store: Store, trial_id: int, life: Life | None = None) -> None:
        self.lost = threading.Event()
        self._store, self._trial, self._life = store, trial_id, life or Life(f"trial {trial_id}")
        self._leave, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease of trial {trial_id}", daemon=True)

    def stage(self, name: str) -> None:
        """Notes what the worker is at ("training", "sampling", …) for the display, which is a sign of life; returns at once."""
        self._life.at = name
        self._life.sign()
        self._wake.set()

    def __enter__(self) -> Heartbeat:
        self._lease = retrying(lambda: heartbeat(self._store, self._trial))
        self._life.begin(self._lease)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave.set()
        self._wake.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        good_until = time.monotonic() + self._lease
        pause = usual = min(self._lease / BEATS_PER_LEASE, MOST_SECONDS_BETWEEN_BEATS)
        while not self._leave.is_set():
            self._wake.wait(pause)
            self._wake.clear()
            if self._leave.is_set():
                return
            if not self._life.goes_on() or self.lost.is_set():  # also after the trial is lost: what hangs then holds a GPU
                continue
            sent = time.monotonic()
            try:
                good_until = sent + heartbeat(self._store, self._trial, self._life.at)
                pause = usual
            except LeaseLost:
                # The trial may just have been told: then nobody looks at `lost` any more.
                self.lost.set()
            except Exception as error:  # a thread that died of it would leave the trial in the belief that it has its lease
                if not isinstance(error, StorageUnreachable):
                    log.warning("the lease of %s could not be extended: %s", self._life.name, first_line(error))
                if time.monotonic() > good_until:
                    self.lost.set()
                pause = min(usual, SECONDS_TO_NEXT_TRY)  # the server's clock runs on while it is away


def _scalar(store: Store, query: str, **values: Any) -> Any:
    with translated(), store.at_once.connect() as connection:
        return connection.scalar(text(query), values)


def _translation(error: BaseException | None) -> StorageError | None:
    """Our error for the first database error in the chain of causes."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, exc.DBAPIError):
            return _ours(error.orig, error.connection_invalidated)
        if isinstance(error, psycopg2.Error):  # from the driver itself, where SQLAlchemy has no word for what is asked (COPY)
            return _ours(error, False)
        if isinstance(error, exc.TimeoutError):
            return StorageUnreachable("no connection became free in time: raise the server's max_connections")
        error = error.__cause__ or error.__context__
    return None


def _ours(error: BaseException, disconnected: bool) -> StorageError | None:
    code = getattr(error, "pgcode", None)
    detail = getattr(getattr(error, "diag", None), "message_detail", None)
    if code == "PP002":
        return LeaseLost(**json.loads(detail))
    if code == "PP004":
        return BadValue(first_line(error))
    if code == "PP005":
        return NotNow(**json.loads(detail))
    if code == "PP006":
        return CodeDiffers(**json.loads(detail))
    if code == "PP007":
        return SchemaError(first_line(error))
    if code == "23PP1":
        return StudyFull(**json.loads(detail))
    if code == "23PP3":
        return NoWorker(**json.loads(detail))
    if code is None and isinstance(error, (psycopg2.OperationalError, psycopg2.InterfaceError)) or disconnected:
        return StorageUnreachable(
            f"the database does not answer: {first_line(error)}; see that the server runs, then start again"
        )
    if code is not None and code.startswith(PASSING):
        return StorageUnreachable(f"the database cannot go on: {first_line(error)}; try again later")
    return None
