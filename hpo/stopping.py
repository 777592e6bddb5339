"""How a worker is asked to stop: at once while it trains or waits, but never in the middle of what it writes to the database. And how one ends that hangs."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn

from hpo.command import HUNG

log = logging.getLogger(__name__)

LAST_WORDS_SECONDS = 10.0  # then it ends without: what hangs may be the disk that its log is on

requested = threading.Event()
_state = {"interruptible": False}


class Stopped(BaseException):
    """The worker was asked to stop; not an Exception, so that no library swallows it on the way up."""


def on_signals(*signals: int) -> None:
    """Let these signals ask this process to stop. Call it in the main thread."""
    for number in signals:
        signal.signal(number, _ask)


def _ask(number: int, frame: object) -> None:
    requested.set()
    if _state["interruptible"]:
        _state["interruptible"] = False  # a second signal must not cut the giving back in two
        raise Stopped


def check() -> None:
    """Raises Stopped if this process was asked to stop; for whoever waits a little at a time."""
    if requested.is_set():
        raise Stopped


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """A block that a request to stop may leave with Stopped, at any point; one made before it, at its beginning.

    Outside of such blocks a request waits.
    """
    _state["interruptible"] = True
    try:
        check()
        yield
    finally:
        _state["interruptible"] = False


def end_hung(line: str) -> NoReturn:
    """End this process, in which another thread hangs that nothing can interrupt (a driver, a disk, a user's function). Its log says where, and then `line`."""
    def tell() -> None:
        faulthandler.dump_traceback(2)
        log.error("%s; this worker ends itself, another goes on", line)

    telling = threading.Thread(target=tell, daemon=True)
    telling.start()
    telling.join(LAST_WORDS_SECONDS)
    os._exit(HUNG)
