"""Trials of a real study that are told scores rather than trained, rung by rung, and what can happen to their workers."""

from __future__ import annotations

from collections.abc import Callable

from finished_study import scores
from optuna.trial import FrozenTrial

from hpo.study import Asked, Search
from trainers.candidate import Candidate


def beside(search: Search, opened: Callable) -> Search:
    """Another worker's view of the same study."""
    return Search(opened(), search.settings)


def expire(query: Callable, asked: Asked) -> None:
    """Let a lease run out at once, as if its worker had been killed long ago. A trigger guards leases, so it is taken off for a moment."""
    query("ALTER TABLE peft_pareto.leases DISABLE TRIGGER guard")
    query("UPDATE peft_pareto.leases SET expires_at = clock_timestamp() - interval '1 s' WHERE trial_id = :id", id=asked.id)
    query("ALTER TABLE peft_pareto.leases ENABLE TRIGGER guard")


def trial(search: Search, number: int) -> FrozenTrial:
    return search.study.get_trials(deepcopy=False)[number]


def rung(search: Search, asked: Asked, steps: int, fd: float, copy_excess: float) -> bool:
    """As if a trial had been evaluated there; whether it is to be stopped."""
    return search.report(asked, steps, scores(fd, copy_excess), search.trainable(asked.candidate), float(steps), None)


def known(search: Search, candidate: Candidate) -> int | None:
    """Number of the trial by which a candidate is a duplicate."""
    other = search.duplicate_of(candidate, 0)
    return search.under_way(candidate) if other is None else other


def asks(search: Search) -> Asked:
    """What is asked, which must be a trial."""
    asked = search.ask()
    assert isinstance(asked, Asked), asked
    return asked


def run(search: Search, scored: Callable[[Asked, int], tuple[float, float]], asked: Asked | None = None) -> tuple[Asked, str]:
    """A whole trial as a worker runs it, all its rungs and perhaps stopped on the way; scored: trial, steps -> (fd, copy_excess). Gives how it ended."""
    asked = asked or asks(search)
    for steps in asked.left:
        if rung(search, asked, steps, *scored(asked, steps)):
            return asked, search.finish(asked, stopped=True)
    return asked, search.finish(asked)


def quickly(search: Search, fd: float, copy_excess: float) -> Asked:
    """A trial that is evaluated at its last rung only."""
    asked = asks(search)
    rung(search, asked, asked.candidate.steps, fd, copy_excess)
    search.finish(asked)
    return asked
