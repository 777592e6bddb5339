"""Which trials' tensors stay on disk: --keep front deletes those of points that another one dominates."""

from __future__ import annotations

import logging
from pathlib import Path

from hpo import home
from hpo.study import Asked, Search
from storage import results
from trainers.base_model import unet_elements

log = logging.getLogger(__name__)

WEIGHTS = "weights"
BYTES_PER_ELEMENT = 4  # subsets are kept in fp32
USUAL_FRONT = 20  # points: fronts of two objectives rarely have more
LIVE = ("RUNNING", "WAITING")
UNFINISHED = ".unfinished"  # what trainers.checkpoint calls a file that it is writing


def folder(search: Search) -> Path:
    return home.study_folder(search.settings.out, search.settings.study) / WEIGHTS


def path_for(search: Search, asked: Asked) -> Path | None:
    """Where this trial's tensors go, None with --keep none."""
    if search.settings.keep == "none":
        return None
    return folder(search).absolute() / f"trial-{asked.number:05d}-{asked.candidate.hash}.safetensors"


def state_path(search: Search, asked: Asked) -> Path | None:
    """Where the state of this trial's training goes on the way, None without --checkpoint-every. A second attempt finds that of the first."""
    if not search.settings.checkpoint_every:
        return None
    return (home.study_folder(search.settings.out, search.settings.study) / "states" / f"{asked.candidate.hash}-{asked.seed_number}.safetensors").absolute()


def record(search: Search, asked: Asked, path: Path) -> None:
    """Note where a trial's tensors are going to be. Raises LeaseLost."""
    results.record_artifact(search.store, asked.id, WEIGHTS, str(path))


def drop(search: Search, path: Path | None) -> None:
    """Delete the tensors, and the note of them, of a trial of ours that did not finish."""
    if path is not None and discard(path):
        results.forget_artifact(search.store, str(path))


def discard(path: Path | None) -> bool:
    """Delete a trial's tensors, False if that is refused."""
    try:
        for file in (path, path.with_suffix(UNFINISHED)) if path is not None else ():
            file.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be deleted: %s", path, error.strerror)
        return False
    return True


def tidy(search: Search) -> None:
    """Delete what need not be kept: tensors of trials that did not finish, and with --keep front of those off the front.

    A file that is on another machine, or that may not be deleted, stays, and so does the note of it.
    """
    noted = results.artifacts(search.store, search.id, WEIGHTS)  # before the trials: one that starts in between is then not among them
    states = {row["trial"]: row for row in results.trials(search.store, search.settings.study)}
    for number, paths in noted.items():
        if is_kept(states[number], search.settings.keep):
            continue
        for path in map(Path, paths):
            if is_seen(path) and discard(path):
                results.forget_artifact(search.store, str(path))


def is_seen(path: Path) -> bool:
    """Whether a noted file is on this machine. One of another machine is left to it, also where there is such a folder here."""
    return path.exists() or path.with_suffix(UNFINISHED).exists()


def is_kept(trial: dict, keep: str) -> bool:
    """Whether a trial's tensors stay, by its row of the view trial_scores."""
    if trial["state"] in LIVE or trial["on_front"]:
        return True
    return keep == "all" and trial["state"] in ("COMPLETE", "PRUNED")


def disk_need(model: Path, keep: str, trials: int) -> str:
    """In words, how much disk the kept tensors can take: full fine-tuning keeps all of the U-Net, in fp32. model: as `model_files.find` takes it."""
    if keep == "none":
        return "disk: no tensors are kept (--keep none)"
    largest = unet_elements(model) * BYTES_PER_ELEMENT / 1e9
    count = trials if keep == "all" else min(trials, USUAL_FRONT)
    return f"disk: kept tensors (--keep {keep}) take at most {largest:.3f} GB a point, {largest * count:.2f} GB for {count} points"
