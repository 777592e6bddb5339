"""Arrays that are computed once and shared: memory-mapped, keyed by content, safe against two processes and a crash."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from trainers.locks import locked


def key_of(*parts: object) -> str:
    """A short name for whatever JSON can write; equal parts give equal names."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def remember(folder: Path, kind: str, key: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays under folder/kind/key, made by `make` if they are not there yet; read-only memory maps.

    One process makes them while others wait, and say for whom where that takes long. They appear by a rename, so a process that is killed leaves only a
    temporary folder, which the next one removes. Raises OSError with its errno and the folder if the disk is full, and
    ValueError for Python objects; nothing half-written is then kept.
    """
    home = folder / kind / key
    if not home.is_dir():
        home.parent.mkdir(parents=True, exist_ok=True)
        with locked(home.with_name(f"{home.name}.lock"), f"the cache's {kind}"):
            if not home.is_dir():
                write(home, make())
    return {file.stem: np.load(file, mmap_mode="r") for file in sorted(home.glob("*.npy"))}


def write(home: Path, arrays: dict[str, np.ndarray]) -> None:
    unfinished = home.with_name(home.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed; the lock is ours
    unfinished.mkdir()
    try:
        for name, array in arrays.items():
            with (unfinished / f"{name}.npy").open("wb") as stream:
                # Given a real file, numpy writes through C, whose error on a full disk comes without an errno.
                np.save(SimpleNamespace(write=stream.write), np.asarray(array, order="C"), allow_pickle=False)
                stream.flush()
                os.fsync(stream.fileno())
        unfinished.rename(home)
    except OSError as error:
        error.filename = error.filename or str(home)
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
