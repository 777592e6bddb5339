"""`python -m benchmarks.launch` times the defaults as a new user meets them: 20 trials, first step, memory, overhead.

It runs `python -m hpo.launch` twice in a data folder of its own: once from nothing, once more for a few trials.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
from sqlalchemy import text

from benchmarks.documents import table, write_part

OUTSIDE, CURVE, IDLE = "outside fine-tuning, generation and scoring, %", "held-out loss during fine-tuning, %", "idle at the end, %"
TARGETS = {"minutes for the trials": 10, "first step, first run, s": 60, "first step, second run, s": 20,
           "peak memory, PSS of all processes summed, GiB": 4, OUTSIDE: 2, CURVE: None, IDLE: None}
COUNTED = ("What is outside: the launch has workers × the time from the first training step to its end. Of that is taken what trials spent in "
           "fine-tuning, generating and scoring, the curves of the held-out loss, and the idle time at the end, when a worker finds no trial left while another still runs its last one. "
           "The rest is outside: the other workers' start, putting parameters in and restoring them, checkpoints, notes, the sampler, the database, "
           "the drawing of the front. The held-out loss is looked at as often as --held-out-every says, and the idle time depends on how the last trials fall: "
           "they have lines of their own.")
LOOK_SECONDS = 0.25
GIB = 1 << 30
# Seconds of all workers together.
SPENT = """
WITH workers AS (SELECT worker, max(settled_at) AS last FROM peft_pareto.leases GROUP BY worker)
SELECT count(*) AS workers, extract(epoch FROM sum((SELECT max(last) FROM workers) - last))::float AS idle
FROM workers
"""
EVALUATED = re.compile(r"trial (\d+) is evaluated at \d+ steps, after [\d.]+ s \((.+)\)$", re.MULTILINE)  # in workers' logs; from the trial's beginning on


@dataclass(frozen=True)
class Run:
    """Seconds of one launch in all, seconds until its first training step is done (None: none was seen), peak memory in GiB."""

    seconds: float
    first_step: float | None
    peak: float


class Memory(threading.Thread):
    """Peak of the sum of the proportional set sizes of all processes under a folder's server and a launch."""

    def __init__(self, root: psutil.Process, home: Path):
        super().__init__(daemon=True)
        self.root, self.home, self.peak, self.over = root, home, 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(1.0):
            total = 0
            for process in self.processes():
                try:
                    total += process.memory_full_info().pss  # shared pages count once
                except psutil.Error:
                    continue
            self.peak = max(self.peak, total)

    def processes(self) -> list[psutil.Process]:
        found = [self.root, *self.root.children(recursive=True)] if self.root.is_running() else []
        for process in psutil.process_iter(["cmdline"]):
            if any(str(self.home) in word for word in process.info["cmdline"] or ()) and process not in found:
                found += [process, *process.children(recursive=True)]
        return list(dict.fromkeys(found))


def run_launch(home: Path, trials: int, extra: list[str]) -> Run:
    environment = {**os.environ, "PEFT_PARETO_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "hpo.launch", "--trials", str(trials), "--out", str(home / "out"), *extra],
                               env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    memory = Memory(psutil.Process(process.pid), home)
    memory.start()
    first: list[float] = []
    watcher = threading.Thread(target=watch_first_step, args=(home, started, first, process), daemon=True)
    watcher.start()
    said = process.stderr.read()
    status = process.wait()
    seconds = time.monotonic() - started
    memory.over.set()
    if status:
        raise SystemExit(f"launch ended with {status}: {said[-2000:]}")
    return Run(seconds, first[0] if first else None, memory.peak / GIB)


def watch_first_step(home: Path, started: float, first: list[float], process: subprocess.Popen) -> None:
    """The moment at which a lease's stage first says that a step is done."""
    from storage import embedded
    from storage.engine import connect

    while process.poll() is None and not (home / "postgres" / "postmaster.pid").exists():
        time.sleep(LOOK_SECONDS)
    time.sleep(1)
    engine = connect(embedded.start(home))
    while process.poll() is None and not first:
        try:
            with engine.connect() as connection:
                if connection.scalar(text("SELECT count(*) FROM peft_pareto.leases WHERE outcome IS NULL AND stage ~ '^step'")):
                    first.append(time.monotonic() - started)
        except Exception as error:  # the tables are being made
            if not re.search("does not exist|undefined", str(error), re.IGNORECASE):
                raise
        time.sleep(LOOK_SECONDS)


def shares(home: Path, run: Run) -> tuple[float, float, float] | None:
    """Percent of all workers' time, from the first training step to the end, that is outside, that goes to curves of the held-out loss, and that
    is idle at the end (COUNTED)."""
    from hpo.inner_loop import LOSS_CURVE
    from storage import embedded
    from storage.engine import connect

    if run.first_step is None:
        return None
    with connect(embedded.start(home)).connect() as connection:
        spent = connection.execute(text(SPENT)).one()
    logs = "".join(path.read_text(encoding="utf-8") for path in (home / "out").glob("*/logs/*.log"))
    busy = busy_seconds(logs)
    span = spent.workers * (run.seconds - run.first_step)
    return tuple(100 * seconds / span for seconds in (span - sum(busy.values()) - spent.idle, busy[LOSS_CURVE], spent.idle))


def busy_seconds(logs: str) -> dict[str, float]:
    """Seconds of all trials in workers' logs, by what they went to."""
    last = dict(EVALUATED.findall(logs))  # of each trial
    found = Counter()
    for part in (part for parts in last.values() for part in parts.split(", ")):
        stage, seconds = part.rsplit(maxsplit=1)
        found[stage] += float(seconds)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--write", action="store_true", help="write docs/speed.md")
    given, extra = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="pp-bench-") as folder:
        home = Path(folder)
        try:
            first = run_launch(home, given.trials, extra)
            where = shares(home, first) or (None, None, None)
            second = run_launch(home, given.trials + 2, extra)
        finally:
            from storage import embedded

            embedded.stop(home)
    figures = dict(zip(TARGETS, (first.seconds / 60, first.first_step, second.first_step, first.peak, *where)))
    rows = [[name, "–" if value is None else f"{value:.1f}", "–" if TARGETS[name] is None else f"≤ {TARGETS[name]}"] for name, value in figures.items()]
    body = (f"Made by `python -m benchmarks.launch --write` with {given.trials} trials on {os.cpu_count()} cores.\n\n"
            f"{table(['figure', 'measured', 'target'], rows)}\n\n{COUNTED}")
    print(body)
    if given.write:
        write_part("speed.md", "launch", body)
    return 0 if all(figures[name] is not None and figures[name] <= most for name, most in TARGETS.items() if most is not None) else 1


if __name__ == "__main__":
    sys.exit(main())
