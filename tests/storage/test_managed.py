"""The store on a PostgreSQL as it is managed elsewhere: TLS, a password, and a pooler in between. The embedded server's build has no TLS."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import text

from storage import leases, system_user
from storage.__main__ import main
from storage.errors import BadStorageUrl, StorageUnreachable
from storage.store import Store, open_store

PASSWORD = "of-the-test"
START_SECONDS = 60


def free_port() -> int:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening:
        return listening.getsockname()[1]


def tool(name: str) -> str:
    """A program of this machine, or the test is skipped. PostgreSQL's own may lie where Debian puts them."""
    found = shutil.which(name) or next((str(path) for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)), None)
    return found or pytest.skip(f"no {name} on this machine")


def run(*words: object, **given) -> None:
    ended = subprocess.run([str(word) for word in words], capture_output=True, text=True, cwd="/", **given)
    assert ended.returncode == 0, f"{words}: {ended.stderr}{ended.stdout}"


@dataclass(frozen=True)
class Server:
    """A server with TLS, on this port of localhost, with the certificate of who signed its own."""

    folder: Path
    port: int

    def url(self, port: int | None = None, host: str = "localhost", authority: str = "authority.crt") -> str:
        return f"postgresql://search@{host}:{port or self.port}/search?sslmode=verify-full&sslrootcert={self.folder / authority}"


def certificates(folder: Path) -> None:
    """authority.crt, and server.crt for localhost with its key server.key; other.crt of an authority that has signed nothing."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl = tool("openssl")
    for name in ("authority", "other"):
        run(openssl, "req", "-x509", *key, "-days", 2, "-subj", f"/CN={name}", "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt")
    run(openssl, "req", *key, "-subj", "/CN=localhost", "-keyout", folder / "server.key", "-out", folder / "server.csr")
    (folder / "names").write_text("subjectAltName=DNS:localhost")
    run(openssl, "x509", "-req", "-in", folder / "server.csr", "-CA", folder / "authority.crt", "-CAkey", folder / "authority.key", "-CAcreateserial",
        "-days", 2, "-extfile", folder / "names", "-out", folder / "server.crt")
    (folder / "server.key").chmod(0o600)
    for path in (folder, *folder.iterdir()):
        system_user.give(path)


@pytest.fixture(scope="module")
def server(short_folder: Path) -> Iterator[Server]:
    initdb, pg_ctl = tool("initdb"), tool("pg_ctl")
    made = Server(short_folder / "tls", free_port())
    made.folder.mkdir()
    system_user.let_through(made.folder)
    (made.folder / "password").write_text(PASSWORD)
    certificates(made.folder)
    data = made.folder / "data"
    run(initdb, "-D", data, "-U", "search", f"--pwfile={made.folder / 'password'}", "-A", "scram-sha-256", "-E", "UTF8", "--no-sync", **system_user.run_as())
    (data / "pg_hba.conf").write_text("hostssl all all all scram-sha-256\n")
    options = {"ssl": "on", "ssl_cert_file": made.folder / "server.crt", "ssl_key_file": made.folder / "server.key", "port": made.port,
               "listen_addresses": "localhost", "unix_socket_directories": "", "fsync": "off"}
    words = shlex.join(f"--{name}={value}" for name, value in options.items())
    run(pg_ctl, "start", "-w", "-t", START_SECONDS, "-D", data, "-l", made.folder / "server.log", "-o", words, **system_user.run_as())
    try:
        connection = psycopg2.connect(made.url().replace("/search?", "/postgres?"), password=PASSWORD)
        connection.autocommit = True
        connection.cursor().execute("CREATE DATABASE search")
        connection.close()
        yield made
    finally:
        run(pg_ctl, "stop", "-w", "-m", "immediate", "-D", data, **system_user.run_as())


@pytest.fixture(autouse=True)
def password(monkeypatch) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)


@pytest.fixture
def opening() -> Iterator[Callable[[str, str], Store]]:
    stores: list[Store] = []

    def open_one(url: str, worker: str) -> Store:
        stores.append(open_store(url, worker))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


def answer(store: Store, query: str, **values):
    with store.engine.connect() as connection:
        return connection.execute(text(query), values).scalar()


def test_every_connection_is_encrypted_to_the_server_that_was_named(server: Server, opening: Callable) -> None:
    store = opening(server.url(), "a")
    with store.optuna.engine.connect():
        assert answer(store, "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'search' AND NOT ssl") == 0
        assert answer(store, "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'search' AND ssl") >= 2


def test_psql_speaks_tls_too(server: Server, opening: Callable, capfd) -> None:
    tool("psql")
    opening(server.url(), "a")
    assert main(["psql", "--storage", server.url(), "-Atc", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"]) == 0
    assert capfd.readouterr().out == "t\n"


@pytest.mark.parametrize("wrong", [{"host": "127.0.0.1"}, {"authority": "other.crt"}, {"authority": "missing.crt"}])
def test_another_name_or_authority_is_refused_in_one_line(server: Server, wrong: dict[str, str]) -> None:
    with pytest.raises(StorageUnreachable, match="change sslmode in the URL, or name there who signed .* as sslrootcert") as refused:
        open_store(server.url(**wrong))
    assert "\n" not in str(refused.value) and PASSWORD not in str(refused.value)


def test_the_password_may_be_in_a_file_too(server: Server, opening: Callable, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PGPASSWORD")
    with pytest.raises(StorageUnreachable, match="the server refuses the user or the password"):
        open_store(server.url())
    (tmp_path / ".pgpass").write_text(f"localhost:*:search:search:{PASSWORD}\n")
    (tmp_path / ".pgpass").chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / ".pgpass"))
    assert answer(opening(server.url(), "a"), "SELECT 1") == 1


@contextlib.contextmanager
def pooler(server: Server, mode: str) -> Iterator[int]:
    """A PgBouncer before the server; gives its port."""
    port, folder = free_port(), server.folder / mode
    folder.mkdir(exist_ok=True)
    settings = {"listen_addr": "127.0.0.1", "listen_port": port, "unix_socket_dir": "", "auth_type": "scram-sha-256", "auth_file": folder / "users",
                "pool_mode": mode, "client_tls_sslmode": "require", "client_tls_cert_file": server.folder / "server.crt",
                "client_tls_key_file": server.folder / "server.key", "server_tls_sslmode": "verify-full", "server_tls_ca_file": server.folder / "authority.crt"}
    (folder / "users").write_text(f'"search" "{PASSWORD}"\n')
    (folder / "ini").write_text("\n".join(["[databases]", f"search = host=localhost port={server.port}", "[pgbouncer]",
                                           *(f"{name} = {value}" for name, value in settings.items())]))
    for path in (folder, *folder.iterdir()):
        system_user.give(path)
    process = subprocess.Popen([tool("pgbouncer"), "--quiet", str(folder / "ini")], cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env=dict(os.environ), **system_user.run_as())
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                break
            assert process.poll() is None and time.monotonic() < end, "PgBouncer does not start"
            time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


def test_behind_a_pooler_of_sessions_each_worker_has_its_name_and_its_locks(server: Server, opening: Callable) -> None:
    with pooler(server, "session") as port:
        first, second = opening(server.url(port), "first"), opening(server.url(port), "second")
        names = [answer(store, "SELECT peft_pareto.worker()") for store in (first, second, first)]
        assert names == ["first", "second", "first"]
        inside = threading.Event()

        def ask() -> None:
            with leases.asking(second, 7):
                inside.set()

        with leases.asking(first, 7):
            asking = threading.Thread(target=ask)
            asking.start()
            assert not inside.wait(1.0)
        asking.join(30)
        assert inside.is_set()
        for store in (first, second):
            store.close()


def test_a_pooler_of_transactions_is_refused(server: Server) -> None:
    with pooler(server, "transaction") as port, pytest.raises(BadStorageUrl, match="set its pool_mode to session, or name the server itself"):
        open_store(server.url(port), "first")
