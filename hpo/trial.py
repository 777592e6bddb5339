"""One trial: ask → candidate → fine-tune to a rung → generate → score → tell, and on to the next rung. The same for every engine."""

from __future__ import annotations

import errno
import logging
from collections.abc import Generator
from contextlib import ExitStack
from functools import partial

import torch

from hpo import keeping, notes, stopping
from hpo.errors import DISK_TROUBLE, DiskTrouble
from hpo.inner_loop import InnerLoop, Result
from hpo.stopping import Stopped
from hpo.study import Asked, Search
from hpo.tuning import Tuning
from metrics.errors import MetricError
from storage import leases, results
from storage.errors import BadValue, LeaseLost, StorageError, StorageUnreachable
from storage.retrying import retrying
from trainers.errors import TrainerError

log = logging.getLogger(__name__)

LONGEST_REASON = 500  # characters


def run_trial(search: Search, inner: InnerLoop, asked: Asked) -> Generator[int, None, str]:
    """Run what was asked and tell the study; gives the steps of each rung when it is written, and in the end the outcome: finished, stopped,
    failed, left or lost.

    A failure is stored with its reason and the search goes on: the candidate's own (a loss or a score that is not finite, no
    memory for it) is final, any other lets it go on elsewhere. Nothing else is raised than Stopped after giving the trial back,
    DiskTrouble after the same, since the next trial would find the disk as full, and StorageUnreachable where the database is away: then the
    lease runs out, and the trial goes on from its last rung.
    """
    try:
        outcome = yield from evaluate(search, inner, asked)
    except LeaseLost as error:
        outcome = lost(search, asked, error)
    except (Stopped, KeyboardInterrupt, GeneratorExit):
        release(search, asked)
        raise
    except StorageUnreachable:
        raise  # nobody knows whether the trial was told
    except Exception as error:  # whatever a trial raises is stored with it, and the search goes on
        if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
            release(search, asked)
            raise DiskTrouble(error) from error
        outcome = fail(search, asked, error)
    keeping.tidy(search)
    return outcome


def evaluate(search: Search, inner: InnerLoop, asked: Asked) -> Generator[int, None, str]:
    """Fine-tune, generate and score under a heartbeat, rung by rung; what is written is not cut in two by a signal."""
    left = asked.left
    before = max(asked.known.values(), default=0.0)
    if not left:  # the worker that measured the last rung died before it told
        return retrying(lambda: search.finish(asked))
    taken_up = max((steps for steps, seconds in asked.known.items() if seconds), default=None)  # its own rungs: those that others paid for took none
    if taken_up is not None and retrying(partial(search.stops, asked, taken_up)):  # the worker that measured it died before it was stopped
        return retrying(partial(search.finish, asked, stopped=True))
    life = search.life(f"trial {asked.number}")
    with leases.Heartbeat(search.store, asked.id, life) as heartbeat, inner.seen_working(life.sign):
        def on_stage(stage: str) -> None:
            if heartbeat.lost.is_set():
                raise LeaseLost(asked.id, search.store.worker)
            heartbeat.stage(stage)

        def on_loss(step: int, train: float, twin: float) -> None:
            try:
                results.record_curve(search.store, asked.id, {step: (train, twin)})
            except StorageUnreachable as error:  # all points are written again at each rung
                log.warning("trial %d: a point of its loss curve could not be written: %s", asked.number, error)

        with ExitStack() as stack:
            with stopping.interruptible():
                keeping.inherit_state(search, inner, asked, left[0])
                tuning = stack.enter_context(Tuning(inner, asked.candidate, asked.repeat, on_stage, keeping.state_path(search, asked), on_loss,
                                                    partial(keeping.note_state, search, asked)))
                before += tuning.carried(max(asked.known or (), default=0))
            for steps in left:
                with stopping.interruptible():
                    result = tuning.to(steps)
                    heartbeat.stage("writing")
                    keeping.keep(search, asked, tuning)
                life.sign()
                stop = retrying(partial(write, search, asked, result, before + result.seconds["total"]))
                life.sign()
                log.info("trial %d is evaluated at %d steps, after %s", asked.number, steps, result.spent)
                last = stop or steps == asked.candidate.steps
                keeping.save(search, asked, tuning, last)
                life.sign()
                if last:
                    return retrying(partial(search.finish, asked, stop))
                yield steps
    raise AssertionError("a trial ends at its last rung")


def write(search: Search, asked: Asked, result: Result, seconds: float) -> bool:
    """Write a rung; whether the trial is to be stopped there. May be done twice. The note comes last: only a rung is refused to a worker that has lost
    its lease."""
    results.record_curve(search.store, asked.id, result.curve)
    stop = search.report(asked, result.steps, result.scores, result.trainable, seconds, result.memory)
    notes.write(search, asked, result)
    return stop


def fail(search: Search, asked: Asked, error: Exception) -> str:
    log.warning("trial %d failed: %s", asked.number, reason_of(error))
    try:
        return retrying(lambda: search.fail(asked, reason_of(error), own_cause=is_own_cause(error)))
    except LeaseLost as gone:
        return lost(search, asked, gone)


def lost(search: Search, asked: Asked, error: LeaseLost) -> str:
    """This process slept, or was cut off, for longer than a lease: the trial is another's, perhaps ended since, and what was written in the
    meantime is of no use. Gives the outcome."""
    log.warning("trial %d was lost: %s", asked.number, error)
    keeping.clear(search, asked)
    return "lost"


def release(search: Search, asked: Asked) -> None:
    """Give a trial back, with what it has evaluated."""
    try:
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
    return isinstance(error, (TrainerError, MetricError, BadValue, AssertionError, torch.OutOfMemoryError, ArithmeticError))
