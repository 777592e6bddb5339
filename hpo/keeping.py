"""Which tensors and training states stay on disk: --keep front deletes those of points that another one dominates."""

from __future__ import annotations

import logging
from pathlib import Path

from hpo import home
from hpo.study import Asked, Search
from hpo.tuning import Tuning
from storage import leases, results, standing
from storage.retrying import retrying
from trainers.base_model import unet_elements

log = logging.getLogger(__name__)

WEIGHTS, STATE = "weights", "state"  # kinds of artifacts
BYTES_PER_ELEMENT = 4  # subsets are kept in fp32
USUAL_FRONT = 20  # points: fronts of two objectives rarely have more
UNFINISHED = ".unfinished"  # what trainers.checkpoint calls a file that it is writing


def folder(search: Search) -> Path:
    return home.study_folder(search.settings.out, search.settings.study) / WEIGHTS


def path_for(search: Search, asked: Asked, steps: int) -> Path | None:
    """Where the tensors of a trial's rung go, None with --keep none."""
    if search.settings.keep == "none":
        return None
    return folder(search).absolute() / f"trial-{asked.number:05d}-{asked.at(steps).hash}.safetensors"


def state_path(search: Search, asked: Asked) -> Path:
    """Where the state of this trial's training goes at each rung. Whoever takes it up finds it there, and so does a longer training of the same."""
    given = search.settings.checkpoints
    states = Path(given) if given is not None else home.study_folder(search.settings.out, search.settings.study) / "states"
    return (states / f"{asked.candidate.root}-{asked.repeat}.safetensors").absolute()


def keep(search: Search, asked: Asked, tuning: Tuning) -> None:
    """Write the tensors of the rung that was just measured. Noted first: a worker that is killed must not leave a file that nobody knows of; and
    written before the rung is, so that no point of the front is without its tensors. Raises LeaseLost, OSError."""
    path = path_for(search, asked, tuning.done)
    if path is not None:
        retrying(lambda: results.record_artifact(search.store, asked.id, WEIGHTS, str(path)))
        tuning.keep(path)


def save(search: Search, asked: Asked, tuning: Tuning, last: bool) -> None:
    """Write the state of the training at a rung; at a trial's last one only if it may stay. Raises LeaseLost, OSError."""
    if last and not stays(search, asked):
        return
    retrying(lambda: leases.heartbeat(search.store, asked.id))  # a worker that lost its lease must not put an old state over a new one
    retrying(lambda: results.record_artifact(search.store, asked.id, STATE, str(state_path(search, asked))))
    tuning.save()


def stays(search: Search, asked: Asked) -> bool:
    """Whether a finished trial's tensors and state are kept."""
    return search.settings.keep == "all" or search.settings.keep == "front" and retrying(lambda: standing.is_on_front(search.store, asked.id))


def settle_state(search: Search, asked: Asked) -> None:
    """Delete the state of a trial that has ended, unless it stays."""
    path = state_path(search, asked)
    if not stays(search, asked) and path.exists() and discard(path):
        forget(search, path)


def forget(search: Search, path: Path) -> None:
    retrying(lambda: results.forget_artifact(search.store, str(path)))


def discard(path: Path) -> bool:
    """Delete a file of a trial, False if that is refused."""
    try:
        for file in (path, path.with_suffix(UNFINISHED)):
            file.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be deleted: %s", path, error.strerror)
        return False
    return True


def tidy(search: Search) -> None:
    """Delete what need not be kept: tensors of rungs that are not on the front (--keep front) or were never evaluated, states of trials off it.

    A file that is on another machine, or that may not be deleted, stays, and so does the note of it.
    """
    everything = search.settings.keep == "all"
    for path in map(Path, retrying(lambda: standing.droppable(search.store, search.id, WEIGHTS, STATE, everything=everything))):
        if is_seen(path) and discard(path):
            forget(search, path)


def is_seen(path: Path) -> bool:
    """Whether a noted file is on this machine. One of another machine is left to it, also where there is such a folder here."""
    return path.exists() or path.with_suffix(UNFINISHED).exists()


def disk_need(model: Path, keep: str, trials: int) -> str:
    """In words, how much disk the kept tensors can take: full fine-tuning keeps all of the U-Net, in fp32. model: as `model_files.find` takes it."""
    if keep == "none":
        return "disk: no tensors are kept (--keep none)"
    largest = unet_elements(model) * BYTES_PER_ELEMENT / 1e9
    count = trials if keep == "all" else min(trials, USUAL_FRONT)
    return f"disk: kept tensors (--keep {keep}) take at most {largest:.3f} GB a point, {largest * count:.2f} GB for {count} points"
