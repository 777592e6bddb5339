"""Which URLs are taken, how each refusal reads, and the worker's name on every connection."""

from __future__ import annotations

import contextlib
import http.server
import multiprocessing
import re
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import text

from storage import engine
from storage.errors import BadStorageUrl, StorageUnreachable


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("postgresql://u:p@h:5432/d", "postgresql+psycopg2://u:p@h:5432/d"),
        ("postgres://u@h/d?sslmode=require", "postgresql+psycopg2://u@h/d?sslmode=require"),
        ("postgresql+psycopg://u@h/d", "postgresql+psycopg2://u@h/d"),
        (" postgresql+psycopg2://u@/d?host=/a/b ", "postgresql+psycopg2://u@/d?host=/a/b"),
        ("postgresql://u:%7Bx%40%25@h/d", "postgresql+psycopg2://u:%7Bx%40%25@h/d"),
    ],
)
def test_normalise_takes_every_postgres_url(given: str, expected: str) -> None:
    assert engine.normalise(given) == expected
    assert engine.plain(given) == expected.replace("+psycopg2", "")


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("sqlite:///a.db", "only PostgreSQL"),
        ("mysql://u:secret@h/d", "only PostgreSQL"),
        ("postgresqlx://h/d", "only PostgreSQL"),
        ("/a/file.db", "not a URL"),
        ("", "not a URL"),
        ("host=h dbname=d", "not a URL"),
        ("postgresql://u:secret@h:port/d", "cannot be read"),
        ("postgresql://u:sec@ret@h:1/d", "more than one @"),
        ("postgresql://u:secret@h", "names no database"),
    ],
)
def test_refuses_what_is_no_postgres_url_in_one_line(url: str, rule: str) -> None:
    with pytest.raises(BadStorageUrl, match=rule) as caught:
        engine.connect(url)
    line = str(caught.value)
    assert "\n" not in line
    assert "sec" not in line
    assert "postgresql://user:password@host" in line


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_unreachable_servers_are_one_line_without_the_password(server: str) -> None:
    cases = {
        f"postgresql://u:secret@127.0.0.1:{_free_port()}/d": "no server answers",
        "postgresql://u:secret@no-such-host.invalid/d": "no such host|no server answers",
        server.replace("/peft_pareto?", "/not_there?"): "database does not exist",
        server.replace("postgres@", "nobody:secret@"): "user does not exist",
        "postgresql://u@/d?host=/no/such/folder": "no server answers",
    }
    for url, way_out in cases.items():
        with pytest.raises(StorageUnreachable, match=way_out) as caught:
            engine.connect(url)
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)


@contextlib.contextmanager
def _listening(handler: type[socketserver.BaseRequestHandler]) -> Iterator[int]:
    """The port of a server in a thread that does with each connection what the handler says."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as listener:
        listener.daemon_threads = True
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        yield listener.server_address[1]
        listener.shutdown()


class _WebServer(http.server.BaseHTTPRequestHandler):
    """As web servers do it, answers what is no HTTP with "400 Bad Request" at once."""

    def handle(self) -> None:
        self.raw_requestline = self.connection.recv(8) + b"\r\n"
        self.parse_request()

    def log_message(self, *said: object) -> None:
        """Nothing on standard error."""


def _saying(answer: bytes) -> type[socketserver.BaseRequestHandler]:
    class Saying(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(8)
            self.request.sendall(answer)

    return Saying


@pytest.mark.parametrize("mode", ["prefer", "require", "disable"])
def test_a_web_server_is_no_postgresql_server(mode: str) -> None:
    with _listening(_WebServer) as port, pytest.raises(StorageUnreachable, match="this is no PostgreSQL server") as caught:
        engine.connect(f"postgresql://u:secret@127.0.0.1:{port}/d?sslmode={mode}")
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value) and "sslmode in the URL" not in str(caught.value)


@pytest.mark.parametrize("answer", [b"N", b"S and no handshake"])
def test_a_server_that_will_not_speak_ssl_is_said(answer: bytes) -> None:
    with _listening(_saying(answer)) as port, pytest.raises(StorageUnreachable, match="change sslmode in the URL"):
        engine.connect(f"postgresql://u@127.0.0.1:{port}/d?sslmode=require")


def test_a_host_whose_name_has_ssl_in_it_is_not_about_ssl() -> None:
    with pytest.raises(StorageUnreachable, match="no server answers there.*ssl-db"):
        engine.connect("postgresql://u@/d?host=/no/such/ssl-db")
    said = OSError('connection to server at "ssl-db" (10.0.0.1), port 5432 failed: timeout expired')
    assert "no server answers there" in str(engine.unreachable("postgresql://u@ssl-db/d", said))


def test_a_refused_password_is_told_from_an_absent_server(server: str, short_folder: Path) -> None:
    made = engine.connect(server)
    access = short_folder / "postgres" / "pg_hba.conf"
    access.write_text("local all locked scram-sha-256\n" + access.read_text())
    with made.begin() as connection:
        connection.execute(text("CREATE ROLE locked LOGIN PASSWORD 'right'"))
        connection.execute(text("SELECT pg_reload_conf()"))
    made.dispose()
    for password in (":secret", ""):
        with pytest.raises(StorageUnreachable, match="refuses the user or the password") as caught:
            engine.connect(server.replace("postgres@", f"locked{password}@"))
        assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    engine.connect(server.replace("postgres@", "locked:right@")).dispose()


def test_each_connection_carries_the_workers_name_even_after_a_rollback(server: str) -> None:
    odd = "host 'a\" \\ ; -1"
    made = engine.connect(server, odd)
    with made.connect() as first, made.connect() as second:
        first.rollback()
        for connection in (first, second):
            assert connection.scalar(text("SELECT current_setting('peft_pareto.worker')")) == odd
    made.dispose()
    nameless = engine.connect(server)
    with nameless.connect() as connection:
        assert not connection.scalar(text("SELECT current_setting('peft_pareto.worker', true)"))
    nameless.dispose()


def test_optunas_connections_carry_it_too(database: str) -> None:
    made = engine.optuna_storage(database, "me")
    with made.engine.connect() as connection:
        assert connection.scalar(text("SELECT current_setting('peft_pareto.worker')")) == "me"
    made.engine.dispose()


def test_a_url_with_braces_survives_optunas_template(server: str) -> None:
    made = engine.optuna_storage(server + "&application_name={SCHEMA_VERSION}")
    with made.engine.connect() as connection:
        assert connection.scalar(text("SHOW application_name")) == "{SCHEMA_VERSION}"
    made.engine.dispose()


def test_a_dead_connection_is_replaced(server: str) -> None:
    made = engine.connect(server, "me")
    other = sqlalchemy.create_engine(engine.normalise(server))
    with made.connect() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
    with other.begin() as connection:
        # Without a timeout it answers once the signal is sent, while the connection still lives.
        assert connection.scalar(text("SELECT pg_terminate_backend(:pid, 60000)"), {"pid": pid})
    with made.connect() as connection:
        assert connection.scalar(text("SELECT current_setting('peft_pareto.worker')")) == "me"
    made.dispose()
    other.dispose()


def _hold_lock_and_die(url: str, held: multiprocessing.Event) -> None:
    with engine.advisory_lock(engine.connect(url), 77, 20.0):
        held.set()
        multiprocessing.Event().wait()


def test_a_killed_process_lets_its_lock_go(server: str) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    holder = context.Process(target=_hold_lock_and_die, args=(server, held))
    holder.start()
    assert held.wait(60)
    made = engine.connect(server)
    query = text(f"SELECT pg_try_advisory_lock({engine.LOCK_SPACE}, 77)")
    with made.connect() as connection:
        assert connection.scalar(query) is False
    holder.kill()
    holder.join()
    with engine.advisory_lock(made, 77, 20.0):
        pass
    made.dispose()


def test_a_lock_goes_to_all_who_wait_and_the_server_says_nothing_of_it(short_folder: Path, server: str) -> None:
    made, order = engine.connect(server), []
    said = (short_folder / "postgres" / "server.log").stat().st_size

    def wait(number: int) -> None:
        with engine.advisory_lock(made, 78, 20.0):
            order.append(number)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(4)]
    with engine.advisory_lock(made, 78, 20.0):
        for thread in threads:
            thread.start()
        time.sleep(1.2)  # longer than they wait in the server at a time
    for thread in threads:
        thread.join()
    made.dispose()
    assert sorted(order) == [0, 1, 2, 3]
    assert "lock timeout" not in (short_folder / "postgres" / "server.log").read_text()[said:]


def test_a_url_for_the_command_line_has_no_password_at_all() -> None:
    assert engine.without_password("postgresql://u:p@w@h/d") == "postgresql://u@h/d"
    assert engine.without_password("postgresql://h/d?user=u&password=p") == "postgresql://h/d?user=u"
    assert engine.without_password("postgresql://h/d?password=p&user=u") == "postgresql://h/d?user=u"
    assert engine.without_password("postgresql://h/d?password=p") == "postgresql://h/d"


def test_hidden_never_shows_a_password() -> None:
    assert engine.hidden("postgresql://u:p@w@h/d") == "postgresql://u:***@h/d"
    assert engine.hidden("postgresql://h/d?user=u&password=p") == "postgresql://h/d?user=u&password=***"
    assert not re.search("secret", engine.hidden("x://u:secret@/"))
