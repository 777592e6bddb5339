"""`python -m benchmarks.workers` says how many workers of how many threads give the most trials an hour on this CPU.

Every arrangement runs the same trials, several times in turn, since other work on the machine changes by the minute.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

from benchmarks.documents import table, write_part

TRIALS = 4  # a round: enough to share out evenly
STEPS = 100


def one_worker(share: int, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    from hpo.inner_loop import InnerLoop
    from hpo.settings import Settings
    from hpo.spaces.reference import reference_candidate

    inner = InnerLoop(Settings(), "cpu")
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(share):
        inner.evaluate(reference_candidate(("full", "lora")[number % 2], STEPS), number)
    print("done", flush=True)


def round_of(workers: int, threads: int) -> float:
    """Seconds that TRIALS trials take, after all workers are loaded."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "benchmarks.workers", "--share", str(TRIALS // workers), "--threads", str(threads)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(workers)]
    for process in processes:
        if process.stdout.readline().strip() != "ready":
            raise SystemExit("a worker did not start")
    started = time.monotonic()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.stdout.readline()
    seconds = time.monotonic() - started
    for process in processes:
        process.wait()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write docs/speed.md")
    given = parser.parse_args()
    if given.share:
        return one_worker(given.share, given.threads)
    cores = os.cpu_count() or 1
    arrangements = sorted({(1, cores), (1, 1), (cores, 1), (max(cores // 2, 1), min(2, cores))})
    seconds = {arrangement: [] for arrangement in arrangements}
    for _ in range(given.rounds):
        for arrangement in arrangements:
            seconds[arrangement].append(round_of(*arrangement))
            print(arrangement, f"{seconds[arrangement][-1]:.1f} s", flush=True)
    medians = {arrangement: statistics.median(each) for arrangement, each in seconds.items()}
    slowest = medians[1, cores]
    rows = [[str(workers), str(threads), f"{3600 * TRIALS / medians[workers, threads]:.0f}", f"{slowest / medians[workers, threads]:.2f}"]
            for workers, threads in arrangements]
    body = (f"Made by `python -m benchmarks.workers --write` on {cores} cores: {TRIALS} trials of {STEPS} steps, median of {given.rounds} rounds in turn.\n\n"
            + table(["workers", "threads each", "trials an hour", "against one worker with all threads"], rows))
    print(body)
    if given.write:
        write_part("speed.md", "workers", body)
    return None


if __name__ == "__main__":
    main()
