"""Many simulated workers on one store, for `benchmarks.outer_loop`: leases, heartbeats and rungs are real, trainings are sleeps."""

from __future__ import annotations

import multiprocessing
import threading
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import outer_loop_study
from hpo.identity import model_folder
from hpo.settings import Settings
from hpo.spaces.base import Trained
from hpo.study import Asked, Search
from storage import leases


@dataclass(frozen=True)
class Share:
    """One worker's seconds in trials, and in all, from its first question to its last word; what it said if it failed."""

    trials: float
    whole: float
    error: str | None


def run(url: str, chosen: Settings, workers: int, processes: int, trials: int, seconds: float) -> list[Share]:
    """Threads with a store of their own, in a few processes: a simulated worker needs no core of its own."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Manager().Barrier(processes)
    counts = [len(range(place, workers, processes)) for place in range(processes)]
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        found = [pool.submit(crowd, url, chosen, count, trials, seconds, place, barrier) for place, count in enumerate(counts)]
        return [share for each in found for share in each.result()]


def crowd(url: str, chosen: Settings, count: int, trials: int, seconds: float, place: int, barrier: Any) -> list[Share]:
    trained = Trained(model_folder(chosen))
    searches = [outer_loop_study.join(url, chosen, trained) for _ in range(count)]
    barrier.wait()
    shares: list[Share] = []
    threads = [threading.Thread(target=lambda number=number, search=search: shares.append(worker(search, trials, seconds, [place, number])))
               for number, search in enumerate(searches)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for search in searches:
        search.store.close()
    return shares


def worker(search: Search, trials: int, seconds: float, seed: list[int]) -> Share:
    generator, started, inside = np.random.default_rng(seed), time.monotonic(), 0.0
    try:
        for _ in range(trials):
            while not isinstance(asked := search.ask(), Asked):
                time.sleep(1)
            with leases.Heartbeat(search.store, asked.id) as heartbeat:
                for steps in asked.rungs:
                    heartbeat.stage(f"to step {steps}")
                    pause = seconds / len(asked.rungs)
                    time.sleep(pause)
                    inside += pause
                    search.report(asked, steps, outer_loop_study.scores(generator), 1234, seconds, None)
                search.finish(asked)
    except Exception:  # a simulated worker's end is a finding, not ours
        return Share(inside, time.monotonic() - started, traceback.format_exc())
    return Share(inside, time.monotonic() - started, None)
