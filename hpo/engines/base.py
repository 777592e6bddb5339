"""The contract of an engine: something that runs a study's trials on some machines until the study has ended."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from hpo.errors import SearchError

if TYPE_CHECKING:
    from hpo.settings import Settings
    from hpo.study import Ended, Search

Watch = Callable[[], None]
STOP_SECONDS = 20.0  # for workers to give their trials back
MOST_QUICK_DEATHS = 3  # of workers that died within QUICK_SECONDS of their start: more would be a loop
QUICK_SECONDS = 60.0


class Engine(ABC):
    """Places trials; proposes none, and holds nothing that is not in the database.

    `run` returns the study's end once it has come and no trial is running any more. It calls `watch` about once a second,
    so that progress shows. When it is interrupted, by whatever is raised in it, running trials are given back first.
    What only a worker can notice (a bad setting, or that workers die) is raised as SearchError with the worker's line.
    Nothing that it started runs on after it.
    """

    name: ClassVar[str]

    @abstractmethod
    def check(self, settings: Settings) -> None:
        """BadSetting for what this engine cannot do here, as far as can be seen before anything is started."""

    @abstractmethod
    def places(self, settings: Settings) -> int:
        """How many trials it would run at a time on this machine."""

    @abstractmethod
    def run(self, search: Search, url: str, watch: Watch) -> Ended:
        """Run trials of the study, which is registered already, until it has ended. url: of its store, for the workers."""


class Deaths:
    """Counts workers that died, and gives up when they do nothing else. `most` deaths in all are borne."""

    def __init__(self, most: int):
        self.most, self.quick, self.all = most, 0, 0

    def note(self, lived: float, last_words: str) -> None:
        """A worker died after `lived` seconds. Raises SearchError if there is no use in starting another."""
        self.all += 1
        self.quick += lived < QUICK_SECONDS
        if self.quick > MOST_QUICK_DEATHS or self.all > self.most:
            raise SearchError(f"{self.all} workers died, the last one after {lived:.0f} s: {last_words}; "
                              "mend that and run the same command again, finished trials are kept")


def threads_for(workers: int) -> int:
    """CPU threads of each of so many workers: OMP_NUM_THREADS if that is set, else an equal share of the cores."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return max(int(told) if told.isdecimal() else cores() // workers, 1)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
