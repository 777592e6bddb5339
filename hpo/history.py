"""What samplers see of a study: an in-memory Optuna study of evaluated rungs. It proposes nothing, and knows no database."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from hpo.flat import STEPS, AsAsked

NAME = "history"
FAILED = "failed"  # system attribute of trials as samplers see them: they failed by their own cause


@dataclass(frozen=True)
class Point:
    """An evaluated rung of a trial.

    number: the trial's. steps: of this rung. last: whether the trial has ended and reached no later one. parameters: what the trial was
    asked, external values. values: raw objectives, in the study's order. violations: of constraints, <= 0 where one is met; empty
    where there are none. system_attrs: of the trial, as `Proposal` gave them. seconds: of the trial until this rung, None where they say nothing of
    trials of this study. Nothing in it may change once it is learnt.
    """

    number: int
    steps: int
    last: bool
    parameters: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    values: Sequence[float]
    violations: Sequence[float] = ()
    system_attrs: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True)
class Running:
    """A trial that is run now, by whomever, or that failed."""

    parameters: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    system_attrs: Mapping[str, Any]
    steps: int


class Taught(FrozenTrial):
    """A trial that the storage may keep as it is: its deep copy of 30 parameters would cost more than all else (1 ms)."""

    def __deepcopy__(self, memo: dict) -> Taught:
        return self


class History:
    """Trials in the order in which they were added. What samplers shall not see any more is a failed trial, which they ignore."""

    def __init__(self, directions: Sequence[str], view: AsAsked, constrained: bool):
        self.directions, self.view, self.constrained = list(directions), view, constrained
        self.points: list[Point] = []
        self.running: dict[int, tuple[Running, int]] = {}
        self.failed: dict[int, Running] = {}  # by their own cause
        self.width = 0  # constraints of a point
        self.extremes: tuple[list[float], list[float]] | None = None  # worst values, and violations, of all points
        self.build()

    def build(self) -> None:
        """An empty study, and all that was taught once more: every trial must have every parameter and constraint that any has."""
        self.storage = optuna.storages.InMemoryStorage()
        self.study = optuna.create_study(study_name=NAME, storage=self.storage, directions=self.directions,
                                         sampler=optuna.samplers.RandomSampler(seed=0))
        self.id = self.storage.get_study_id_from_name(NAME)
        self.common = optuna.search_space.IntersectionSearchSpace()
        self.tried: set[frozenset] = set()  # candidates but for their steps, of all but `added`: only Gaussian processes ask
        self.added: list[dict[str, Any]] = []  # parameters of points as samplers see them, since that was asked
        self.worst = self.worst_so_far()  # what trials that failed are shown with
        self.bred = 0  # generations whose parents Optuna has noted with this study
        if self.worst is not None:
            for _, trial in sorted(self.failed.items()):
                self.add_trial(trial, {FAILED: True}, *self.worst)
        for point in self.points:
            self.add(point)
        self.running = {number: (trial, self.add_running(trial)) for number, (trial, _) in self.running.items()}

    def teach(self, point: Point) -> None:
        """Add a complete trial. Raises ValueError where a value or a violation is no finite number, or the arity is wrong."""
        if len(point.values) != len(self.directions) or not all(map(math.isfinite, (*point.values, *point.violations))):
            raise ValueError(f"trial {point.number} at {point.steps} steps: values {list(point.values)} and violations {list(point.violations)}, "
                             f"but samplers learn {len(self.directions)} finite values: leave such a rung out")
        wider = self.constrained and len(point.violations) > self.width
        self.width = max(self.width, len(point.violations)) if self.constrained else 0
        grown = self.view.meet(point.distributions)
        known = bool(self.points or self.running)
        self.points.append(point)
        self.extremes = self.worse(point)
        if known and (wider or grown):
            self.build()
        else:
            self.add(point)

    def add(self, point: Point) -> None:
        self.add_trial(point, point.system_attrs, point.values, self.violations(point), tried=point.number >= 0)  # else it is another study's

    def add_trial(self, trial: Point | Running, system_attrs: Mapping[str, Any], values: Sequence[float], violations: Sequence[float],
                  tried: bool = True) -> None:
        shown = self.view.shown(trial.parameters, trial.distributions, trial.steps)
        if tried:
            self.added.append(shown[0])
        taught = frozen(TrialState.COMPLETE, *shown, system_attrs, values)
        for i, violation in enumerate(violations):
            taught.set_constraint(str(i), violation)
        self.storage.create_new_trial(self.id, taught)

    def fail(self, number: int, trial: Running) -> None:
        """A trial that failed by its own cause, and would again. Samplers see it with the worst values and violations so far; before all others, so
        that what they see follows from what is known, in whichever order failures and rungs came."""
        self.stop(number)
        self.view.meet(trial.distributions)
        self.failed[number] = trial
        self.worst = None

    def worst_so_far(self) -> tuple[list[float], list[float]] | None:
        """Of each objective and of each constraint; None where nothing is known, or needed."""
        return self.extremes if self.failed else None

    def worse(self, point: Point) -> tuple[list[float], list[float]]:
        """The extremes with this point."""
        values, violations = self.extremes or (point.values, self.violations(point))
        return ([min(pair) if direction == "maximize" else max(pair) for direction, pair in zip(self.directions, zip(values, point.values))],
                [max(pair) for pair in zip(self.padded(violations), self.violations(point))])

    def violations(self, point: Point) -> list[float]:
        """The GP needs equally many from each; who was measured without them meets them."""
        return self.padded(point.violations)

    def padded(self, violations: Sequence[float]) -> list[float]:
        return [*violations, *[0.0] * self.width][:self.width]

    def start(self, number: int, trial: Running) -> None:
        self.stop(number)
        grown = self.view.meet(trial.distributions)
        self.running[number] = (trial, -1)
        if grown:
            self.build()
        else:
            self.running[number] = (trial, self.add_running(trial))

    def add_running(self, trial: Running) -> int:
        shown = self.view.shown(trial.parameters, trial.distributions, trial.steps)
        return self.storage.create_new_trial(self.id, frozen(TrialState.RUNNING, *shown, trial.system_attrs))

    def asked_of_all(self) -> dict[str, BaseDistribution]:
        """The parameters that every trial has, but for those that have one value only."""
        return {name: distribution for name, distribution in self.common.calculate(self.study).items() if not distribution.single()}

    def was_tried(self, parameters: dict[str, Any]) -> bool:
        """Whether a trial with these parameters as samplers see them, but for the steps, was evaluated or runs."""
        if self.added:
            self.tried.update(map(without_steps, self.added))
            self.added = []
        key = without_steps(parameters)
        return key in self.tried or any(key == without_steps(self.view.shown(trial.parameters, trial.distributions, trial.steps)[0])
                                        for trial, _ in self.running.values())

    def stop(self, number: int) -> None:
        _, trial_id = self.running.pop(number, (None, None))
        if trial_id is not None:
            self.drop(trial_id)

    def ask(self, sampler: optuna.samplers.BaseSampler) -> tuple[optuna.Trial, int]:
        """A trial to be asked, and its id here, under which it is to be dropped."""
        if self.worst != self.worst_so_far():
            self.build()
        self.study.sampler = sampler
        trial = self.study.ask()
        return trial, self.storage.get_trial_id_from_study_id_trial_number(self.id, trial.number)

    def drop(self, trial_id: int) -> None:
        self.storage.set_trial_state_values(trial_id, TrialState.FAIL)


def without_steps(parameters: Mapping[str, Any]) -> frozenset:
    return frozenset((name, value) for name, value in parameters.items() if name != STEPS)


def frozen(state: TrialState, parameters: dict, distributions: dict, system_attrs: Mapping[str, Any], values: Sequence[float] | None = None) -> Taught:
    """A trial of this state. Without Optuna's validation, which asks each value of each trial again: the store's trials had it."""
    now = datetime.now()
    return Taught(number=-1, trial_id=-1, state=state, value=None, values=values, datetime_start=now,
                  datetime_complete=now if state.is_finished() else None, params=parameters, distributions=distributions, user_attrs={},
                  system_attrs=dict(system_attrs), intermediate_values={})
