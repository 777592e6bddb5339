"""The proposing half of the search: taught evaluated rungs, asked for candidates. It knows no database."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Generic, TypeVar

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.trial import FixedTrial, FrozenTrial

from hpo.errors import SearchError
from hpo.flat import STEPS, UNSAID, AsAsked, Flat, at
from hpo.history import History, Point, Running, without_steps
from hpo.rungs import evaluated
from hpo.samplers import LAST, NOTHING, POPULATION, RUNGS, SAMPLERS, made, random
from hpo.seconds import Seconds
from hpo.spaces.base import BadProposal

PROBES = 300  # random proposals that find a space's parameters
DRAWS = 8  # of TPE, for a proposal at the last rung; a third of them are, or more
PROBE_STREAM, OTHER_STREAM, UNKNOWN_STREAM = 1, 2, 3  # of random numbers, apart from the trials'
STUCK = 20  # duplicates in a row of a model, after which some are proposed at random: it may know no better while the space has more
LOOKED_AT = 200  # random candidates, for one that is new where most are known
GENERATION = NSGAIISampler._get_generation_key()  # system attribute
RELATIVE = "relative_params"  # what TPE and GP leave with a running trial, which has its parameters here anyway

T = TypeVar("T")


@dataclass(frozen=True)
class Proposal(Generic[T]):
    """What is to be run. candidate: what the space gave. parameters: external values; internal: the same as Optuna's floats.

    system_attrs: to be stored with the trial, so that a history that is rebuilt has NSGA-II's generations. user_attrs: what a user's
    space set on the trial.
    """

    candidate: T
    parameters: dict[str, Any]
    distributions: dict[str, BaseDistribution]
    internal: dict[str, float]
    system_attrs: dict[str, Any]
    user_attrs: dict[str, Any]


class Proposer(Generic[T]):
    """Proposes candidates with one of `SAMPLERS`. A history of the same content, in the same order, and the same trial number give the same
    proposal, whether this object has lived all the time or was made a moment ago (NSGA-II's too, with one worker). Not thread-safe.

    seed: the study's, >= 0. directions: "minimize" or "maximize" for each objective. propose: Optuna's trial -> candidate; where it raises,
    the history is as before. rungs: all numbers of steps that trials may have, growing. constrained: whether violations are read.
    allows: whether a candidate may be run, as far as that is known before; the Gaussian processes choose among such only.
    evaluated_rungs: at how many of the last of them trials are evaluated; None: at all.
    """

    def __init__(self, sampler: str, seed: int, directions: Sequence[str], propose: Callable[[Any], T], rungs: Sequence[int], constrained: bool = False,
                 allows: Callable[[T], bool] = lambda candidate: True, evaluated_rungs: int | None = None):
        self.setup, self.seed, self.space, self.rungs, self.allows = SAMPLERS[sampler], seed, propose, tuple(rungs), allows
        first = evaluated(self.rungs, evaluated_rungs or len(self.rungs), self.rungs[-1])[0]
        self.short = self.rungs[:self.rungs.index(first) + 1]  # up to where trials are evaluated first
        self.history = History(directions, Flat(self.rungs) if self.setup.flat else AsAsked(self.rungs), constrained)
        self.durations = Seconds(self.history.view)
        self.learnt: set[int] = set()  # numbers of the trials
        self.evaluated: set[tuple[frozenset, Any]] = set()  # `asked_in` of all that is known but `noted`: it is needed when a model is stuck only
        self.begun: dict[int, Mapping[str, Any]] = {}  # answers of the trials that are evaluated and go on
        self.noted: list[Point] = []  # rungs that were learnt since
        self.reached: dict[int, Point] = {}  # the last rung as yet of trials that go on
        self.generations: Counter[int] = Counter()  # of NSGA-II: trials that it was taught
        if self.setup.flat:
            self.probe()

    def probe(self) -> None:
        """Find the union of all parameters, so that what is learnt need not be shown anew time and again."""
        generator = np.random.RandomState(seed_of(self.seed, 0, PROBE_STREAM))
        for _ in range(PROBES):
            trial = Wished({}, generator, (), self.history.view, self.history.study)
            self.given(trial)
            self.history.view.meet(trial.distributions)

    def given(self, trial: Wished) -> T | None:
        """The space's candidate for this trial, if it has one."""
        try:
            return self.space(trial)
        except SearchError:  # a trial that is proposed says why
            return None

    def reach(self, wishes: dict[str, Any], generator: np.random.RandomState) -> dict[str, Any] | None:
        """See `hpo.gaussian.Candidates`."""
        trial = Wished(wishes, generator, self.rungs, self.history.view, self.history.study)
        candidate = self.given(trial)
        if candidate is None or not self.allows(candidate):
            return None
        point, _ = self.history.view.shown(trial.params, trial.distributions, self.steps_of(trial.params))
        return None if self.history.was_tried(point) else point

    def seconds(self, points: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """See `hpo.gaussian.Candidates`."""
        return self.durations.of(points)

    def learn(self, point: Point) -> None:
        """An evaluated rung. Raises ValueError where its values are not finite, or not as many as the objectives."""
        self.learnt.add(point.number)
        if point.number >= 0:  # else another study's
            self.noted.append(point)
            self.begun[point.number] = point.parameters
        self.durations.learn(point)
        if self.setup.learns == RUNGS:
            self.history.teach(point)
        elif self.setup.learns == LAST:
            self.reached[point.number] = point
            if point.last:
                self.end(point.number)

    def started(self, number: int, parameters: Mapping[str, Any], distributions: Mapping[str, BaseDistribution],
                system_attrs: Mapping[str, Any] | None = None) -> None:
        """A trial that somebody runs now; samplers see it running until it ends. Once more for the same trial changes nothing."""
        if self.setup.learns != NOTHING:
            self.history.start(number, Running(parameters, distributions, dict(system_attrs or {}), self.steps_of(parameters)))

    def end(self, number: int) -> None:
        """A trial has ended, however it did: what it reached is all that it will ever reach. It may have been no trial of `started`."""
        self.history.stop(number)
        if number in self.begun:  # perhaps it was stopped before its own steps
            self.evaluated.add(asked_in(self.begun.pop(number)))
        point = self.reached.pop(number, None)
        if point is not None:
            self.history.teach(self.of_a_generation(point))

    def of_a_generation(self, point: Point) -> Point:
        """NSGA-II's parents are of generations. What it did not propose, as baselines or another study's points, belongs to that which grows now."""
        newest = max(self.generations, default=0)
        grows = newest + (self.generations[newest] >= POPULATION)
        aged = replace(point, system_attrs={GENERATION: grows, **point.system_attrs})
        self.generations[aged.system_attrs[GENERATION]] += 1
        return aged

    def fail(self, number: int, parameters: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> None:
        """A trial of `started`, or none, has failed by its own cause: the same would fail again. NSGA-II learns nothing of it: its parents are of those
        that it has values of."""
        self.end(number)
        self.evaluated.add(asked_in(parameters))
        if self.setup.learns == RUNGS:
            self.history.fail(number, Running(parameters, distributions, {}, self.steps_of(parameters)))

    def steps_of(self, parameters: Mapping[str, Any]) -> int:
        """Of a trial by its answers, as far as they say: a space of the user's may have other words for them."""
        steps = parameters.get(STEPS)
        return int(steps) if isinstance(steps, (int, float)) else self.rungs[-1]

    def propose(self, number: int, fixed: Mapping[str, Any] | None = None, at_random: bool = False) -> Proposal[T]:
        """The candidate for this trial; answers that are fixed are given as they are, the others are sampled, or drawn at random until they give what is
        new.

        Raises what the space raises, and BadProposal where a fixed answer is not one of those that the space offers.
        """
        seed = seed_of(self.seed, number)
        ready = len(self.learnt) >= self.setup.startup
        model = ready and not at_random
        are_enough = ready or len(self.learnt.union(self.history.running)) >= self.setup.startup  # many may be begun before one is learnt
        rungs = self.rungs if are_enough or at_random or not self.setup.short else self.short
        if at_random:
            fixed = {**self.unknown(seed), **(fixed or {})}
        answers = Answers(made(self.setup.make if model else random, seed, self), self.history, seed, rungs, fixed or {})
        trial, trial_id = self.history.ask(answers)
        try:
            candidate = self.space(trial)
            answers.prepare(self.history.storage.get_trial(trial_id))
            asked = self.history.storage.get_trial(trial_id)
            return Proposal(candidate, dict(asked.params), dict(asked.distributions), internal(asked), attributes(asked), dict(asked.user_attrs))
        finally:
            self.history.drop(trial_id)

    def unknown(self, seed: int) -> dict[str, Any]:
        """Answers that give a candidate that may be run and was not evaluated, if a few random ones hold one such; else none."""
        self.evaluated.update(asked_in(point.parameters, point.steps) for point in self.noted)
        self.noted = []
        generator = np.random.RandomState(seed_of(seed, UNKNOWN_STREAM))
        for _ in range(LOOKED_AT):
            trial = Wished({}, generator, (), self.history.view, self.history.study)
            candidate = self.given(trial)
            if candidate is not None and self.allows(candidate) and asked_in(trial.params) not in self.evaluated:
                return dict(trial.params)
        return {}


class Wished(FixedTrial):
    """A trial that answers a space as wished where the space allows it, and at random elsewhere. Light: asked 1,000 times a proposal. It is in no study;
    `study` is for spaces that look at one."""

    def __init__(self, wishes: dict[str, Any], generator: np.random.RandomState, rungs: tuple[int, ...], view: AsAsked, study: optuna.Study):
        super().__init__({})
        self.wishes, self.generator, self.rungs, self.view, self.study = wishes, generator, rungs, view, study

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> float:
        return self._suggest(name, numbers(FloatDistribution, low, high, log, step))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return int(self._suggest(name, numbers(IntDistribution, low, high, log, step)))

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        if name in self._params:  # asked once more: Optuna says whether it may be
            return super()._suggest(name, distribution)
        value = self._params[name] = self._suggested_params[name] = self.answer(name, distribution)
        self._distributions[name] = distribution
        return value

    def answer(self, name: str, distribution: BaseDistribution) -> Any:
        whole = last_of(self.rungs, distribution, self.view.rungs) if name == STEPS else None
        if whole is not None:
            return whole
        meant = self.view.meant(name, self.wishes) if self.wishes and name != STEPS else UNSAID
        return meant if meant is not UNSAID and holds(distribution, meant) else at(distribution, self.generator.rand())


@lru_cache(maxsize=1024)
def numbers(kind: type, low: float, high: float, log: bool, step: float | None) -> BaseDistribution:
    """The same object for the same question: what was met before is then known at once."""
    return kind(low, high, log=log, step=step)


class Answers(BaseSampler):
    """A space's questions put to one of Optuna's samplers, which sees other distributions than the space asks for: of steps, and of what differs
    from trial to trial. So all that it proposed at once is looked up by name, and taken if the question allows it.

    rungs: the trial is to reach the last of them that the space offers (see `last_of`). A model has them all.
    """

    def __init__(self, inner: BaseSampler, history: History, seed: int, rungs: tuple[int, ...], fixed: Mapping[str, Any]):
        self.inner, self.history, self.random, self.rungs, self.fixed = inner, history, optuna.samplers.RandomSampler(seed_of(seed, OTHER_STREAM)), rungs, fixed
        self.proposed: dict[str, Any] | None = None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        if param_name in self.fixed:
            return allowed(param_name, self.fixed[param_name], param_distribution)
        whole = last_of(self.rungs, param_distribution, self.history.view.rungs) if param_name == STEPS else None
        if whole is not None:
            return whole
        meant = self.history.view.meant(param_name, self.relative(study, trial))
        if holds(param_distribution, meant):
            return meant
        sampler = self.inner if self.history.view.has(param_name, param_distribution) else self.random  # TPE fails on values of another kind
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def relative(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        """All that the sampler proposes at once; not before something is asked, since a model's proposal takes seconds."""
        if self.proposed is None:
            if isinstance(self.inner, NSGAIISampler):
                self.breed(study, trial)
            self.proposed = self.inner.sample_relative(study, trial, self.inner.infer_relative_search_space(study, trial))
            if isinstance(self.inner, TPESampler):
                self.condition(study, trial)
        return self.proposed

    def condition(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Draw again what TPE models together with the steps, until it is for a whole trial: what is good after few steps is not what is good
        at last. Its other groups of parameters are drawn apart anyway."""
        together: dict[str, BaseDistribution] = {}
        for _ in range(DRAWS - 1):
            if STEPS not in self.proposed or self.nearest(self.proposed[STEPS]) == self.rungs[-1]:
                return
            together = together or self.history.asked_of_all()
            self.proposed |= self.inner.sample_relative(study, trial, together)

    def nearest(self, steps: int) -> int:
        return min(self.rungs, key=lambda rung: abs(math.log(rung / steps)))

    def prepare(self, trial: FrozenTrial) -> None:
        """A trial all of whose answers were fixed belongs to a generation too."""
        if isinstance(self.inner, NSGAIISampler):
            self.relative(self.history.study, trial)

    def breed(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Select the parents of each generation in turn: Optuna recurses from the newest down, too deep where a history was rebuilt."""
        generation = self.inner.get_trial_generation(study, trial)
        for each in range(self.history.bred + 1, generation + 1):
            self.inner.get_parent_population(study, each)
        self.history.bred = max(self.history.bred, generation)


def seed_of(seed: int, number: int, *stream: int) -> int:
    """A random state is not in the store; a seed of each trial's own makes a resumed study go on as an unbroken one would."""
    return int(np.random.SeedSequence([seed, number, *stream]).generate_state(1)[0])


def last_of(rungs: tuple[int, ...], distribution: BaseDistribution, ladder: tuple[int, ...]) -> int | None:
    """The last of these rungs that is offered, if any is. None where steps are offered that are on no rung of the ladder: they are evaluated on no trial's
    way, so they are searched like any other parameter."""
    if isinstance(distribution, CategoricalDistribution):
        offered = distribution.choices
    elif isinstance(distribution, IntDistribution):
        offered = range(distribution.low, distribution.high + 1, distribution.step)
    else:
        return None
    return next((rung for rung in reversed(rungs) if rung in offered), None) if all(steps in ladder for steps in offered) else None


def asked_in(parameters: Mapping[str, Any], steps: int | None = None) -> tuple[frozenset, Any]:
    """What tells candidates apart: the answers, and of those for steps these, if they were asked."""
    asked = parameters.get(STEPS)
    return without_steps(parameters), asked if asked is None or steps is None else steps


def holds(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value is one that the distribution offers."""
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except (TypeError, ValueError):  # a value of another kind
        return False


def allowed(name: str, value: Any, distribution: BaseDistribution) -> Any:
    if not holds(distribution, value):
        raise BadProposal(f"{name}={value!r} was enqueued, but the space offers {distribution}: enqueue one of these, or leave it out")
    return value


def internal(trial: FixedTrial | FrozenTrial) -> dict[str, float]:
    """A trial's answers as Optuna keeps them."""
    return {name: float(trial.distributions[name].to_internal_repr(value)) for name, value in trial.params.items()}


def attributes(trial: FrozenTrial) -> dict[str, Any]:
    return {name: value for name, value in trial.system_attrs.items() if RELATIVE not in name}
