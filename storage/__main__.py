"""`python -m storage url | psql … | stop`: the embedded server from a shell. No study is read or written here."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import storage
from storage import embedded
from storage.errors import StorageError

USAGE = """\
python -m storage url                        print the embedded server's URL; starts it if need be
python -m storage psql [--storage URL] ...   run psql, the bundled one on the embedded server; all other arguments are psql's own
python -m storage stop                       stop the embedded server
"""
COMMANDS = ("url", "psql", "stop")


class Parser(argparse.ArgumentParser):
    """A mistake raises StorageError instead of printing the usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise StorageError(f"{message}: see {self.prog} --help")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; 0, psql's own status, or 2 after one line on stderr."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        # What follows psql is not ours to read, -h and -c among it.
        command = "psql" if given[:1] == ["psql"] else _command(given)
        if command == "stop":
            print("stopped" if embedded.stop() else "no server was running")
        elif command == "url":
            print(_ready(None))
        else:
            return _psql(given[1:])
    except StorageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _command(arguments: list[str]) -> str:
    """The one word that is given."""
    parser = Parser("python -m storage", usage=USAGE)
    parser.add_argument("command", nargs="?")
    word = parser.parse_args(arguments).command
    if word is None:
        raise StorageError(f"python -m storage needs a word: take {_listed(COMMANDS)}")
    if word not in COMMANDS:
        raise StorageError(f"{word!r} is no command of python -m storage: take {_listed(difflib.get_close_matches(word, COMMANDS, 3, cutoff=0.0))}")
    return word


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _ready(url: str | None) -> str:
    """The URL, its tables and views in place."""
    url = url or embedded.start()
    storage.open(url).close()
    return url


def _psql(arguments: list[str]) -> int:
    import shutil
    import subprocess

    from sqlalchemy.engine import make_url

    from storage.cluster import program
    from storage.engine import plain

    url, rest = _storage_of(arguments)
    target = plain(_ready(url))
    environment = dict(os.environ)
    password = make_url(target).password
    if password is not None:
        # Other users can read a process's arguments, but not its environment.
        environment["PGPASSWORD"] = str(password)
        scheme, _, tail = target.partition("://")
        login, _, place = tail.rpartition("@")
        target = f"{scheme}://{login.partition(':')[0]}@{place}"
    # The bundled one is built without TLS, which other servers ask for.
    own = None if url is None else shutil.which("psql")
    try:
        return subprocess.call([own or str(program("psql")), "-d", target, *rest], env=environment)
    except OSError as error:
        raise StorageError(f"the bundled psql cannot run ({error}): use a psql of yours with the URL") from error


def _storage_of(arguments: list[str]) -> tuple[str | None, list[str]]:
    rest = list(arguments)
    for place, one in enumerate(rest):
        if one.startswith("--storage="):
            return one.partition("=")[2], rest[:place] + rest[place + 1 :]
        if one == "--storage":
            if place + 1 == len(rest):
                raise StorageError("--storage needs a URL: write --storage postgresql://user@host/database")
            return rest[place + 1], rest[:place] + rest[place + 2 :]
    return None, rest


if __name__ == "__main__":
    sys.exit(main())
