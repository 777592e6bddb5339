"""`python -m benchmarks.outer_loop` times what the outer loop takes beside trial and sampler, on an embedded PostgreSQL of its own.

The database and the sampler are real, the trials are not: their scores are drawn. Studies are filled in bulk before they are timed.
"""

from __future__ import annotations

import argparse
import gc
import io
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import psutil
from rich.console import Console

from benchmarks import outer_loop_plain, outer_loop_study, outer_loop_workers
from benchmarks.documents import table, write_part
from benchmarks.outer_loop_space import PARAMETERS
from benchmarks.outer_loop_study import Timed
from hpo.identity import model_folder
from hpo.progress import Display
from hpo.settings import Settings
from hpo.spaces.base import Trained
from hpo.study import Search
from storage import embedded

MOST_MS = {200: 60.0, 10_000: 100.0}  # of ask and tell beyond the sampler, by the trials that the study has
MOST_SHARE = 1.0  # % of a trial of TRIAL_SECONDS
MOST_JOIN = 3.0  # seconds
LEAST_IN_TRIALS = 95.0  # % of the simulated workers' time
TRIAL_SECONDS = 30.0
SAMPLERS = ("random", "tpe", "auto")
JOINED = ("auto", "tpe", "nsga2", "random")
JOININGS, LOOKS = 3, 9
WORKERS, WORKER_TRIALS, WORKER_SECONDS = 64, 20, 5.0
COUNTED = ("A cycle is asking for a trial, reporting each of its rungs, with 256 replicates of seven scores, and telling it. Taken off is what the sampler "
           "itself takes in memory, and nothing else: the stopping rule counts as ours, and stands beside it with what it reads before it decides, per "
           "cycle; yardstick and baselines are not among the trials. Processor time is that of this process and of PostgreSQL together, also without the "
           "sampler: what the cycle would take on an idle machine with a store at hand. Plain Optuna does ask, suggest and tell, with RDBStorage on the same "
           "server, less the same on a study in memory; it reports no rungs and keeps no scores; beside `auto` it samples at random. A whole trial is what "
           "`hpo/trial.py` does with one, without fine-tuning, generating and scoring: asking, heartbeats, the curve of the loss, each rung, its note with the "
           "picture, tensors and training states noted, written (empty) and deleted, telling; its share of a trial is what the target of 1 % is for. Each "
           "trial of the study has a note, and tensors noted for each rung. A look is the display's, once a second in each launch.")


@dataclass(frozen=True)
class Cycle:
    """Milliseconds of a cycle of ours, of the processors during it but for the sampler, of the sampler and the stopping rule within it, of a whole trial
    beyond the sampler and of the processors during it, and of plain Optuna's cycle in PostgreSQL and in memory."""

    ours: float
    processor: float
    sampler: float
    rule: float
    whole: float
    whole_processor: float
    stored: float
    memory: float

    @property
    def beyond(self) -> float:
        return self.ours - self.sampler

    @property
    def plain(self) -> float:
        return self.stored - self.memory


@dataclass(frozen=True)
class Measured:
    """Of a study: cycles by sampler, seconds of each joining by sampler, and milliseconds of a look of the display."""

    cycles: dict[str, list[Cycle]]
    joined: dict[str, list[float]]
    look: float


def processor_seconds(server: psutil.Process) -> float:
    """Of this process and the server's, so far."""
    total = time.process_time()
    for process in (server, *server.children()):
        try:
            used = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += used.user + used.system + used.children_user + used.children_system if process.pid == server.pid else used.user + used.system
    return total


def timed(call: Callable[[], object]) -> float:
    """Milliseconds."""
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def cycles(search: Search, plain: optuna.Study, memory: optuna.Study, sampler: str, repeats: int, server: psutil.Process) -> list[Cycle]:
    """Ours and Optuna's in turn, since other work on the machine changes by the minute. The first is not counted: it reads the study."""
    generator = np.random.default_rng(1)
    search.recall.refresh()
    propose, rule = Timed(search.recall.proposer.propose), Timed(search.recall.decide)
    search.recall.proposer.propose, search.recall.decide = propose, rule
    found = []
    for study in (plain, memory):
        study.sampler = outer_loop_plain.SAMPLERS[sampler]()
    for _ in range(repeats + 1):
        before = processor_seconds(server)
        ours = timed(lambda: outer_loop_study.one_trial(search, generator))
        spent = 1000 * (processor_seconds(server) - before)
        inside = 1000 * propose.processor
        sampled, ruled = 1000 * propose.taken(), 1000 * rule.taken()
        before = processor_seconds(server)
        whole = timed(lambda: outer_loop_study.whole_trial(search))
        used = 1000 * (processor_seconds(server) - before - propose.processor)
        whole -= 1000 * propose.taken()
        rule.taken()
        found.append(Cycle(ours, spent - inside, sampled, ruled, whole, used,
                           timed(lambda: outer_loop_plain.one_trial(plain, search, generator)),
                           timed(lambda: outer_loop_plain.one_trial(memory, search, generator))))
    return found[1:]


def joining(url: str, chosen: Settings, trained: Trained) -> float:
    """Seconds from nothing but imports and the U-Net's shapes to knowing all of the study."""
    gc.collect()
    started = time.perf_counter()
    search = outer_loop_study.join(url, chosen, trained)
    search.recall.refresh()
    seconds = time.perf_counter() - started
    search.store.close()
    return seconds


def looking(search: Search) -> float:
    """Milliseconds that the display takes to look at a study of which another trial is finished, median."""
    display = Display(search.store, search.settings.study, search.id, search.objectives, Console(file=io.StringIO()))

    def look() -> None:
        display.finished = -1
        display.watch()

    return statistics.median(timed(look) for _ in range(LOOKS))


def measure(url: str, size: int, repeats: int, trained: Trained, server: psutil.Process, out: str) -> Measured:
    """Cycles by sampler, seconds to join by sampler, and milliseconds of a look, of a study of this size."""
    chosen = {sampler: outer_loop_study.settings(f"of-{size}", size + 1000, sampler=sampler, out=out) for sampler in JOINED}
    made = outer_loop_study.create(url, chosen["random"])
    outer_loop_study.fill(made, size)
    joined = {sampler: [joining(url, chosen[sampler], trained) for _ in range(JOININGS)] for sampler in JOINED}
    plain = outer_loop_plain.study(url, f"plain-{size}", made)
    memory = outer_loop_plain.in_memory(plain)
    found = {}
    for sampler in SAMPLERS:
        search = outer_loop_study.join(url, chosen[sampler], trained)
        found[sampler] = cycles(search, plain, memory, sampler, repeats, server)
        search.store.close()
        print(size, sampler, f"{median(found[sampler], lambda each: each.beyond):.1f} ms", flush=True)
    return Measured(found, joined, looking(made))


def median(found: list[Cycle], of: Callable[[Cycle], float]) -> float:
    return statistics.median(map(of, found))


def rows_of(size: int, sampler: str, found: list[Cycle]) -> list[str]:
    beyond, plain = median(found, lambda each: each.beyond), median(found, lambda each: each.plain)
    return [f"{size:,}", sampler, f"{beyond:.1f}", f"≤ {MOST_MS[size]:.0f}", f"{median(found, lambda each: each.processor):.1f}",
            f"{median(found, lambda each: each.sampler):.1f}", f"{median(found, lambda each: each.rule):.1f}", f"{plain:.1f}",
            f"{median(found, lambda each: each.plain / each.beyond):.2f}", str(len(found)), f"{median(found, lambda each: each.whole):.1f}",
            f"{median(found, lambda each: each.whole_processor):.1f}", f"{share_of(found):.2f}"]


def share_of(found: list[Cycle]) -> float:
    """What a whole trial takes beside training and sampler, % of TRIAL_SECONDS."""
    return median(found, lambda each: each.whole) / (10 * TRIAL_SECONDS)


def simulated(url: str, workers: int, trials: int, seconds: float) -> list[outer_loop_workers.Share]:
    chosen = outer_loop_study.settings(f"{workers}-workers", workers * trials, sampler="random", pruner="none")
    outer_loop_study.create(url, chosen).store.close()
    return outer_loop_workers.run(url, chosen, workers, min(os.cpu_count() or 1, workers), trials, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default=",".join(map(str, MOST_MS)), help="trials that the studies have, with commas")
    parser.add_argument("--repeats", type=int, default=9, help="cycles of each kind")
    parser.add_argument("--workers", type=int, default=WORKERS, help="simulated workers, 0 for none")
    parser.add_argument("--write", action="store_true", help="write docs/speed.md")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server does not outlive us
    with tempfile.TemporaryDirectory(prefix="pp-bench-") as folder:
        os.environ[embedded.HOME_VARIABLE] = folder
        try:
            url = embedded.start()
            server = psutil.Process(int((Path(folder) / "postgres" / "postmaster.pid").read_text().splitlines()[0]))
            trained, load = Trained(model_folder(Settings())), os.getloadavg()[0]
            measured = {size: measure(url, size, given.repeats, trained, server, f"{folder}/out") for size in map(int, given.sizes.split(","))}
            shares = simulated(url, given.workers, WORKER_TRIALS, WORKER_SECONDS) if given.workers else []
        finally:
            embedded.stop()
    load = max(load, os.getloadavg()[0])
    body, good = report(measured, shares, load)
    print(body)
    if given.write:
        write_part("speed.md", "outer loop", body)
    return 0 if good else 1


def report(measured: dict[int, Measured], shares: list[outer_loop_workers.Share], load: float) -> tuple[str, bool]:
    """The part of docs/speed.md, and whether all targets are met."""
    header = ["trials", "sampler", "ask and tell beyond the sampler, ms", "target", "processor time of that, ms", "sampler, ms",
              "of ours the stopping rule, ms", "plain Optuna beyond memory, ms", "plain / ours", "cycles", "a whole trial beyond the sampler, ms",
              "processor time of that, ms", f"% of a {TRIAL_SECONDS:.0f} s trial (target ≤ {MOST_SHARE:g})"]
    rows = [rows_of(size, sampler, each) for size, found in measured.items() for sampler, each in found.cycles.items()]
    good = all(median(each, lambda one: one.beyond) <= MOST_MS[size] and share_of(each) <= MOST_SHARE
               for size, found in measured.items() for each in found.cycles.values())
    lines = [f"Made by `python -m benchmarks.outer_loop --write` on {os.cpu_count()} cores at a load of {load:.0f}: {PARAMETERS} parameters, "
             "medians of cycles.", "", table(header, rows), "", COUNTED, ""]
    for size, found in measured.items():
        joined = {sampler: statistics.median(seconds) for sampler, seconds in found.joined.items()}
        good &= max(joined.values()) <= MOST_JOIN
        lines.append(f"Joining a study of {size:,} trials takes {', '.join(f'{seconds:.2f} s with {sampler}' for sampler, seconds in joined.items())} "
                     f"(target ≤ {MOST_JOIN:.0f} s), medians of {JOININGS}; a look at it {found.look:.1f} ms.")
    if shares:
        failed = [share.error for share in shares if share.error]
        within = 100 * sum(share.trials for share in shares) / sum(share.whole for share in shares)
        good &= not failed and within >= LEAST_IN_TRIALS
        lines.append(f"{len(shares)} simulated workers on one store, {WORKER_TRIALS} trials of {WORKER_SECONDS:.0f} s each, random sampler, "
                     f"two rungs at most (three of yardstick and baselines), heartbeats: {len(failed)} errors, {within:.1f} % of their time in trials "
                     f"(target ≥ {LEAST_IN_TRIALS:.0f} %).")
        print(*failed[:3], sep="\n", file=sys.stderr)
    return "\n".join(lines), good


if __name__ == "__main__":
    sys.exit(main())
