"""Patience with a database that is away: restarts and fail-overs take seconds to a minute. Knows no query."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from storage.errors import StorageUnreachable

T = TypeVar("T")

#: A fail-over of a managed PostgreSQL takes up to about a minute; twice that is patience enough.
PATIENCE_SECONDS = 120.0
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0


def retrying(call: Callable[[], T], seconds: float = PATIENCE_SECONDS, give_up: Callable[[], bool] | None = None) -> T:
    """What `call` gives, asked again after growing pauses (0.1 s to 5 s) while it raises StorageUnreachable.

    call: of an idempotent function, since the answer that was lost may have been a yes; all functions of `storage.trials`
    are. seconds: how long in all; then the last StorageUnreachable is raised. give_up: asked before each pause, True raises at
    once (the lease is lost, the user wants to stop). Any other exception passes at once.

        number = retrying(lambda: trials.next_number(store, study_id))
    """
    end = time.monotonic() + seconds
    pause = FIRST_PAUSE
    while True:
        try:
            return call()
        except StorageUnreachable:
            left = end - time.monotonic()
            if left <= 0 or (give_up is not None and give_up()):
                raise
            time.sleep(min(pause, left))
            pause = min(pause * 2, LONGEST_PAUSE)
