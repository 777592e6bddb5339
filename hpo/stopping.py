"""How a worker is asked to stop: at once while it trains or waits, but never in the middle of what it writes to the database."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

requested = threading.Event()
_state: dict[str, Any] = {"interruptible": False, "at_rest": None}


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
    if _state["at_rest"] is not None:
        at_rest, _state["at_rest"] = _state["at_rest"], None
        at_rest()


def at_rest(call: Callable[[], None] | None) -> None:
    """What a request to stop calls while the main thread is left to somebody else (Ray, between two rungs); at once if there was one. None: nothing."""
    _state["at_rest"] = call
    if call is not None and requested.is_set():
        _state["at_rest"] = None
        call()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """A block that a request to stop may leave with Stopped, at any point; one made before it, at its beginning.

    Outside of such blocks a request waits.
    """
    _state["interruptible"] = True
    try:
        if requested.is_set():
            raise Stopped
        yield
    finally:
        _state["interruptible"] = False
