"""What faults may leave behind: processes, shared memory, temporary files, and files in the study's folder that belong to nothing."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from storage.embedded import HOME_VARIABLE

SHARED_MEMORY, SEGMENTS = Path("/dev/shm"), Path("/proc/sysvipc/shm")
SERVER_NAME = "postgres"


def processes(home: Path, servers: bool) -> list[psutil.Process]:
    """Processes other than this one that were started for this data folder; with `servers`, the database's among them."""
    found = []
    for process in psutil.process_iter():
        try:
            is_server = process.name().startswith(SERVER_NAME)
            ours = process.cwd().startswith(str(home)) if is_server else process.environ().get(HOME_VARIABLE) == str(home)
            if ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE and (servers or not is_server):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def shared_memory() -> set[str]:
    """Files of POSIX shared memory, and System V segments as `segment ID of process PID`."""
    files = {path.name for path in SHARED_MEMORY.iterdir()} if SHARED_MEMORY.is_dir() else set()
    rows = [line.split() for line in SEGMENTS.read_text().splitlines()[1:]] if SEGMENTS.exists() else []
    return files | {f"segment {row[1]} of process {row[4]}" for row in rows}


def is_in_use(name: str) -> bool:
    """Whether a living process has this shared memory: it may be that of a program beside this one."""
    if name.startswith("segment "):
        return psutil.pid_exists(int(name.rsplit(" ", 1)[1]))
    path = str(SHARED_MEMORY / name)
    for process in psutil.process_iter():
        try:
            if any(each.path.split(" (deleted)")[0] == path for each in process.memory_maps(grouped=False)):
                return True
        except (psutil.Error, OSError):
            continue
    return False


def forgotten_memory(before: set[str]) -> list[str]:
    """Shared memory that is new and that no living process has."""
    return sorted(name for name in shared_memory() - before if not is_in_use(name))


def temporary_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def stray_files(out: Path, hashes: set[str], roots: set[str]) -> list[str]:
    """Files among a study's weights and training states that belong to no point of its front; names of points' tensors end with a hash of `hashes`,
    those of states begin with a root of `roots`."""
    kept = [path for path in (*out.rglob("weights/*"), *out.rglob("states/*")) if path.is_file()]
    return sorted(path.name for path in kept
                  if not (path.suffix == ".safetensors" and (path.stem.rsplit("-", 1)[-1] in hashes or path.stem.split("-")[0] in roots)))
