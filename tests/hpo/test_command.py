"""How commands end: one line for what the user can mend, everything else as it comes."""

from __future__ import annotations

import contextlib
import errno
import shlex
import sys
from pathlib import Path

import pytest

from hpo.command import Parser, one_line_errors, python, store_url
from hpo.errors import BadSetting, SearchError
from metrics.errors import MetricError
from storage import embedded
from storage.errors import StorageError
from trainers.errors import TrainerError


def raising(error: BaseException):
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize("kind", [SearchError, TrainerError, MetricError, StorageError])
def test_our_errors_are_one_line_and_status_2(kind: type, capsys) -> None:
    assert one_line_errors(raising(kind("a value:\n  the rule"))) == 2
    assert capsys.readouterr().err == "error: a value: the rule\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_full_or_forbidden_disk_is_named(number: int, capsys) -> None:
    assert one_line_errors(raising(OSError(number, "no way", "/somewhere/x"))) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: /somewhere/x cannot be written (no way)") and said.count("\n") == 1


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.ENOENT])
def test_a_path_that_cannot_be_is_named(number: int, capsys) -> None:
    assert one_line_errors(raising(OSError(number, "no way", "/somewhere/x"))) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: /somewhere/x cannot be ") and "another" in said and said.count("\n") == 1


def test_where_the_disk_of_the_log_is_full_the_status_alone_says_it(monkeypatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert one_line_errors(raising(OSError(errno.ENOSPC, "no way", "/somewhere/x"))) == 2
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()


def test_printed_commands_name_a_python_that_the_shell_finds(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    monkeypatch.setattr(sys, "executable", str(Path(sys.executable).with_name("python")))
    assert python() == "python"
    monkeypatch.setenv("PATH", "/usr/bin")
    assert python() == shlex.quote(sys.executable)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    assert python() == ".venv/bin/python"


def test_what_nobody_foresaw_is_not_hidden() -> None:
    for error in (OSError(errno.EBADF, "odd"), RuntimeError("a bug"), ValueError("a bug")):
        with pytest.raises(type(error)):
            one_line_errors(raising(error))


def test_interruption_has_the_shells_status(capsys) -> None:
    assert one_line_errors(raising(KeyboardInterrupt())) == 130 and capsys.readouterr().err == ""
    assert one_line_errors(lambda: 1) == 1


def test_flags_are_not_guessed_but_named() -> None:
    parser = Parser(prog="p")
    parser.add_argument("--storage")
    parser.add_argument("--study", required=True)
    with pytest.raises(BadSetting, match="'--stor' is no flag of p: take --stor"):
        parser.parse_args(["--study", "s", "--stor=x"])
    with pytest.raises(BadSetting, match="--study: see p --help"):
        parser.parse_args([])


def test_an_empty_url_is_not_the_embedded_server() -> None:
    assert store_url("") == "" and store_url("postgresql://x") == "postgresql://x" and store_url(None) == embedded.start()
