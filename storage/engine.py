"""Connections to PostgreSQL: which URLs are taken, how a worker names itself, and advisory locks. No tables here."""

from __future__ import annotations

import contextlib
import re
import select
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import psycopg2.extensions
import sqlalchemy
from sqlalchemy import event, exc
from sqlalchemy.engine import URL, Engine, make_url

from storage.errors import BadStorageUrl, SchemaError, StorageUnreachable

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

DRIVER = "postgresql+psycopg2"
OLDEST_SERVER = 14
SHAPE = "postgresql://user:password@host:5432/database"

#: First key of our advisory locks; the second key says what is locked.
LOCK_SPACE = 0x50505F31
SCHEMA_LOCK = 0
#: Others wait so long for a holder of an advisory lock that says nothing.
SILENT_SECONDS = 20.0
WORDS_PER_SILENCE = 4  # of a holder: three may be lost before it is taken for gone

# A host that vanished must not hold a lock or a row for the kernel's default of two hours.
KEEPALIVE = {"keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3"}
SERVER_KEEPALIVE = "SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3"
#: A server cannot stop and start again in so little time: a connection that was used then need not be tried before it is used.
FRESH_SECONDS = 0.1
#: Less than a lease: a process that is paused within a transaction must not keep others from taking up what it holds.
IDLE_TRANSACTION = "SET idle_in_transaction_session_timeout = '30s'"

# Of transactions and of single statements, whatever the role's own default is: a function that counts under a lock must see
# what was committed while it waited for the lock.
ISOLATION = "SET default_transaction_isolation = 'read committed'"

# The connection's own search path, less our schema.
SEARCH_PATH = """
SELECT set_config('search_path', string_agg(quote_ident(name), ', ' ORDER BY place), false)
    FROM unnest(current_schemas(false)) WITH ORDINALITY AS found (name, place) WHERE name <> 'peft_pareto' HAVING count(*) > 0
"""

#: What the server or libpq says, and what to do about it. The first match counts.
REFUSALS = (
    (
        r"password authentication failed|no password supplied|authentication failed",
        "the server refuses the user or the password: correct them in the URL (encode special characters as %XX)",
    ),
    (r'database ".*" does not exist', "this database does not exist: create it (createdb NAME) or name another one"),
    (r'role ".*" does not exist', "this user does not exist on the server: correct the user in the URL"),
    (r"no pg_hba.conf entry", "the server does not let this user in from here: change its pg_hba.conf, or sslmode"),
    (r"could not translate host name|Name or service not known", "no such host: correct the host in the URL"),
    (
        r"too many (clients|connections)|remaining connection slots",
        "the server has no connection left: use fewer workers, or raise its max_connections",
    ),
    (r"starting up|in recovery mode|shutting down", "the server is starting or stopping: try again in a moment"),
    (
        r"received invalid response to \w+ negotiation|expected authentication request from server",
        "this is no PostgreSQL server: correct host and port in the URL (PostgreSQL's own port is 5432)",
    ),
    (
        r"does not support SSL|SSL (SYSCALL )?error|SSL connection (is )?required|(root|server|client) certificate|certificate file|sslmode value",
        "server and URL do not agree about SSL: change sslmode in the URL, or name there who signed the server's certificate, as sslrootcert",
    ),
    (
        r"No such file|refused|timeout|timed out|unreachable|No route",
        "no server answers there: check host and port, and that PostgreSQL is running",
    ),
)


class Connection(psycopg2.extensions.connection):
    """A connection that finds our tables only by their full name.

    The default search path begins with the role's own schema; a role that is called peft_pareto has ours there, and
    Optuna would take our tables for its own, in its constructor already.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        with self.cursor() as cursor:
            cursor.execute(SEARCH_PATH)
            cursor.execute(ISOLATION)
            cursor.execute(IDLE_TRANSACTION)
        self.commit()

    def set_isolation_level(self, level: int) -> None:
        """As the session has it (ISOLATION), with or without autocommit; the driver's own would put the role's default back whenever autocommit is
        turned on or off."""
        if level not in (psycopg2.extensions.ISOLATION_LEVEL_AUTOCOMMIT, psycopg2.extensions.ISOLATION_LEVEL_READ_COMMITTED):
            raise ValueError(f"isolation level {level}: all transactions here are READ COMMITTED")
        self.autocommit = level == psycopg2.extensions.ISOLATION_LEVEL_AUTOCOMMIT


#: The user of a URL, before a password, however malformed the rest is.
USER = re.compile(r"(://[^:@/?]*):.*@")


def hidden(url: str) -> str:
    """The URL fit to be shown: without its password, however malformed it is."""
    shown = USER.sub(r"\1:***@", url)
    return re.sub(r"([?&](?:password|sslpassword)=)[^&]*", r"\1***", shown)


def without_password(url: str) -> str:
    """The URL as it may stand in a command line: the password then comes from PGPASSWORD or ~/.pgpass."""
    shown = USER.sub(r"\1@", url)
    return re.sub(r"(?<=[?&])(?:password|sslpassword)=[^&]*&?", "", shown).rstrip("?&")


def _parsed(url: str) -> URL:
    name = hidden(url)
    scheme, colon, _ = url.partition("://")
    if not colon:
        raise BadStorageUrl(f"storage {name!r} is not a URL: write {SHAPE}")
    if scheme.partition("+")[0] not in ("postgresql", "postgres"):
        raise BadStorageUrl(f"storage {name!r} is of kind {scheme!r}, only PostgreSQL can be used: write {SHAPE}")
    if re.split(r"[/?]", url.partition("://")[2])[0].count("@") > 1:  # the rest of a password would be taken for the host, and shown
        raise BadStorageUrl(f"storage {name!r} has more than one @ before its host: write one that belongs to the user or the password as %40, as in {SHAPE}")
    try:
        parsed = make_url(url).set(drivername=DRIVER)
        parsed.get_dialect()().create_connect_args(parsed)
    except (exc.ArgumentError, ValueError) as error:
        raise BadStorageUrl(f"storage {name!r} cannot be read as a URL: write {SHAPE}") from error
    if not parsed.database and "dbname" not in parsed.query:
        raise BadStorageUrl(f"storage {name!r} names no database: write {SHAPE}")
    return parsed


def normalise(url: str) -> str:
    """Any PostgreSQL URL, `postgres://` and other drivers' included, as the one that SQLAlchemy and psycopg2 take.

    Raises BadStorageUrl for what is not PostgreSQL or not a URL. Connects to nothing.
    """
    _parsed(url.strip())
    return DRIVER + "://" + url.strip().partition("://")[2]


def plain(url: str) -> str:
    """The same URL as libpq, and so psql, takes it: without a driver's name."""
    return "postgresql://" + normalise(url).partition("://")[2]


def connect(url: str, worker: str | None = None) -> Engine:
    """An engine on the database at `url`, tried with one connection.

    With `worker`, every connection carries that name, by which the database's triggers know who writes. It must be new
    for each process that is started: a name used twice would let a dead process's successor pass for it.
    Raises BadStorageUrl and StorageUnreachable.
    """
    engine = sqlalchemy.create_engine(_parsed(url.strip()), **_settings(url))
    _introduce(engine, worker)
    _try_idle(engine)
    try:
        with engine.connect() as connection:
            version = connection.dialect.server_version_info or (OLDEST_SERVER,)
    except exc.SQLAlchemyError as error:
        engine.dispose()
        raise unreachable(url, error) from error
    if version[0] < OLDEST_SERVER:
        engine.dispose()
        raise StorageUnreachable(
            f"storage {hidden(url)!r} is PostgreSQL {version[0]}, needed is {OLDEST_SERVER} or newer: upgrade it"
        )
    try:
        shared = _is_shared(engine)
    except exc.SQLAlchemyError as error:
        engine.dispose()
        raise unreachable(url, error) from error
    if shared:
        engine.dispose()
        raise BadStorageUrl(
            f"storage {hidden(url)!r} is a pooler that changes the server's connection between transactions, which mixes up the "
            "names of workers and their locks: set its pool_mode to session, or name the server itself"
        )
    return engine


def _is_shared(engine: Engine) -> bool:
    """Whether a pooler lets another client into this client's session between two transactions (PgBouncer's pool_mode transaction).

    A pooler makes up the process id that it tells a client. One that pools by transaction then hands the connection that a
    client has just used to whoever asks next, or gives that client another one.
    """
    asked = sqlalchemy.text("SELECT pg_backend_pid()")
    with engine.connect() as first:
        before = first.scalar(asked)
        if before == first.connection.driver_connection.info.backend_pid:
            return False
        first.commit()
        with engine.connect() as second:
            between = second.scalar(asked)  # its transaction stays open
            return between == before or first.scalar(asked) != before


def optuna_storage(url: str, worker: str | None = None) -> RDBStorage:
    """Optuna's storage with the same connections; makes Optuna's tables, one process at a time; one that is paused meanwhile loses its turn.

    The result must not be pickled: open it anew from the URL instead. Raises what `connect` raises, and SchemaError
    if another version of Optuna made the tables or the role may not make any.
    """
    from optuna.storages import RDBStorage

    waiting = connect(url)
    try:
        with advisory_lock(waiting, SCHEMA_LOCK, SILENT_SECONDS):
            # Optuna puts the URL through str.format.
            escaped = normalise(url).replace("{", "{{").replace("}", "}}")
            storage = RDBStorage(escaped, engine_kwargs=_settings(url))
    except exc.SQLAlchemyError as error:
        raise refused(url, error) from error
    except RuntimeError as error:
        if isinstance(error, (StorageUnreachable, SchemaError)):
            raise
        raise SchemaError(f"storage {hidden(url)!r}: {error}") from error
    finally:
        waiting.dispose()
    # Connections made until here have no name yet.
    _introduce(storage.engine, worker)
    _try_idle(storage.engine)
    storage.engine.dispose()
    return storage


#: Ends the connection that has held an advisory lock of this database without a word for so many seconds.
END_SILENT_HOLDER = """
SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted AND l.classid::bigint = :space AND l.objid::bigint = :key AND l.objsubid = 2
      AND a.datname = current_database() AND a.state = 'idle' AND clock_timestamp() - a.state_change > make_interval(secs => :patience)
"""


#: Waits for an advisory lock in the server's queue, for a moment, and says whether it has come. Caught in the server, whose log would else have a line
#: for each moment.
WAIT = f"""
DO $$ BEGIN
    PERFORM set_config('lock_timeout', '500ms', true);
    PERFORM pg_advisory_lock({LOCK_SPACE}, %(key)s);
EXCEPTION WHEN lock_not_available THEN
END $$;
SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid()
    AND classid::bigint = {LOCK_SPACE} AND objid::bigint = %(key)s AND objsubid = 2)
"""


class Hold:
    """An advisory lock that is held, said again on its connection from a daemon thread, so that slow work is told from a process that is paused. goes_on: asked
    before each time; where it says no, nothing is said, and others may take the lock."""

    def __init__(self, connection: sqlalchemy.Connection, patience: float, goes_on: Callable[[], bool]) -> None:
        self._connection, self._pause, self._goes_on = connection, patience / WORDS_PER_SILENCE, goes_on
        self._lock, self._over = threading.Lock(), threading.Event()
        self._lost: exc.SQLAlchemyError | None = None
        self._thread = threading.Thread(target=self._run, name="advisory lock", daemon=True)

    def check(self) -> None:
        """Raises the driver's error (exc.SQLAlchemyError) if the lock is lost: another may have had it since."""
        with self._lock:
            if self._lost is None:
                try:
                    self._connection.execute(sqlalchemy.text("SELECT 1"))
                except exc.SQLAlchemyError as error:
                    self._lost = error
            if self._lost is not None:  # for good: the connection would come back without the lock
                raise self._lost

    def __enter__(self) -> Hold:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        self._thread.join()  # the connection is going to be used by its owner

    def _run(self) -> None:
        while not self._over.wait(self._pause):
            if self._goes_on():
                with contextlib.suppress(exc.SQLAlchemyError):  # the holder's own check says so again
                    self.check()


@contextlib.contextmanager
def advisory_lock(engine: Engine, key: int, patience: float, goes_on: Callable[[], bool] = lambda: True,
                  waiting: Callable[[], None] = lambda: None) -> Iterator[Hold]:
    """Holds the advisory lock (LOCK_SPACE, key) on a connection of its own; the server lets go if this process dies.

    Waits in the server for half a second at a time, so that Ctrl-C works; waiting: called in between, what it raises ends the wait. patience: seconds
    after which a holder that says nothing on its connection is taken for gone, though the server still sees it (a paused process, a network that went
    mute): its connection is ended. goes_on: as in Hold.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        keys = {"space": LOCK_SPACE, "key": key}
        asked = time.monotonic()
        while not connection.exec_driver_sql(WAIT, keys).scalar():
            waiting()
            if time.monotonic() - asked > patience:
                connection.execute(sqlalchemy.text(END_SILENT_HOLDER), {**keys, "patience": patience})
                asked = time.monotonic()
        try:
            with Hold(connection, patience, goes_on) as hold:
                yield hold
        finally:
            try:
                connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:space, :key)"), keys)
            except exc.SQLAlchemyError:
                # Back in the pool, the connection would keep the lock.
                connection.invalidate()


def unreachable(url: str, error: BaseException) -> StorageUnreachable:
    """The one line for a connection that could not be made or was lost."""
    said = first_line(error)
    for pattern, way_out in REFUSALS:
        if re.search(pattern, str(error), flags=re.IGNORECASE):
            return StorageUnreachable(f"storage {hidden(url)!r}: {way_out} ({said})")
    return StorageUnreachable(f"storage {hidden(url)!r} cannot be reached: {said}; check the URL and the server")


def refused(url: str, error: exc.SQLAlchemyError) -> StorageUnreachable | SchemaError:
    """The one line for tables that could not be made."""
    code = getattr(getattr(error, "orig", None), "pgcode", None)
    if code == "42501":
        return SchemaError(
            f"storage {hidden(url)!r}: this user may not make tables ({first_line(error)}): GRANT CREATE ON DATABASE "
            "and ON SCHEMA public to it, or use another user"
        )
    if code is None or code[:2] in ("08", "53", "57"):
        return unreachable(url, error)
    return SchemaError(f"storage {hidden(url)!r}: the tables cannot be made: {first_line(error)}")


def first_line(error: BaseException) -> str:
    """What the driver says, without SQLAlchemy's frame around it and without a password."""
    said = str(getattr(error, "orig", None) or error).strip()
    return hidden(said.splitlines()[0]) if said else type(error).__name__


def _settings(url: str) -> dict[str, Any]:
    """Keyword arguments for create_engine; plain data, since Optuna keeps them."""
    given = set(_parsed(url.strip()).query)
    asked = {"connect_timeout": "10", "tcp_user_timeout": "60000", **KEEPALIVE}
    return {
        # Admission counts rows under a lock, which needs a snapshot taken after the lock.
        "isolation_level": "READ COMMITTED",
        "connect_args": {
            "connection_factory": Connection,
            **{name: value for name, value in asked.items() if name not in given},
        },
    }


def _try_idle(engine: Engine) -> None:
    """A connection that was idle, or on which the server has said anything unasked, such as its farewell, is tried before it is used, and made anew if
    it was cut. SQLAlchemy's own pool_pre_ping tries each, also those that were used a millisecond ago: half of all that goes to the server."""
    @event.listens_for(engine, "checkin")
    def note(_connection: Any, record: Any) -> None:
        record.info["used"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def check(connection: Any, record: Any, _fairy: Any) -> None:
        used = record.info.get("used")
        if used is None:
            return
        try:
            alive = time.monotonic() - used < FRESH_SECONDS and not _has_news(connection) or engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise exc.InvalidatePoolError from error
        if not alive:
            raise exc.InvalidatePoolError


def _has_news(connection: Any) -> bool:
    """Whether anything is to be read on the connection's socket, its end included."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _introduce(engine: Engine, worker: str | None) -> None:
    @event.listens_for(engine, "connect")
    def name_worker(connection: Any, _record: Any) -> None:
        # Settings made in a transaction end with its rollback, so commit them at once.
        with connection.cursor() as cursor:
            cursor.execute(SERVER_KEEPALIVE)
            if worker is not None:
                cursor.execute("SELECT set_config('peft_pareto.worker', %s, false)", (worker,))
        connection.commit()
