"""One search on a problem, in virtual time: sampler × stopping rule × seed in, hypervolume against cost out. It trains nothing.

Also the rule of Syne Tune's MO-ASHA, to compare with. Which searches are compared, and on what else, is benchmarks/search.py's.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from hpo.dominance import ranks
from hpo.history import Point
from hpo.proposer import STUCK
from hpo.pruning import Decision
from hpo.rungs import evaluated
from hpo.spaces.base import BadProposal

DUPLICATES = 200  # proposals in a row that are all duplicates: the space is as good as exhausted
NOISE_STREAM = 2  # of random numbers, apart from the sampler's


class Searched(Protocol):
    """A problem: benchmarks.problems.Problem, or a table of measured trials. `true` and `observe` are of a point at a rung of its own."""

    rungs: tuple[int, ...]
    reference: tuple[float, float]
    evaluation_seconds: float
    yardstick: Mapping[str, Any] | None
    baselines: Sequence[Mapping[str, Any]]

    def true(self, point: Any, steps: int) -> np.ndarray: ...
    def observe(self, point: Any, steps: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]: ...
    def seconds(self, point: Any, steps: int) -> float: ...


class Rule(Protocol):
    """A stopping rule: hpo.pruning.Pruner, or another of its kind."""

    def learn(self, number: int, last: int, steps: int, values: np.ndarray, replicates: np.ndarray | None = None) -> None: ...
    def decide(self, number: int, steps: int) -> Decision: ...


@dataclass(frozen=True)
class Curve:
    """A search as it went, one entry for each evaluated rung, in the order in which they ended, (k,) each.

    cost: seconds of work paid by then, of all workers together. elapsed: seconds on the clock. trials: finished by then (this rung's trial
    included, if it ended there). hypervolume: of the noise-free values of all rungs that were evaluated. stopped: trials that the rule stopped.
    """

    cost: np.ndarray
    elapsed: np.ndarray
    trials: np.ndarray
    hypervolume: np.ndarray
    stopped: int

    def at(self, cost: float | np.ndarray) -> np.ndarray:
        """Hypervolume by that cost; 0 before the first rung's end."""
        return np.append(0.0, self.hypervolume)[np.searchsorted(self.cost, cost, side="right")]

    def at_trials(self, trials: int | np.ndarray) -> np.ndarray:
        """Hypervolume when so many trials had finished."""
        return np.append(0.0, self.hypervolume)[np.searchsorted(self.trials, trials, side="right")]

    def area(self, cost: float) -> float:
        """Mean hypervolume over all costs from 0 to this one."""
        edges = np.append(np.minimum(self.cost, cost), cost)
        return float((np.diff(edges) * self.hypervolume).sum() / cost)


class Attained:
    """The hypervolume of what was found so far, two objectives, exact: the staircase of the front, kept sorted."""

    def __init__(self, reference: Sequence[float]):
        self.reference, self.front = tuple(reference), []
        self.hypervolume = 0.0

    def add(self, values: Sequence[float]) -> float:
        x, y = map(float, values)
        place = bisect_left(self.front, (x, y))
        if x >= self.reference[0] or y >= self.reference[1] or (place and self.front[place - 1][1] <= y):
            return self.hypervolume
        beaten = place
        while beaten < len(self.front) and self.front[beaten][1] >= y:
            beaten += 1
        self.front[place:beaten] = [(x, y)]
        ends = [each[0] for each in self.front[1:]] + [self.reference[0]]
        self.hypervolume = sum((end - left) * (self.reference[1] - low) for (left, low), end in zip(self.front, ends))
        return self.hypervolume


@dataclass
class Running:
    """A trial on a worker. ahead: rungs to be evaluated yet."""

    number: int
    point: Any
    proposal: Any
    ahead: list[int]
    steps: int = 0


@dataclass
class Known:
    """What makes a proposal a duplicate: evaluated rungs, rungs ahead of running trials, and stopped candidates. (root, steps) each."""

    evaluated: set[tuple[Any, int]] = field(default_factory=set)
    stopped: set[tuple[Any, int]] = field(default_factory=set)
    running: dict[int, Running] = field(default_factory=dict)

    def refuses(self, point: Any) -> bool:
        candidate = point.root, point.steps
        return (candidate in self.evaluated or candidate in self.stopped
                or any(each.point.root == point.root and point.steps in each.ahead for each in self.running.values()))


def search(problem: Searched, proposer: Any, rule: Rule | None, seed: int, cost: float, workers: int = 1, evaluated_rungs: int | None = None,
           baselines: bool = False) -> Curve:
    """One search until so many seconds of work are paid, or nothing new is proposed any more.

    proposer: an hpo.proposer.Proposer over problem.propose, whose candidates have a `root` and `steps`. rule: without one a trial is
    evaluated at its last rung only, and pays for that evaluation alone. seed: of the noise; the same trial number has the same.
    workers: in virtual time, each with a trial of its own. evaluated_rungs: at so many of the last rungs are trials evaluated, but for yardstick and baselines; None:
    at all. baselines: whether it begins with the problem's, as a launch does.
    """
    return Search(problem, proposer, rule, seed, evaluated_rungs, baselines).run(cost, workers)


class Search:
    """The state of a search; see `search`."""

    def __init__(self, problem: Searched, proposer: Any, rule: Rule | None, seed: int, evaluated_rungs: int | None = None, baselines: bool = False):
        self.problem, self.proposer, self.rule, self.seed = problem, proposer, rule, seed
        self.evaluated_rungs = len(problem.rungs) if evaluated_rungs is None else evaluated_rungs
        self.first = [*([] if problem.yardstick is None else [problem.yardstick]), *(problem.baselines if baselines else ())]
        self.known, self.attained = Known(), Attained(problem.reference)
        self.number = self.finished = self.stopped = 0
        self.clock = self.paid = 0.0
        self.rows: list[tuple[float, float, int, float]] = []

    def run(self, cost: float, workers: int) -> Curve:
        events: list[tuple[float, int]] = []  # (when a rung ends, trial): ties go to the earlier trial
        idle = workers
        while self.paid < cost:
            while idle and (trial := self.started()):
                idle -= 1
                heapq.heappush(events, (self.clock + self.seconds(trial), trial.number))
            if not events:
                break
            self.clock, number = heapq.heappop(events)
            trial = self.known.running[number]
            self.paid += self.seconds(trial)
            if self.goes_on(trial):
                heapq.heappush(events, (self.clock + self.seconds(trial), number))
            else:
                idle += 1
        cost_, elapsed, trials, hypervolume = (np.array(column) for column in zip(*self.rows)) if self.rows else (np.empty(0),) * 4
        return Curve(cost_, elapsed, trials, hypervolume, self.stopped)

    def started(self) -> Running | None:
        """The next trial that is no duplicate; a duplicate, or what the space refuses, costs nothing and is replaced."""
        for failed in range(DUPLICATES):
            number, self.number = self.number, self.number + 1
            try:
                proposal = self.proposer.propose(number, self.first[number] if number < len(self.first) else None, at_random=failed >= STUCK)
            except BadProposal:
                continue
            point = proposal.candidate
            if self.known.refuses(point):
                self.proposer.end(number)
                continue
            trial = Running(number, point, proposal, [point.steps])
            if self.rule:
                last = len(self.problem.rungs) if self.is_first(trial) else self.evaluated_rungs
                trial.ahead = [rung for rung in evaluated(self.problem.rungs, last, point.steps) if (point.root, rung) not in self.known.evaluated]
            self.known.running[number] = trial
            self.proposer.started(number, proposal.parameters, proposal.distributions, proposal.system_attrs)
            return trial
        return None

    def is_first(self, trial: Running) -> bool:
        """Yardstick or baseline: never stopped, and evaluated at all rungs."""
        return trial.number < len(self.first)

    def seconds(self, trial: Running) -> float:
        """Until its next rung is evaluated."""
        training = self.problem.seconds(trial.point, trial.ahead[0]) - (self.problem.seconds(trial.point, trial.steps) if trial.steps else 0)
        return training + self.problem.evaluation_seconds

    def goes_on(self, trial: Running) -> bool:
        """Take in the rung that has just been evaluated."""
        steps = trial.steps = trial.ahead.pop(0)
        point, proposal = trial.point, trial.proposal
        self.known.evaluated.add((point.root, steps))
        values, replicates = self.problem.observe(point, steps, np.random.default_rng([NOISE_STREAM, self.seed, trial.number, steps]))
        stop = False
        if self.rule:
            self.rule.learn(trial.number, point.steps, steps, values, replicates)
            stop = bool(trial.ahead) and not self.is_first(trial) and self.rule.decide(trial.number, steps).stop
        ended = stop or not trial.ahead
        self.proposer.learn(Point(trial.number, steps, ended, proposal.parameters, proposal.distributions, tuple(values.tolist()), (),
                                  proposal.system_attrs, self.problem.seconds(point, steps) + self.problem.evaluation_seconds))
        if ended:
            self.finished += 1
            self.stopped += stop
            del self.known.running[trial.number]
            if stop:
                self.known.stopped.add((point.root, point.steps))
            self.proposer.end(trial.number)
        self.rows.append((self.paid, self.clock, self.finished, self.attained.add(self.problem.true(point, steps))))
        return not ended


class MoAsha:
    """The stopping rule of Syne Tune's MO-ASHA, as published: this rung's values as they are, fronts by non-domination, inside a front the
    order of an epsilon net; a trial goes on while its place among all that have the rung is within the first 1 / reduction of them.

    Source: Salinas et al. 2021, Schmucker et al. 2021; Clarkson 2005 for the net. Syne Tune's code takes a list of trials in order of merit
    for the trials' places in it; here the places are what the papers say.
    """

    def __init__(self, reduction: int):
        self.reduction = reduction
        self.rungs: dict[int, dict[int, np.ndarray]] = {}

    def learn(self, number: int, last: int, steps: int, values: np.ndarray, replicates: np.ndarray | None = None) -> None:
        self.rungs.setdefault(steps, {})[number] = np.asarray(values, float)

    def decide(self, number: int, steps: int) -> Decision:
        rung = self.rungs[steps]
        points, own = np.stack(list(rung.values())), list(rung).index(number)
        found = ranks(points)
        front = np.flatnonzero(found == found[own])
        place = (found < found[own]).sum() + net(points[front]).index(int(np.searchsorted(front, own)))
        stop = bool(place > len(points) / self.reduction)
        return Decision(stop, float(stop), len(points) - 1, False)


def net(points: np.ndarray) -> list[int]:
    """Epsilon net: the order from the best in the first objective on, each next one the farthest from all before, (n, m) -> n indices."""
    order = [int(points[:, 0].argmin())]
    distances = np.full(len(points), np.inf)
    while len(order) < len(points):
        distances = np.minimum(distances, np.linalg.norm(points - points[order[-1]], axis=1))
        distances[order] = -1
        order.append(int(distances.argmax()))
    return order
