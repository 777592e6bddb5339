"""What a launch would find and do, before it starts: `--plan` reads the store and makes nothing in it, no study and no folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import optuna

from hpo import objectives, warm_start
from hpo.settings import Settings
from hpo.study import Search
from storage import embedded, leases, results
from storage.errors import ForeignStudy
from storage.store import Store, open_store


@dataclass(frozen=True)
class Left:
    """What is left to do of a study: trials, and in words why."""

    trials: int
    said: str


def left(settings: Settings, what: dict[str, str | int], queue_of: Callable[[Search], list]) -> Left:
    """As `checked`, of a store that is not made."""
    search = checked(known_store(settings.storage), settings, what, queue_of)
    return of_known(search) if search is not None else Left(settings.trials, f"{settings.study} is new: {settings.trials} trials to run")


def checked(store: Store | None, settings: Settings, what: dict[str, str | int], queue_of: Callable[[Search], list]) -> Search | None:
    """The study, None if it is new. Raises what a launch raises before its first trial, and makes no study. what: the identity of model and data.
    queue_of: what reads --enqueue and --warm-start."""
    if store is None and settings.warm_start is not None:
        raise warm_start.unknown(settings.warm_start, settings.study, ())
    is_there = store is not None and settings.study in results.study_names(store)
    if store is not None and not is_there and results.is_foreign(store, settings.study):
        raise ForeignStudy(settings.study)
    search = Search(store, settings, None if is_there else in_memory(settings))
    if is_there:
        search.check_others(settings.trials)
        results.compare(store, search.id, search.binding(what), search.free(), objectives=search.objectives.names, reward_weight=settings.reward_weight)
    queue_of(search)
    search.check()
    return search if is_there else None


def of_known(search: Search) -> Left:
    """As the launch will see it: its --trials and --hours are the study's then, and what failed before does not count against it."""
    counts = replace(leases.counts(search.store, search.id), trials=search.settings.trials, overdue=False, failed=0)
    ended = None if counts.running else search.ending.verdict(counts)
    found = f"{search.settings.study} has {counts.finished} finished trials"
    if ended:
        return Left(0, f"{found}, nothing is left: {ended.reason}")
    trials = max(counts.trials - counts.finished, 0)
    return Left(trials, f"{found}, {trials} of {counts.trials} are left" + (f", {counts.running} of which run now" if counts.running else ""))


def known_store(url: str | None) -> Store | None:
    """The store, None where the embedded server was never started: it is not made for a look."""
    if url is None and not embedded.is_made():
        return None
    return open_store(embedded.start() if url is None else url)


def in_memory(settings: Settings) -> optuna.Study:
    """A study of that name that nobody else sees, since there is none."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(study_name=settings.study, directions=objectives.parse(settings.objectives).directions,
                               sampler=optuna.samplers.RandomSampler(seed=settings.seed))
