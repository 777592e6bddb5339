"""The local engine: worker processes on this machine, one per GPU or CPU core; a dead one is started again."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from hpo import home
from hpo.command import USAGE
from hpo.engines.base import Engine, Watch
from hpo.errors import SearchError
from hpo.settings import Settings

log = logging.getLogger(__name__)

MOST_QUICK_DEATHS = 3  # of workers that died within QUICK_SECONDS of their start: more would be a loop
QUICK_SECONDS = 60.0
STOP_SECONDS = 20.0  # for workers to give their trials back
GIB = 1 << 30
WORKER_GIB = 1.5  # of memory that a worker with the miniature may take


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


def gpus(device: str) -> list[str]:
    """The CUDA devices that trials may use; empty where there is none or --device names the CPU."""
    if device.startswith("cpu"):
        return []
    if device.startswith("cuda:"):
        return [device]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = len([line for line in listed.splitlines() if line.startswith("GPU ")]) if visible is None else len([v for v in visible.split(",") if v.strip()])
    return [f"cuda:{number}" for number in range(count)]


def default_workers(devices: list[str]) -> int:
    """One a GPU; without any, one a CPU core, as memory allows: measured to give the most trials an hour (docs/speed.md)."""
    if devices:
        return len(devices)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    except (ValueError, OSError):
        memory = cores * WORKER_GIB
    return max(min(cores, int(memory / WORKER_GIB)), 1)


class Local(Engine):
    name = "local"

    def run(self, settings: Settings, url: str, watch: Watch) -> int:
        devices = gpus(settings.device)
        count = settings.workers or default_workers(devices)
        threads = 1 if not devices and settings.workers is None else max((os.cpu_count() or 1) // count, 1)
        logs = home.study_folder(settings.out, settings.study) / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        workers = [self.start(settings, url, devices[i % len(devices)] if devices else "cpu", threads, logs / f"worker-{i}.log") for i in range(count)]
        quick_deaths = 0
        try:
            while workers:
                for worker in list(workers):
                    status = worker.process.poll()
                    if status is None:
                        continue
                    workers.remove(worker)
                    if status in (0, 1):
                        continue  # the study has ended; the others notice by themselves
                    if status == USAGE:
                        raise SearchError(worker.last_line().removeprefix("error: "))
                    quick_deaths += time.monotonic() - worker.started < QUICK_SECONDS
                    if quick_deaths > MOST_QUICK_DEATHS:
                        raise SearchError(f"workers die at once (status {status}): {worker.last_line()}; see {worker.log_file}")
                    log.warning("a worker died (status %s: %s), starting another", status, worker.last_line())
                    workers.append(self.start(settings, url, worker.device, threads, worker.log_file))
                watch()
                time.sleep(0.5)
        finally:
            self.stop(workers)
        return 0

    def start(self, settings: Settings, url: str, device: str, threads: int, log_file: Path) -> WorkerProcess:
        command = [sys.executable, "-m", "hpo.worker", "--study", settings.study, "--storage", url, "--device", device,
                   "--threads", str(threads), "--with-parent"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
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
