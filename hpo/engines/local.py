"""The local engine: worker processes on this machine, one per GPU or CPU core; a dead one is started again."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hpo import home
from hpo.command import ERROR, HUNG, USAGE
from hpo.ending import Ended
from hpo.engines.base import STOP_SECONDS, WORKER_GIB, Deaths, Engine, Watch, check_fits, cores, fitting_share, memory_gib, most_workers, threads_for
from hpo.errors import BadSetting, SearchError
from hpo.settings import Settings
from hpo.study import Search
from hpo.worker import STORAGE_VARIABLE, own_paths
from storage import standing
from storage.retrying import PATIENCE_SECONDS, retrying

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.1  # between looks at the processes
WATCH_SECONDS = 1.0  # between looks at the study for the display


@dataclass
class WorkerProcess:
    """A running `hpo.worker` and the file that its standard error goes to."""

    process: subprocess.Popen
    log_file: Path
    device: str
    started: float = field(default_factory=time.monotonic)

    def last_line(self) -> str:
        with self.log_file.open(errors="replace") as stream:
            return (deque((line.strip() for line in stream if line.strip()), maxlen=1) or ["it said nothing"])[0]

    def reason(self) -> str:
        """Why it ended, where it could say so."""
        said = self.last_line()
        if said.startswith(ERROR) and self.log_file.read_bytes().endswith(b"\n"):
            return said.removeprefix(ERROR)
        return f"a worker could not go on, and its log has no room for the reason ({self.log_file}): free some space there, then run the same command again"


def gpus(device: str) -> list[str]:
    """The devices that trials may use; empty where they use the CPU. BadSetting for --device cuda without a GPU."""
    kind, colon, _ = device.partition(":")
    if kind == "cpu":
        return []
    if colon or kind not in ("auto", "cuda"):
        return [device]
    found = visible_gpus()
    if not found and kind == "cuda":
        raise BadSetting("--device cuda: nvidia-smi lists no GPU, or CUDA_VISIBLE_DEVICES hides all; take auto or cpu, or name one such as cuda:0")
    return [f"cuda:{number}" for number in range(found)]


def visible_gpus() -> int:
    """How many CUDA devices a process started now would see, without loading torch."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    count = len([line for line in listed.splitlines() if line.startswith("GPU ")])
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return count
    named = [word.strip() for word in chosen.split(",")]
    # CUDA ignores everything from the first name on that it does not know.
    known = next((i for i, word in enumerate(named) if not word or word.startswith("-") or word == "NoDevFiles"), len(named))
    return min(known, count)


def default_workers(devices: list[str]) -> int:
    """One a GPU; without any, one a CPU core, as memory allows: measured to give the most trials an hour (docs/speed.md)."""
    if devices:
        return len(devices)
    return max(min(cores(), int(memory_gib() / WORKER_GIB)), 1)


def shared(settings: Settings, devices: list[str]) -> str:
    """The words that say how so many workers as were asked for share the GPUs, empty where they cannot: Ray takes no one GPU by its number."""
    share = fitting_share(len(devices), settings.workers) if settings.device in ("auto", "cuda") and settings.workers <= most_workers() else 0
    return f"share them out with --engine ray --gpus-per-trial {share:g}, or " if share else ""


class Local(Engine):
    name = "local"

    def check(self, settings: Settings) -> None:
        devices, workers = gpus(settings.device), settings.workers
        if devices and workers is not None and workers > len(devices):
            raise BadSetting(f"--workers {workers}: there {'is 1 GPU' if len(devices) == 1 else f'are {len(devices)} GPUs'}, and each worker of the local engine takes a "
                             f"whole one; {shared(settings, devices)}take at most {min(len(devices), most_workers())}")
        check_fits(workers)

    def places(self, settings: Settings) -> int:
        return settings.workers or min(default_workers(gpus(settings.device)), settings.trials)

    def run(self, search: Search, url: str, watch: Watch) -> Ended:
        settings = search.settings
        devices = gpus(settings.device) or ["cpu"]
        count = self.places(settings)
        threads = threads_for(count)
        logs = home.logs_folder(settings.out, settings.study)
        logs.mkdir(parents=True, exist_ok=True)
        deaths = Deaths(count, partial(standing.rung_count, search.store, search.id))
        paths = [f"--{name}={value}" for name, value in own_paths(search).items()]
        workers: list[WorkerProcess] = []
        watched = -math.inf
        try:
            for i in range(count):
                workers.append(self.start(settings, url, devices[i % len(devices)], threads, logs / f"worker-{i}.log", paths))
            while workers:
                for worker in [each for each in workers if each.process.poll() is not None]:
                    workers.remove(worker)
                    if worker.process.returncode == USAGE:
                        raise SearchError(worker.reason())
                    if worker.process.returncode in (0, 1) and retrying(search.state) is not None:  # 1 is an unforeseen exception too
                        continue
                    why = "it hung" if worker.process.returncode == HUNG else f"status {worker.process.returncode}"
                    log.warning("a worker died (%s), starting another; its log is %s", why, worker.log_file)
                    deaths.note(time.monotonic() - worker.started, f"{worker.last_line()} (log: {worker.log_file})")
                    workers.append(self.start(settings, url, worker.device, threads, worker.log_file, paths))
                if time.monotonic() - watched > WATCH_SECONDS:
                    watch()
                    watched = time.monotonic()
                time.sleep(LOOK_SECONDS)
        finally:
            self.stop(workers)
        return retrying(search.state) or Ended(1, "the study has not ended, though all workers have")

    def start(self, settings: Settings, url: str, device: str, threads: int, log_file: Path, paths: list[str]) -> WorkerProcess:
        command = [sys.executable, "-m", "hpo.worker", f"--study={settings.study}", "--device", device, "--threads", str(threads), "--with-parent",
                   f"--wait={PATIENCE_SECONDS:g}", *paths]  # launch has met the store: if it does not answer now, it restarts
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", STORAGE_VARIABLE: url}
        with log_file.open("a") as stream:
            # Its own session, so that Ctrl-C reaches launch alone, which then stops its workers in order.
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stream, stderr=stream, env=environment, start_new_session=True)
        return WorkerProcess(process, log_file, device)

    def stop(self, workers: list[WorkerProcess]) -> None:
        """Let workers give their trials back; those that do not end are killed, and their leases run out."""
        for worker in workers:
            worker.process.terminate()
        until = time.monotonic() + STOP_SECONDS
        for worker in workers:
            try:
                worker.process.wait(max(until - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
