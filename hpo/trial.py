"""One trial: ask → candidate → fine-tune → generate → score → tell. The same for every engine."""

from __future__ import annotations

import errno
import logging
import time
from pathlib import Path

import torch

from hpo import keeping, notes, stopping
from hpo.errors import DISK_TROUBLE, DiskTrouble
from hpo.inner_loop import InnerLoop, Result
from hpo.stopping import Stopped
from hpo.study import Asked, Search
from metrics.errors import MetricError
from storage import leases, results
from storage.errors import LeaseLost, StorageError, StorageUnreachable
from trainers.errors import TrainerError

log = logging.getLogger(__name__)

LONGEST_REASON = 500  # characters
OUTAGE_SECONDS = 120.0  # how long a database may be away before a worker gives up
RETRY_SECONDS = 1.0
SECONDS = "seconds"  # on a trial: what its time went to


def run_trial(search: Search, inner: InnerLoop, asked: Asked) -> str:
    """Run what was asked and tell the study; gives the outcome: finished, failed or lost.

    A failure is stored with its reason and the search goes on: the candidate's own (a loss that is not finite, no memory
    for it) is final, any other lets it be tried again. Raises Stopped after giving the trial back, DiskTrouble after the
    same, since the next trial would find the disk as full, and StorageUnreachable where the database is away: then the
    lease runs out, and the candidate is tried again.
    """
    kept = keeping.path_for(search, asked)
    try:
        outcome = evaluate(search, inner, asked, kept)
    except LeaseLost as error:
        log.warning("trial %d was lost: %s", asked.number, error)
        outcome = "lost"
    except (Stopped, KeyboardInterrupt):
        release(search, asked, kept)
        raise
    except StorageError:
        raise  # nobody knows whether the trial was told, so its tensors stay until `tidy`
    except Exception as error:  # whatever a trial raises is stored with it, and the search goes on
        if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
            release(search, asked, kept)
            raise DiskTrouble(error) from error
        outcome = fail(search, asked, error)
    if outcome != "finished":
        keeping.drop(search, kept)
    if outcome != "lost":  # whoever tries again goes on from there
        keeping.discard(keeping.state_path(search, asked))
    keeping.tidy(search)
    return outcome


def evaluate(search: Search, inner: InnerLoop, asked: Asked, kept: Path | None) -> str:
    """Fine-tune, generate and score under a heartbeat, then write and tell; what is written is not cut in two by a signal."""
    with leases.Heartbeat(search.store, asked.id) as heartbeat:
        def on_stage(stage: str) -> None:
            if heartbeat.lost.is_set():
                raise LeaseLost(asked.id, search.store.worker)
            heartbeat.stage(stage)

        def on_loss(step: int, train: float, twin: float) -> None:
            try:
                results.record_curve(search.store, asked.id, {step: (train, twin)})
            except StorageUnreachable as error:  # all points are written again at the end
                log.warning("trial %d: a point of its loss curve could not be written: %s", asked.number, error)

        if kept is not None:  # noted first: a worker that is killed must not leave a file that nobody knows of
            keeping.record(search, asked, kept)
        with stopping.interruptible():
            result = inner.evaluate(asked.candidate, asked.seed_number, on_stage, kept, keeping.state_path(search, asked), on_loss)
        return write(search, asked, result)


def write(search: Search, asked: Asked, result: Result) -> str:
    """Write and tell, again and again while the database is away for a moment: every part of it may be done twice."""
    until = time.monotonic() + OUTAGE_SECONDS
    while True:
        try:
            search.record(asked, result.trainable, result.trainable_share)
            results.record_curve(search.store, asked.id, result.curve)
            notes.write(search, asked, result)
            with leases.translated():
                asked.trial.set_user_attr(SECONDS, result.seconds)
            return search.finish(asked, result.scores, result.seconds["total"])
        except StorageUnreachable as error:
            if time.monotonic() > until:
                raise
            log.warning("trial %d is measured, but the database is away, trying again: %s", asked.number, error)
            time.sleep(RETRY_SECONDS)
        except LeaseLost:
            if not search.was_told(asked):  # else the answer to the last try was lost, not the try
                raise
            return "finished"


def fail(search: Search, asked: Asked, error: Exception) -> str:
    log.warning("trial %d failed: %s", asked.number, reason_of(error))
    try:
        search.fail(asked, reason_of(error), own_cause=is_own_cause(error))
    except LeaseLost as lost:
        log.warning("trial %d was lost: %s", asked.number, lost)
        return "lost"
    return "failed"


def release(search: Search, asked: Asked, kept: Path | None = None) -> None:
    """Give a trial back, without the tensors that it may have left."""
    try:
        keeping.drop(search, kept)
        search.release(asked)
    except StorageError as error:  # then the lease runs out, which does the same
        log.warning("trial %d was not given back: %s", asked.number, error)


def reason_of(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"[:LONGEST_REASON]


def is_own_cause(error: BaseException) -> bool:
    """Whether the candidate is to blame, and would fail again: not so for disks, connections and the device."""
    if isinstance(error, OSError):
        return error.errno in (errno.EINVAL,)
    return isinstance(error, (TrainerError, MetricError, AssertionError, torch.OutOfMemoryError, ArithmeticError))
