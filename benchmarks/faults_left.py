"""What faults may leave behind: processes, shared memory, temporary files, and files in the study's folder that belong to nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import psutil

from storage.embedded import HOME_VARIABLE

SHARED_MEMORY, SEGMENTS = Path("/dev/shm"), Path("/proc/sysvipc/shm")
SEGMENT = "System V segment "
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
    """What there is on this machine: files of POSIX shared memory by name, System V segments by SEGMENT and their id."""
    files = {path.name for path in SHARED_MEMORY.iterdir()} if SHARED_MEMORY.is_dir() else set()
    rows = [line.split() for line in SEGMENTS.read_text().splitlines()[1:]] if SEGMENTS.exists() else []
    return files | {SEGMENT + row[1] for row in rows}


def mapped_memory(pids: Iterable[int]) -> set[str]:
    """What of it these processes have; programs beside this one have some too, which is none of ours."""
    found = set()
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        except OSError:  # it has ended
            continue
        for columns in (line.split(maxsplit=5) for line in lines if "/SYSV" in line or f"{SHARED_MEMORY}/" in line):
            path = columns[5].removesuffix(" (deleted)")
            found.add(SEGMENT + columns[4] if path.startswith("/SYSV") else path.removeprefix(f"{SHARED_MEMORY}/"))
    return found


def temporary_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def stray_pictures(folder: Path, noted: set[str]) -> list[str]:
    """Files among the pictures of trials' notes that no trial notes; noted: ids of Optuna's artifacts, which are their names."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name not in noted)


def stray_files(out: Path, hashes: set[str], roots: set[str]) -> list[str]:
    """Files among a study's weights and training states that belong to no point of its front; names of points' tensors end with a hash of `hashes`,
    those of states with a root of `roots` and a repeat."""
    def belongs(path: Path) -> bool:
        named = path.stem.split("-")
        return path.suffix == ".safetensors" and (named[-1] in hashes if path.parent.name == "weights" else named[-2] in roots)

    kept = [path for path in (*out.rglob("weights/*"), *out.rglob("states/*")) if path.is_file()]
    return sorted(path.name for path in kept if not belongs(path))
