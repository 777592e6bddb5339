"""Locks of files that processes of one or more machines take in turn. The system lets go of one when its process dies, however it dies."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

SECONDS_IN_SILENCE = 10.0  # then whoever waits says for whom


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Holds the lock at `path`, and notes beside it who does. Waits as long as another process holds it, and says so once. what: is made under the lock, in
    words. Raises OSError where there can be no such file."""
    lock, note = FileLock(path), path.with_name(f"{path.name}.holder")
    try:
        lock.acquire(timeout=SECONDS_IN_SILENCE)
    except Timeout:
        log.warning("waiting for %s, which %s is at: if that process is paused or hangs, let it go on or kill it (lock: %s)", what, holder(note), path)
        lock.acquire()
    try:
        with contextlib.suppress(OSError):  # it is a help, no more
            note.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        with contextlib.suppress(OSError):
            note.unlink()
        lock.release()


def holder(note: Path) -> str:
    """Who holds a lock, in words."""
    with contextlib.suppress(OSError):
        return note.read_text() or "another process"
    return "another process"
