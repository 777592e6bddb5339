"""The contract of an engine: something that runs a study's trials on some machines until the study has ended."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from hpo.errors import BadSetting, SearchError
from storage.errors import StorageError

if TYPE_CHECKING:
    from hpo.ending import Ended
    from hpo.settings import Settings
    from hpo.study import Search

Watch = Callable[[], None]
GRAIN = 10_000  # Ray counts ten-thousandths of a CPU or GPU
STOP_SECONDS = 20.0  # for workers to give their trials back
GIB = 1 << 30
WORKER_GIB = 1.5  # of memory that a worker with the miniature may take
LEAST_GIB = 0.5  # that it takes at least: two, launch and the database took 1.3 together (docs/speed.md)
MOST_A_CORE = 16  # workers: more would only wait for one another
MOST_THREADS = 1024  # of a worker: no machine has so many cores for one
MOST_DEATHS = 3  # of workers beyond one of each, while no trial gets to a rung: more would be a loop


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
        """How many trials it would run at a time. Raises BadSetting where it could run none."""

    @abstractmethod
    def run(self, search: Search, url: str, watch: Watch) -> Ended:
        """Run trials of the study, which is registered already, until it has ended. url: of its store, for the workers."""


class Deaths:
    """Counts workers that died, and gives up when they do nothing else: a machine that kills workers all the time, but lets trials get on, is borne.

    workers: how many there are at a time. evaluated: how many rungs of the study are evaluated by now.
    """

    def __init__(self, workers: int, evaluated: Callable[[], int]):
        self.most, self.evaluated, self.in_vain, self.rungs = workers + MOST_DEATHS, evaluated, 0, None

    def note(self, lived: float, last_words: str) -> None:
        """A worker died after `lived` seconds. Raises SearchError if there is no use in starting another."""
        try:
            rungs = self.evaluated()
        except StorageError:  # it is away: that is no sign of life
            rungs = self.rungs
        self.in_vain = self.in_vain + 1 if rungs == self.rungs else 1
        self.rungs = rungs
        if self.in_vain > self.most:
            raise SearchError(f"{self.in_vain} workers died while no trial got on, the last one after {lived:.0f} s: {last_words}; "
                              "mend that and run the same command again, evaluated rungs are kept")


def trials_a_gpu(share: float) -> int:
    """How many trials that take such a share, at most 1, fit on one GPU."""
    return int(GRAIN / max(round(share * GRAIN), 1))


def places_on(gpus: float, share: float) -> int:
    """How many trials fit on so many GPUs, each taking a share of one or several whole ones: no share is split between two."""
    return int(gpus) * trials_a_gpu(share) if share <= 1 else int(gpus / share)


def fitting_share(gpus: int, trials: int) -> float:
    """The largest --gpus-per-trial with which so many trials fit on so many GPUs; 0 where none does, since a share is at least one GRAINth."""
    return int(GRAIN / -(-trials // gpus)) / GRAIN


def most_workers() -> int:
    """How many workers this machine can hold at all, on whatever device: each is a process with libraries and a base model."""
    return max(min(int(memory_gib() / LEAST_GIB), MOST_A_CORE * cores()), 1)


def check_fits(workers: int | None) -> None:
    """BadSetting for more workers than this machine can hold."""
    if workers is not None and workers > most_workers():
        raise BadSetting(f"--workers {workers}: this machine holds at most {most_workers()}, each takes {LEAST_GIB} GiB or more of its {memory_gib():.1f} GiB of memory, and more "
                         f"than {MOST_A_CORE} on each of its {cores()} cores would only wait for one another; take at most {most_workers()}, or leave the flag out")


def threads_for(workers: int) -> int:
    """CPU threads of each of so many workers: OMP_NUM_THREADS if that is set, else an equal share of the cores."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return min(max(int(told) if told.isdecimal() else cores() // workers, 1), MOST_THREADS)


def memory_gib() -> float:
    """GiB of memory of this machine; where it does not say, as much as a worker a core needs."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    except (ValueError, OSError, AttributeError):  # Windows has no sysconf
        return cores() * WORKER_GIB


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
