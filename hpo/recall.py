"""What a worker remembers of a study: evaluated rungs, as the sampler and the stopping rule are taught them. Reads only what is new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo import objectives as objective_table
from hpo import warm_start
from hpo.distributions import distributions_of
from hpo.proposer import Point, Proposer
from hpo.pruning import Decision, Pruner
from hpo.volume import Points, of_points
from storage import results, standing, trials

if TYPE_CHECKING:
    from hpo.study import Search


@dataclass(frozen=True)
class News:
    """What was not known yet. begun: trials that run, or wait, since then. live: numbers of all that do. failed: trials that did by their own cause.
    attributes: what the sampler left with the trials of rows and begun, by id. warm: points of another study, with the yardstick's end."""

    rows: Sequence[trials.RungRow]
    begun: Sequence[trials.RunningTrial]
    live: set[int]
    failed: Sequence[trials.RunningTrial]
    attributes: Mapping[int, Mapping[str, Any]]
    warm: Sequence[Point]


def is_end_of_yardstick(row: trials.RungRow) -> bool:
    return row.yardstick and row.steps == row.own_steps


@dataclass
class Recall:
    """Everything in it follows from the database, in the order in which rungs were written there: a worker that joins late knows the same."""

    search: Search

    def __post_init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Know what a worker knows that has just joined."""
        search, settings = self.search, self.search.settings
        self.proposer = Proposer(settings.sampler, settings.seed, search.objectives.directions, lambda trial: search.space.propose(trial, search.bounds),
                                 settings.ladder, bool(search.constraints), search.is_small_enough, settings.evaluated_rungs)
        self.pruner = Pruner(settings.reduction, settings.stop_confidence) if settings.pruner != "none" else None
        self.points = Points()
        self.texts: dict[int, str] = {}  # of distributions
        self.references: results.References | None = None  # these and the yardstick never change once they are there
        self.yardstick: tuple[float, ...] | None = None  # its scores at its own last rung; of a joint reward (q, m)
        self.newest: trials.RungRow | None = None
        self.places: dict[tuple[int, int], int] = {}  # `recorded` of the rungs that the stopping rule knows, by trial and steps
        self.warmed = False
        self.live: set[int] = set()
        self.failed: set[int] = set()  # numbers of the trials that failed by their own cause
        self.rewardless: list[trials.RungRow] = []  # read before the yardstick was finished, where the joint reward is the objective

    def refresh(self) -> None:
        """Read what is new, then learn it: where reading breaks off nothing is learnt, and all of it is read again next time."""
        news = self.read()
        if news is None:
            self.forget()
            news = self.read()
        self.learn(news)

    def read(self) -> News | None:
        """Running trials first: one that ends in between is then known with all its rungs before it counts as ended. None where the newest rung that is
        known is not stored: a fail-over of the database has lost it and perhaps others, whose places in the order go to later ones."""
        running, failed = trials.running_and_failed(self.search.store, self.search.id, self.live, self.failed)
        rows = trials.rungs_since(self.search.store, self.search.id, 0 if self.newest is None else self.newest.recorded - 1, texts=self.texts)
        if self.newest is not None:
            if not rows or (rows[0].recorded, rows[0].trial_id, rows[0].steps) != (self.newest.recorded, self.newest.trial_id, self.newest.steps):
                return None
            rows = rows[1:]
        live = {trial.number for trial in running}
        begun = [trial for trial in running if trial.number not in self.live and trial.parameters]
        yardstick = next((row.values for row in rows if is_end_of_yardstick(row)), None)
        attributes = {}
        if self.search.settings.sampler == "nsga2":  # it notes its generations; what others leave with a trial counts for nothing
            attributes = standing.system_attributes(self.search.store, {each.trial_id for each in (*rows, *begun, *self.rewardless)})
        warm = []
        if yardstick is not None and not self.warmed and self.search.settings.warm_start is not None:
            warm = list(warm_start.points(self.search, yardstick))
        if self.search.objectives.is_joint_reward:
            self.known()  # rewards are computed with them
        return News(rows, begun, live, failed, attributes, warm)

    def learn(self, news: News) -> None:
        """What was read. The database is not asked here."""
        rows, live = news.rows, news.live
        for row in rows:
            self.newest = row
            self.points.learn(row)
            if is_end_of_yardstick(row):
                self.yardstick = row.values
        ready = self.ready(rows)
        # A trial ends where its last rung stands in the order, whether that is read now or was read before it ended.
        final = {row.number: row.recorded for row in ready if row.number not in live}
        for number in sorted(self.live - live - final.keys()):
            self.proposer.end(number)
        for row in ready:
            self.learn_rung(row, news.attributes.get(row.trial_id, {}))
            if final.get(row.number) == row.recorded:
                self.proposer.end(row.number)
            if not self.warmed and is_end_of_yardstick(row):
                self.warm(news.warm)
        for trial in news.failed:
            self.proposer.fail(trial.number, trial.parameters, distributions_of(trial.distributions))
            self.failed.add(trial.number)
        for trial in news.begun:
            self.proposer.started(trial.number, trial.parameters, distributions_of(trial.distributions), news.attributes.get(trial.trial_id, {}))
        self.live = live

    def decide(self, number: int, steps: int) -> Decision:
        """Whether a trial is stopped at a rung that it has just written, by what is new too. Replicates are read here, of those peers that are compared."""
        self.refresh()
        missing = self.pruner.missing(number, steps)
        found = trials.replicates_of(self.search.store, self.search.id, [self.places[rung] for rung in missing])
        for rung in missing:
            draws = found.get(self.places[rung])
            replicates = None if draws is None else self.values(draws)
            self.pruner.learn_replicates(*rung, None if replicates is None else self.oriented(replicates).T)
        return self.pruner.decide(number, steps)

    def known(self) -> results.References | None:
        """What base and real pictures scored."""
        self.references = self.references or results.references(self.search.store, self.search.id)
        return self.references

    def volume(self) -> float | None:
        """The hypervolume of the study's front as it was when this was refreshed."""
        return of_points(self.search.objectives, self.search.settings.reward_weight, self.points.means(), self.known(), self.yardstick)

    def warm(self, points: Sequence[Point]) -> None:
        """Teach the sampler what another study found, once there is a yardstick that it can be scaled by."""
        self.warmed = True
        for point in points:
            self.proposer.learn(point)

    def ready(self, rows: Sequence[trials.RungRow]) -> list[trials.RungRow]:
        """Those of which the objectives are known: a joint reward is not before the yardstick is finished."""
        if not self.search.objectives.is_joint_reward:
            return list(rows)
        waiting = self.rewardless + list(rows)
        self.rewardless = waiting if self.yardstick is None else []
        return [] if self.yardstick is None else waiting

    def learn_rung(self, row: trials.RungRow, attributes: Mapping[str, Any]) -> None:
        values = self.values(row.values)
        if values is None:
            return
        if row.parameters:  # else the space has no answers that give it, so the sampler has no words for it
            violations = self.search.constraints.shares(row.violations)
            self.proposer.learn(Point(row.number, row.steps, row.steps == row.own_steps, row.parameters, distributions_of(row.distributions),
                                      [float(value) for value in values], violations, attributes, row.seconds))
        if self.pruner is not None:
            self.pruner.learn_values(row.number, row.own_steps, row.steps, self.oriented(values))
            self.places[row.number, row.steps] = row.recorded

    def values(self, scores: Sequence[Any]) -> np.ndarray | None:
        """The objectives' values, (m,) or (m, replicates), of the scores as they are stored; None where a joint reward does not exist."""
        stored = np.asarray(scores, dtype=float)
        if not self.search.objectives.is_joint_reward:
            return stored
        known = self.references
        reward = objective_table.joint_reward(self.search.objectives, self.search.settings.reward_weight, stored[0], stored[1], known.q_base, known.q_real,
                                              known.m_base, self.yardstick[1])
        return None if reward is None else np.asarray(reward)[None]

    def oriented(self, values: np.ndarray) -> np.ndarray:
        return np.stack([objective.oriented(each) for objective, each in zip(self.search.objectives.chosen, values)])
