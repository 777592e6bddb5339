"""`python -m storage`, mostly in a subprocess, as a user's shell runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage import embedded
from storage.__main__ import main
from storage.embedded import HOME_VARIABLE


@pytest.fixture(scope="module")
def run(short_folder: Path) -> Iterator[Callable[..., subprocess.CompletedProcess]]:
    """Runs one command with a data folder of its own."""
    home = short_folder / "main"

    def run_one(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "storage", *arguments],
            env={**os.environ, HOME_VARIABLE: str(home), **environment}, capture_output=True, text=True, timeout=180,
        )  # fmt: skip

    yield run_one
    embedded.stop(home)


def test_url_starts_a_server_whose_view_psql_finds(run: Callable) -> None:
    first = run("url")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("postgresql://") and first.stdout.count("\n") == 1
    assert run("url").stdout == first.stdout
    answer = run("psql", "-A", "-c", "SELECT study, trial, fd, fd_low FROM pareto_front")
    assert (answer.returncode, answer.stdout) == (0, "study|trial|fd|fd_low\n(0 rows)\n"), answer.stderr
    assert "psql is the PostgreSQL" in run("psql", "--help").stdout


def test_psql_takes_a_storage_its_own_arguments_and_its_variables(run: Callable, server: str) -> None:
    answer = run("psql", "--storage", server, "-Atc", "SELECT 1 + 1, current_setting('search_path')",
                 PGOPTIONS="-csearch_path=public")  # fmt: skip
    assert (answer.returncode, answer.stdout) == (0, "2|public\n"), answer.stderr
    with_password = server.replace("postgres@", "postgres:se%40cret@")
    answer = run("psql", f"--storage={with_password}", "-Atc", "SELECT 3")
    assert (answer.returncode, answer.stdout) == (0, "3\n"), answer.stderr
    assert run("psql", "--storage", server, "-c", "SELECT nonsense").returncode == 1


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (("psql", "--storage", "sqlite:///a"), "only PostgreSQL"),
        (("psql", "--storage"), "needs a URL"),
        (("psql", "--storage", "postgresql://u:secret@no-such-host.invalid/d"), "no such host|no server"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run: Callable, arguments: tuple[str, ...], rule: str) -> None:
    answer = run(*arguments)
    assert answer.returncode == 2 and answer.stdout == ""
    assert answer.stderr.startswith("error: ") and answer.stderr.count("\n") == 1 and "secret" not in answer.stderr
    assert any(one in answer.stderr for one in rule.split("|"))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "error: python -m storage needs a word: take url, psql or stop\n"),
        (("sotp",), "error: 'sotp' is no command of python -m storage: take stop, psql or url\n"),
        (("pslq",), "error: 'pslq' is no command of python -m storage: take psql, url or stop\n"),
        (("url", "--no-such-flag"), "error: unrecognized arguments: --no-such-flag: see python -m storage --help\n"),
    ],
)
def test_unknown_words_and_none_are_one_line(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], line: str) -> None:
    assert main(list(arguments)) == 2
    assert capsys.readouterr() == ("", line)


def test_help_names_every_command(run: Callable) -> None:
    answer = run("--help")
    assert answer.returncode == 0 and all(f"python -m storage {word}" in answer.stdout for word in ("url", "psql", "stop"))


def test_stop_ends_the_server(run: Callable) -> None:
    run("url")
    assert run("stop").stdout == "stopped\n"
    assert run("stop").stdout == "no server was running\n"
