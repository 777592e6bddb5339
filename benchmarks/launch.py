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
from pathlib import Path

import psutil
from sqlalchemy import text

from benchmarks.documents import table, write_part

TARGETS = {"minutes for the trials": 10, "first step, first run, s": 60, "first step, second run, s": 20, "peak memory, GiB": 4, "outside, %": 2}
LOOK_SECONDS = 0.25
GIB = 1 << 30
BUSY = """
SELECT sum(busy) / sum(span) FROM (
    SELECT l.worker, sum(c.seconds) AS busy, extract(epoch FROM max(l.settled_at) - min(l.leased_at)) AS span
    FROM peft_pareto.leases l JOIN peft_pareto.candidates c USING (trial_id)
    JOIN trials t USING (trial_id) WHERE t.state = 'COMPLETE' GROUP BY l.worker) AS workers
"""


class Memory(threading.Thread):
    """Peak of the proportional set sizes of all processes under a folder's server and a launch."""

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


def run_launch(home: Path, trials: int, extra: list[str]) -> tuple[float, float | None, float, str]:
    """Seconds in all, seconds to the first training step, peak GiB, standard error of one `hpo.launch`."""
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
    memory.over.set()
    if status:
        raise SystemExit(f"launch ended with {status}: {said[-2000:]}")
    return time.monotonic() - started, first[0] if first else None, memory.peak / GIB, said


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


def busy_share(home: Path) -> float:
    """Share of a worker's time, from its first trial to its last, that is fine-tuning, generating and scoring."""
    from storage import embedded
    from storage.engine import connect

    with connect(embedded.start(home)).connect() as connection:
        return float(connection.scalar(text(BUSY)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--write", action="store_true", help="write docs/speed.md")
    given, extra = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="pp-bench-") as folder:
        home = Path(folder)
        try:
            seconds, first, peak, _ = run_launch(home, given.trials, extra)
            busy = busy_share(home)
            _, second, _, _ = run_launch(home, given.trials + 2, extra)
        finally:
            from storage import embedded

            embedded.stop(home)
    figures = dict(zip(TARGETS, (seconds / 60, first, second, peak, 100 * (1 - busy))))
    rows = [[name, "–" if value is None else f"{value:.1f}", f"≤ {TARGETS[name]}"] for name, value in figures.items()]
    body = f"Made by `python -m benchmarks.launch --write` with {given.trials} trials on {os.cpu_count()} cores.\n\n" + table(["figure", "measured", "target"], rows)
    print(body)
    if given.write:
        write_part("speed.md", "launch", body)
    return 0 if all(value is not None and value <= TARGETS[name] for name, value in figures.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
