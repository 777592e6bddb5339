"""Which tensors and training states stay on disk: --keep front deletes those of points that another one dominates for good."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hpo import home
from hpo.errors import BadSetting
from storage import leases, results, standing
from storage.retrying import retrying
from trainers.base_model import unet_elements
from trainers.checkpoint import UNFINISHED

if TYPE_CHECKING:
    from hpo.inner_loop import InnerLoop
    from hpo.settings import Settings
    from hpo.study import Asked, Search
    from hpo.tuning import Tuning

log = logging.getLogger(__name__)

WEIGHTS, STATE = "weights", "state"  # kinds of artifacts
BYTES_PER_ELEMENT = 4  # subsets are kept in fp32
USUAL_FRONT = 20  # points: fronts of two objectives rarely have more


def folder(search: Search) -> Path:
    return home.study_folder(search.settings.out, search.settings.study) / WEIGHTS


def path_for(search: Search, asked: Asked, steps: int) -> Path | None:
    """Where the tensors of a trial's rung go, None with --keep none."""
    if search.settings.keep == "none":
        return None
    return folder(search).absolute() / f"trial-{asked.number:05d}-{search.token}-{asked.at(steps).hash}.safetensors"


def states(settings: Settings) -> Path:
    """The study's folder of training states."""
    return (home.study_folder(settings.out if settings.checkpoints is None else settings.checkpoints, settings.study) / "states").absolute()


def check_writable(settings: Settings, launches: bool = False) -> None:
    """BadSetting where tensors or training states cannot be written: the study's folder may be that of another user or machine. launches: what launch itself
    writes too, and no folder is made."""
    out = home.study_folder(settings.out, settings.study)
    wanted = [("out", out, "the front's picture" if launches else "kept tensors")] if launches or settings.keep != "none" else []
    wanted += [("out" if settings.checkpoints is None else "checkpoints", states(settings), "training states")]
    for name, folder, what in wanted:
        try:
            if launches:  # in the folder above, where there is none yet
                folder = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
            else:
                folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise BadSetting(f"--{name} {getattr(settings, name)}: {what} cannot be written there ({error.strerror}), give a folder of this machine") from error


def state_path(search: Search, asked: Asked, number: int | str | None = None) -> Path:
    """Where the state of this trial's training goes at each rung: whoever takes it up finds it there. number: of another trial of the same root and repeat,
    or * for all."""
    trial = f"{asked.number:05d}" if number is None else number
    return states(search.settings) / f"trial-{trial}-{search.token}-{asked.candidate.root}-{asked.repeat}.safetensors"


def inherit_state(search: Search, inner: InnerLoop, asked: Asked, most: int) -> None:
    """Let a trial that has no state of its own begin with the longest that was kept of a shorter training of the same, up to `most` steps. One of its own
    beyond them is deleted: a fail-over of the database has lost the rung that it was written at. Raises LeaseLost, OSError."""
    own = state_path(search, asked)
    if (inner.kept_step(asked.candidate, asked.repeat, own) or 0) > most:
        note_state(search, asked)
        log.warning("trial %d: its state is beyond the rung at %d steps, which is not stored; it begins anew", asked.number, most)
        own.unlink(missing_ok=True)
    if not asked.known or own.exists():
        return
    found = [(step, path) for path in own.parent.glob(state_path(search, asked, "*").name)
             if (step := inner.kept_step(asked.candidate, asked.repeat, path)) is not None and step <= most]
    if found:
        note_state(search, asked)
        with suppress(FileNotFoundError):  # deleted meanwhile: the training begins anew
            inner.checkpoints(asked.candidate, "train", max(found)[1]).copy(own)


def keep(search: Search, asked: Asked, tuning: Tuning) -> None:
    """Write the tensors of the rung that was just measured. Noted first: a worker that is killed must not leave a file that nobody knows of; and
    written before the rung is, so that no point of the front is without its tensors. Raises LeaseLost, OSError."""
    path = path_for(search, asked, tuning.done)
    if path is not None:
        note(search, asked, WEIGHTS, path)
        tuning.keep(path)


def save(search: Search, asked: Asked, tuning: Tuning, last: bool) -> None:
    """Write the state of the training at a rung; at a trial's last one only if it may stay. Raises LeaseLost, OSError."""
    if not last or stays(search, asked):
        tuning.save()


def note_state(search: Search, asked: Asked) -> None:
    """To be called before a state is written: a worker that lost its lease must not put an old state over a new one, and a file must be known of. Raises
    LeaseLost."""
    retrying(lambda: leases.heartbeat(search.store, asked.id))
    note(search, asked, STATE, state_path(search, asked))


def note(search: Search, asked: Asked, kind: str, path: Path) -> None:
    """Note a file before it is written, and delete what workers that died, or lost the trial, left of it half-written. That is looked for before the lease is, by
    which the note is accepted: what another worker writes that takes the trial up from now on is not found. Raises LeaseLost, OSError."""
    left = list(unfinished(path))
    retrying(lambda: results.record_artifact(search.store, asked.id, kind, str(path)))
    for each in left:
        each.unlink(missing_ok=True)


def stays(search: Search, asked: Asked) -> bool:
    """Whether a finished trial's tensors and state are kept."""
    return search.settings.keep == "all" or search.settings.keep == "front" and retrying(lambda: standing.is_contender(search.store, asked.id))


def clear(search: Search, asked: Asked) -> None:
    """Delete what this worker wrote after it had lost the trial, of which there is no note any more: another worker has done with that file, and nobody will
    note it again, since the trial has ended or the rung is evaluated. What is noted is that worker's now, and `tidy` sees to it. A trial that a fail-over of
    the database has lost has ended."""
    lease = retrying(lambda: leases.read(search.store, asked.id))
    ended = lease is None or lease.outcome is not None
    evaluated = retrying(lambda: standing.evaluated_at(search.store, asked.id))
    paths = [path for steps in asked.rungs if (ended or steps in evaluated) and (path := path_for(search, asked, steps)) is not None]
    paths += [state_path(search, asked)] if ended else []
    noted = {path for kind in (WEIGHTS, STATE) for path in retrying(partial(results.artifacts, search.store, search.id, kind)).get(asked.number, ())}
    for path in paths:
        if str(path) not in noted:
            discard(path)


def forget(search: Search, path: Path) -> None:
    retrying(lambda: results.forget_artifact(search.store, str(path)))


def discard(path: Path) -> bool:
    """Delete a file of a trial, False if that is refused."""
    try:
        for file in (path, *unfinished(path)):
            file.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be deleted: %s", path, error.strerror)
        return False
    return True


def tidy(search: Search) -> None:
    """Delete what need not be kept: tensors of rungs that cannot be on the front (--keep front) or were never evaluated, states of trials
    without such a rung. A worker looks at all files once, and then at those of which something changed.

    A file that is on another machine, or that may not be deleted, stays, and so does the note of it.
    """
    now = retrying(lambda: standing.moment(search.store, search.id))
    found = retrying(lambda: standing.droppable(search.store, search.id, WEIGHTS, STATE, search.settings.keep, search.tidied))
    for path in seen(map(Path, found)):
        if discard(path):
            forget(search, path)
    search.tidied = now


def unfinished(path: Path) -> Iterator[Path]:
    """What is being written, or was when a worker died, for this file."""
    return path.parent.glob(f"{path.name}.*{UNFINISHED}")


def seen(paths: Iterable[Path]) -> list[Path]:
    """Those noted files that are on this machine, if only half-written. One of another machine is left to it, also where there is such a folder here. Each
    folder is listed once: there may be thousands of files."""
    by_folder: dict[Path, list[Path]] = {}
    for path in paths:
        by_folder.setdefault(path.parent, []).append(path)
    return [path for folder, noted in by_folder.items() if (names := names_in(folder)) for path in noted if path.name in names]


def names_in(folder: Path) -> set[str]:
    """Of the files in a folder, those half-written by the name that they were to have; none if there is no such folder, or it may not be read."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        log.warning("%s cannot be read, so nothing is deleted there: %s", folder, error.strerror)
        return set()
    return {name.removesuffix(UNFINISHED).rpartition(".")[0] if name.endswith(UNFINISHED) else name for name in names}


def disk_need(model: Path, keep: str, trials: int) -> str:
    """In words, how much disk the kept tensors can take: full fine-tuning keeps all of the U-Net, in fp32. model: as `model_files.find` takes it."""
    if keep == "none":
        return "disk: no tensors are kept (--keep none)"
    largest = unet_elements(model) * BYTES_PER_ELEMENT / 1e9
    count = trials if keep == "all" else min(trials, USUAL_FRONT)
    return f"disk: kept tensors (--keep {keep}) take at most {largest:.3f} GB a point, {largest * count:.2f} GB for {count} points"
