"""One trial: ask → candidate → fine-tune → generate → score → tell. The same for every engine."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import torch

from hpo import keeping, notes
from hpo.inner_loop import InnerLoop
from hpo.study import Asked, Search
from metrics.errors import MetricError
from storage import leases
from storage.errors import LeaseLost, StorageError
from trainers.errors import TrainerError

log = logging.getLogger(__name__)


class Stopped(BaseException):
    """The worker was asked to stop; not an Exception, so that no library swallows it on the way up."""


def run_trial(search: Search, inner: InnerLoop, asked: Asked) -> str:
    """Run what was asked and tell the study; gives the outcome: finished, failed or lost.

    A failure is stored with its reason and the search goes on: the candidate's own (a loss that is not finite, no memory
    for it) is final, any other lets it be tried again. Raises Stopped after giving the trial back.
    """
    kept: Path | None = None
    try:
        with leases.Heartbeat(search.store, asked.id) as heartbeat:
            def on_stage(stage: str) -> None:
                if heartbeat.lost.is_set():
                    raise LeaseLost(asked.id, search.store.worker)
                heartbeat.stage(stage)

            kept = keeping.path_for(search, asked)
            result = inner.evaluate(asked.candidate, asked.number, on_stage, kept)
            search.measured(asked, result.trainable, result.trainable_share)
            notes.write(search, asked, result)
            if kept is not None:
                keeping.record(search, asked, kept)
            search.finish(asked, result.scores, result.seconds["total"])
    except LeaseLost as error:
        log.warning("trial %d was lost: %s", asked.number, error)
        discard(kept)
        return "lost"
    except (Stopped, KeyboardInterrupt):
        discard(kept)
        search.release(asked)
        raise
    except StorageError:
        discard(kept)
        raise  # the database is gone: the lease runs out, and the candidate is tried again
    except Exception as error:  # whatever a trial raises is stored with it, and the search goes on
        discard(kept)
        log.warning("trial %d failed: %s", asked.number, reason_of(error))
        search.fail(asked, reason_of(error), own_cause=is_own_cause(error))
        return "failed"
    keeping.tidy(search)
    return "finished"


def discard(path: Path | None) -> None:
    if path is not None:
        path.unlink(missing_ok=True)


def reason_of(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"[:500]


def is_own_cause(error: BaseException) -> bool:
    """Whether the candidate is to blame, and would fail again: not so for disks, connections and the device."""
    if isinstance(error, OSError):
        return error.errno in (errno.EINVAL,)
    return isinstance(error, (TrainerError, MetricError, AssertionError, torch.OutOfMemoryError, ArithmeticError))
