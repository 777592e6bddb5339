"""Signs of life of the thread that works, for another thread that speaks for it to the database. Knows no database and no process."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

#: Whoever speaks for another thread looks more often than this: later, the process as a whole was paused, and nobody could give a sign.
MOST_SECONDS_BETWEEN_LOOKS = 60.0


class Life:
    """name: of what is worked at, in words. limit: seconds without a sign after which the thread that works is taken for hung, and nobody may speak for it: a
    lease, or a turn, runs out by itself. hung: is told in one line where the thread has not come back by then, to end the process; again at each look."""

    def __init__(self, name: str = "the work", limit: float = math.inf, hung: Callable[[str], None] = lambda line: None) -> None:
        self.name, self.limit, self.hung = name, limit, hung
        self.at: str | None = None  # what the thread does, in a word or two
        self.begin(math.inf)

    def begin(self, grace: float) -> None:
        """To be called before the first look. grace: seconds beyond the limit in which what was kept runs out."""
        self.grace, self.told = grace, False
        self.looked = self.last = time.monotonic()

    def sign(self) -> None:
        """Of life, by the thread that works; costs next to nothing."""
        self.last = time.monotonic()

    def goes_on(self) -> bool:
        """A look: whether there was a sign within the limit."""
        now, looked = time.monotonic(), self.looked
        self.looked = now
        if now - looked > MOST_SECONDS_BETWEEN_LOOKS:
            self.sign()
        silence = now - self.last
        line = f"{self.name}: no sign of life for {silence:.0f} s{f' at: {self.at}' if self.at else ''}"
        if silence > self.limit + self.grace:
            self.hung(line)
        elif silence > self.limit and not self.told:
            # From a thread of its own: what hangs may be the disk that the log is on.
            threading.Thread(target=log.warning, args=("%s; it is not kept from others any longer", line), daemon=True).start()
        self.told = silence > self.limit
        return not self.told
