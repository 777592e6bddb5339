"""What all commands share: flags whose mistakes are one line, and how a command ends: that line on standard error, exit status 2."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hpo.errors import DISK_TROUBLE, BadSetting, DiskTrouble, SearchError
from metrics.errors import MetricError
from storage.errors import StorageError
from trainers.errors import TrainerError, nearest

USAGE = 2
HUNG = 124  # as timeout(1) says it of what takes too long
ERROR = "error: "  # how the one line begins
INTERRUPTED = 130  # as shells say it of Ctrl-C
OUR_ERRORS = (SearchError, TrainerError, MetricError, StorageError)


class Parser(argparse.ArgumentParser):
    """Flags in full only. A mistake raises BadSetting instead of printing the usage and leaving."""

    def __init__(self, **given):
        super().__init__(allow_abbrev=False, **given)

    def error(self, message: str):
        raise BadSetting(f"{message.removeprefix('argument ')}: see {self.prog} --help")

    def parse_args(self, arguments: Sequence[str] | None = None, namespace=None) -> argparse.Namespace:
        given, unknown = self.parse_known_args(arguments, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            word = unknown[0].partition("=")[0]
            raise BadSetting(f"{word!r} is no flag of {self.prog}: take {nearest(word, flags)}")
        return given


def whole(text: str) -> int:
    """A flag's whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number, write one like 20") from None


def decimal(text: str) -> float:
    """A flag's number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number, write one like 0.5") from None


def toml(flag: str, path: Path) -> dict[str, Any]:
    """What stands in a flag's TOML file. Raises BadSetting where it cannot be read, or is no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadSetting(f"{flag} {path}: it cannot be read ({error.strerror}), give a TOML file") from error
    except (ValueError, RecursionError) as error:  # also of a number with thousands of digits, and of brackets in brackets without end
        raise BadSetting(f"{flag} {path}: it is not TOML ({error}), mend that line") from error


def items(flag: str, text: str) -> list[str]:
    """The items of a flag with commas. Raises BadSetting for an empty one: whoever left it, such as a script with an empty variable, meant something."""
    found = [item.strip() for item in text.split(",")]
    if not all(found):
        raise BadSetting(f"{flag} {text!r}: {'it is empty' if not text.strip() else 'an item between its commas is empty'}, name one, or leave "
                         f"{'the flag' if not any(found) else 'the comma'} out")
    return found


def store_url(given: str | None) -> str:
    """The --storage that was given, even if empty (which is refused when it is opened), else the embedded server's, started if need be."""
    if given is not None:
        return given
    from storage import embedded

    return embedded.start()


def python() -> str:
    """How this Python is called in a command line that the user may copy: by name where the PATH leads to it."""
    found = shutil.which("python")
    if found is not None and os.path.abspath(found) == os.path.abspath(sys.executable):
        return "python"
    shorter = os.path.relpath(sys.executable)
    return shlex.quote(sys.executable if shorter.startswith(os.pardir) else shorter)


def one_line(error: BaseException) -> str:
    """What the user reads of an error: its message on one line."""
    return " ".join(str(error).split())


def one_line_errors(main: Callable[[], int]) -> int:
    """Run a command; gives its exit status."""
    try:
        return main()
    except OUR_ERRORS as error:
        say_error(one_line(error))
    except OSError as error:
        if error.errno in DISK_TROUBLE:
            say_error(str(DiskTrouble(error)))
        elif error.filename is not None:  # a path that was given
            say_error(f"{error.filename} cannot be used ({error.strerror}): give another path")
        else:
            raise
    except KeyboardInterrupt:
        return INTERRUPTED
    return USAGE


def say_error(words: str) -> None:
    """Where the disk of a log is full, the exit status alone must say it."""
    with contextlib.suppress(OSError):
        print(f"{ERROR}{words}", file=sys.stderr, flush=True)


def leave(status: int) -> NoReturn:
    """End the process at once. Python's own end takes half a second with the libraries that draw and three times that with those that
    train, for which the user, or a launch that is finished, would wait; nothing is left to be saved then."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # the reader of a pipe is gone
            pass
    os._exit(status)
