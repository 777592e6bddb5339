"""The embedded server as processes share it, and after each way in which a former run can have ended."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from storage import cluster, embedded
from storage.errors import FolderUnusable


@pytest.fixture
def home(short_folder: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty data folder whose server, if any, is stopped afterwards."""
    folder = short_folder / f"h{abs(hash(request.node.name)) % 10**6}"
    yield folder
    embedded.stop(folder)


@pytest.fixture(scope="module")
def lived_in(short_folder: Path) -> Iterator[Path]:
    """A data folder that has been used before; the tests that take it leave it usable."""
    folder = short_folder / "used"
    embedded.start(folder)
    yield folder
    embedded.stop(folder)


def _query(url: str, sql: str) -> list[tuple]:
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def _postmaster(home: Path) -> int:
    return int((home / "postgres" / "postmaster.pid").read_text().splitlines()[0])


def _start_elsewhere(home: Path) -> subprocess.Popen:
    script = "import sys; from storage import embedded; print(embedded.start(sys.argv[1]))"
    return subprocess.Popen([sys.executable, "-c", script, str(home)], stdout=subprocess.PIPE, text=True)


def test_two_launches_at_once_share_one_server_that_outlives_them(home: Path) -> None:
    launches = [_start_elsewhere(home) for _ in range(2)]
    urls = {launch.communicate(timeout=120)[0].strip() for launch in launches}
    assert [launch.returncode for launch in launches] == [0, 0]
    (url,) = urls
    assert url == embedded.start(home)
    connections = str(cluster.connections(os.cpu_count()))
    assert _query(url, "SELECT current_database(), current_setting('max_connections')") == [("peft_pareto", connections)]
    assert _query(url, "SHOW server_version")[0][0].startswith("18")
    assert embedded.stop(home) is True
    assert embedded.stop(home) is False
    with pytest.raises(psycopg2.OperationalError):
        _query(url, "SELECT 1")


@pytest.mark.parametrize(("cores", "connections"), [(None, 200), (2, 200), (33, 200), (128, 768)])
def test_many_cores_get_many_connections(cores: int | None, connections: int) -> None:
    assert cluster.connections(cores) == connections


def test_a_server_without_a_free_connection_is_left_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cluster.SETTINGS, "max_connections", "5")
    url = embedded.start(home)
    pid = _postmaster(home)
    workers = []
    with pytest.raises(psycopg2.OperationalError, match="too many clients"):
        while len(workers) < 10:
            workers.append(psycopg2.connect(url))
    assert embedded.start(home) == url
    assert _postmaster(home) == pid
    for worker in workers:
        worker.cursor().execute("SELECT 1")
        worker.close()


def test_roles_that_may_not_use_the_reserved_connections_are_no_dead_server(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cluster.SETTINGS, "max_connections", "5")
    url = embedded.start(home)
    _query(url, "CREATE ROLE plain LOGIN")
    monkeypatch.setattr(cluster, "SUPERUSER", "plain")
    workers = [psycopg2.connect(url) for _ in range(3)]
    with pytest.raises(psycopg2.OperationalError, match="remaining connection slots"):
        psycopg2.connect(embedded.url_of(home / "postgres"))
    assert embedded._state(home / "postgres") == embedded.READY
    for worker in workers:
        worker.close()


def test_a_server_that_recovers_is_waited_for_and_never_stopped(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of its processes was killed; another that stands still holds up the recovery, for the five seconds that PostgreSQL grants it."""
    url = embedded.start(home)
    monkeypatch.setattr(embedded, "READY_SECONDS", 1)
    pid = _postmaster(home)
    held = psycopg2.connect(url)
    ((backend, still),) = _query(url, f"SELECT {held.info.backend_pid}, pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
    os.kill(still, signal.SIGSTOP)
    os.kill(backend, signal.SIGKILL)
    until = time.monotonic() + 10
    while (state := embedded._state(home / "postgres")) != embedded.STARTING and time.monotonic() < until:
        time.sleep(0.01)
    assert state == embedded.STARTING
    with monkeypatch.context() as impatient, pytest.raises(FolderUnusable, match="has been starting for 0 s: wait") as caught:
        impatient.setattr(cluster, "START_SECONDS", 0)
        embedded.start(home)
    assert "\n" not in str(caught.value)
    assert embedded.start(home) == url
    assert _query(url, "SELECT 1") == [(1,)] and _postmaster(home) == pid


def test_a_running_server_without_our_database_gets_one(home: Path) -> None:
    """A former start was killed between the two."""
    url = embedded.start(home)
    pid = _postmaster(home)
    connection = psycopg2.connect(url.replace("/peft_pareto?", "/postgres?"))
    connection.autocommit = True
    connection.cursor().execute("DROP DATABASE peft_pareto")
    connection.close()
    assert embedded.start(home) == url
    assert _query(url, "SELECT 1") == [(1,)] and _postmaster(home) == pid


def test_kill_9_loses_nothing_and_the_next_launch_recovers(lived_in: Path) -> None:
    url = embedded.start(lived_in)
    _query(url, "CREATE TABLE kept AS SELECT 7 AS seven")
    os.kill(_postmaster(lived_in), signal.SIGKILL)
    # At once: the killed server's children may still be there.
    assert embedded.start(lived_in) == url
    assert _query(url, "SELECT * FROM kept") == [(7,)]


@pytest.mark.parametrize("left", ["another's pid", "cut short", "socket lock of another"])
def test_stale_lock_files_do_not_keep_it_from_starting(lived_in: Path, left: str) -> None:
    url = embedded.start(lived_in)
    embedded.stop(lived_in)
    data = lived_in / "postgres"
    mine = f"{os.getpid()}\n{data}\n{int(time.time())}\n5432\n{data}\n\n  1  2\nready   \n"
    if left == "cut short":
        (data / "postmaster.pid").write_text("")
    elif left == "another's pid":
        (data / "postmaster.pid").write_text(mine)
    else:
        sockets = cluster.socket_folder(data)
        (sockets / f"{cluster.SOCKET}.lock").write_text(mine)
        (sockets / cluster.SOCKET).touch()
    assert embedded.start(lived_in) == url
    assert _query(url, "SELECT 1") == [(1,)]


def test_a_killed_initdb_is_put_aside(home: Path) -> None:
    data = home / "postgres"
    (home / "postgres.new-killed").mkdir(parents=True)
    data.mkdir()
    (data / "PG_VERSION").write_text("18\n")
    assert _query(embedded.start(home), "SELECT 1") == [(1,)]
    assert (home / "postgres.unfinished-1" / "PG_VERSION").exists()
    assert not list(home.glob("postgres.new-*"))


def test_a_long_path_with_spaces_and_umlauts(short_folder: Path) -> None:
    home = short_folder / "Zusätzliche Daten, auch: für 'uns'" / ("x" * 120)
    try:
        url = embedded.start(home)
        assert _query(url, "SELECT 1") == [(1,)]
        os.kill(_postmaster(home), signal.SIGKILL)
        assert embedded.start(home) == url
        assert _query(url, "SELECT 1") == [(1,)]
    finally:
        sockets = cluster.socket_folder(home / "postgres")
        assert sockets.parent != home
        embedded.stop(home)
    assert not sockets.exists()


def test_a_users_pg_variables_do_not_lead_astray(lived_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGPORT": "6543", "PGHOST": "nowhere", "PGDATA": "/nowhere", "LC_ALL": "xx_YY.UTF-8"}.items():
        monkeypatch.setenv(name, value)
    embedded.stop(lived_in)
    assert _query(embedded.start(lived_in), "SELECT 1") == [(1,)]


def test_the_data_folder_follows_the_variable(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(embedded.HOME_VARIABLE, str(home))
    assert embedded.data_root() == home
    monkeypatch.delenv(embedded.HOME_VARIABLE)
    assert embedded.data_root().name == "peft-pareto"


def test_a_folder_that_cannot_be_made_is_one_line(short_folder: Path) -> None:
    (short_folder / "file").touch()
    with pytest.raises(FolderUnusable, match=f"{embedded.HOME_VARIABLE}") as caught:
        embedded.start(short_folder / "file" / "below")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "way_out"),
    [
        ('x\ninitdb: error: could not create file "a": No space left on device\n', "disk is full"),
        ("2026 FATAL:  could not write lock file: No space left on device\n", "disk is full"),
        ("initdb: error: could not access directory: Permission denied", "make it writable"),
        ("FATAL:  something else", "server.log"),
        ("", "server.log"),
    ],
)
def test_what_postgres_says_becomes_one_line(said: str, way_out: str) -> None:
    line = str(FolderUnusable(cluster.explained(Path("/data"), said)))
    assert way_out in line and "\n" not in line


def test_another_postgres_version_is_refused(home: Path) -> None:
    data = home / "postgres"
    (data / "global").mkdir(parents=True)
    (data / "global" / "pg_control").touch()
    (data / "PG_VERSION").write_text("16\n")
    with pytest.raises(FolderUnusable, match="made by PostgreSQL 16"):
        embedded.start(home)


def test_a_server_of_another_machine_is_not_doubled(lived_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded.start(lived_in)
    embedded.stop(lived_in)
    note = lived_in / "postgres.machine.json"
    note.write_text(json.dumps({"host": "node7", "boot": "another"}))
    (lived_in / "postgres" / "postmaster.pid").write_text("4242\n")
    monkeypatch.setattr(embedded, "SHARED", ("",))
    with pytest.raises(FolderUnusable, match="'node7'"):
        embedded.start(lived_in)
    monkeypatch.undo()
    # On a disk of this machine only, it can be nothing but the remains of a container.
    assert _query(embedded.start(lived_in), "SELECT 1") == [(1,)]


def test_root_opens_its_private_folders_to_the_server_alone(home: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root hands the server to another user, and these tests do not run as root")
    private = home / "root's home"
    private.mkdir(parents=True)
    private.chmod(0o700)
    url = embedded.start(private / "data")
    try:
        assert _query(url, "SELECT 1") == [(1,)]
        status = private.stat()
        assert stat.S_IMODE(status.st_mode) == 0o710
        assert status.st_uid == 0 and status.st_gid != 0
    finally:
        embedded.stop(private / "data")


def test_root_leaves_a_folder_alone_that_a_group_uses(home: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root hands the server to another user, and these tests do not run as root")
    shared = home / "group"
    shared.mkdir(parents=True)
    shared.chmod(0o750)
    with pytest.raises(FolderUnusable, match="chmod o"):
        embedded.start(shared / "data")
    assert stat.S_IMODE(shared.stat().st_mode) == 0o750
