"""The stopping rule: asynchronous successive halving of the stopping type on all objectives at once. Pure arithmetic, no database, no Optuna.

A trial that has reached a rung is compared with those of its neighbours that have that rung, in what they become by the trial's own last rung:
measured where a peer got there, else predicted from this rung by a regression on the peers that have both. Many rungs look private because
nothing has been memorised yet; the regression knows what became of such trials. Noise counts: the comparison is made in each bootstrap
replicate, with residuals of the regression drawn into what is predicted, and a trial is stopped when it falls out of the best in nearly all.

Source: Li et al. 2020 (ASHA), Salinas et al. 2021 (several objectives by non-domination), Deb et al. 2002 (crowding). Predicting the last
rung, asking for a share of the replicates, and comparing neighbours only are this project's own.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from hpo.dominance import among_best

REPLICATES = 256
FEWEST_PAIRS = 8  # trials that have both rungs, for a regression from one on the other
RIDGE = 0.1  # in observations of a standardised objective: keeps 8 pairs with nearly collinear objectives tame, is nothing to 30
QUARTILES_OF_A_NORMAL = 1.349  # distance of the quartiles of a normal distribution in standard deviations
# So many trials before a trial, and as many after it, are compared with it, of those that have the rung: no decision then costs more than one among
# 500 trials, however long the study, and a trial is measured by what the search has become, not by what it was.
PEERS = 250
MOST_DRAWS = 8 * PEERS  # of trials and rungs that are kept, of 2 kB: those that a worker's decisions need, some of them twice
DRAWS = 0x5EED  # which stream of random numbers the residuals are drawn with; trial and rung choose within it


@dataclass(frozen=True)
class TrialRungs:
    """What is known of a trial. last: steps of its own last rung. values: steps -> (m,) float64, oriented: smaller is better.
    replicates: steps -> (R, m) float64, oriented, the same draws of patients in every trial; None where there are none, and no entry where they
    are not learnt yet."""

    number: int
    last: int
    values: Mapping[int, np.ndarray]
    replicates: Mapping[int, np.ndarray | None]


@dataclass(frozen=True)
class Decision:
    """stop: whether to stop. share: of the replicates in which the trial is not among the best. peers: other trials that have this rung.
    predicted: whether last rungs were compared, and not this one."""

    stop: bool
    share: float
    peers: int
    predicted: bool


class Pruner:
    """Decides whether a trial goes on from a rung. The same rungs give the same decision, in whichever order they were learnt.

    reduction: about one in so many goes on; the best ⌈n / reduction⌉ of the trial and the nearest PEERS at each side that have the rung.
    confidence: the share of the replicates that must be exceeded for a stop. minimum: below so many trials at the rung nothing is stopped.
    Raises ValueError for what is out of range.
    """

    def __init__(self, reduction: int, confidence: float = 0.9, minimum: int = 2):
        if reduction < 2:
            raise ValueError(f"reduction={reduction}: 2 or more, one in so many trials goes on")
        if not 0 <= confidence < 1:
            raise ValueError(f"confidence={confidence}: from 0 to below 1, a share that can be exceeded")
        self.reduction, self.confidence, self.minimum = reduction, confidence, minimum
        self.trials: dict[int, TrialRungs] = {}
        self.having: dict[int, list[int]] = {}  # numbers of the trials that have a rung, by its steps, sorted

    def learn(self, number: int, last: int, steps: int, values: np.ndarray, replicates: np.ndarray | None = None) -> None:
        """A trial's scores at a rung, (m,) and (R, m) float64, oriented; without replicates the value stands for each of them.

        Learnt once more it replaces what was there. Raises ValueError for NaN or infinity, a wrong shape, or steps beyond the last rung.
        """
        self.learn_values(number, last, steps, values)
        self.learn_replicates(number, steps, replicates)

    def learn_values(self, number: int, last: int, steps: int, values: np.ndarray) -> None:
        """The same, without replicates: `missing` says which are needed, most of them never."""
        values = np.asarray(values, float)
        known = next((each for trial in self.trials.values() for each in trial.values.values()), values)
        if values.ndim != 1 or len(values) != len(known) or not np.isfinite(values).all():
            raise ValueError(f"trial {number} at {steps} steps: values {values} are not {len(known)} finite numbers")
        if steps > last:
            raise ValueError(f"trial {number}: a rung at {steps} steps is beyond its last at {last}")
        before = self.trials.get(number)
        if before is None or steps not in before.values:
            insort(self.having.setdefault(steps, []), number)
        replicates = {} if before is None else {each: given for each, given in before.replicates.items() if each != steps}
        self.trials[number] = TrialRungs(number, last, (before.values if before else {}) | {steps: values}, replicates)

    def learn_replicates(self, number: int, steps: int, replicates: np.ndarray | None) -> None:
        """Of a rung of which the values were learnt, (R, m); None: there are none. Raises KeyError for any other rung."""
        trial = self.trials[number]
        if replicates is not None:
            replicates = np.asarray(replicates, float)
            if replicates.shape != (REPLICATES, len(trial.values[steps])) or not np.isfinite(replicates).all():
                raise ValueError(f"trial {number} at {steps} steps: replicates of shape {replicates.shape} are not {REPLICATES} × "
                                 f"{len(trial.values[steps])} finite numbers")
        self.trials[number] = replace(trial, replicates={**trial.replicates, steps: replicates})

    def missing(self, number: int, steps: int) -> list[tuple[int, int]]:
        """Rungs, as (number of a trial, steps), of which `decide` needs replicates that were not learnt."""
        trial, peers = self.trials[number], self.peers(number, steps)
        if self.is_spared(trial, steps, peers):
            return []
        goal = compared_at(peers, steps, trial.last)
        needed = [(each, goal if goal in each.values else steps) for each in peers]
        return [(each.number, at) for each, at in needed if at not in each.replicates]

    def decide(self, number: int, steps: int) -> Decision:
        """Whether this trial is stopped at this rung, which it has learnt. Never at its own last one. Raises KeyError for an unknown rung, and where
        replicates are missing.

        Whom the rule does not apply to (yardstick and baselines) is for the caller to know; they are peers all the same.
        """
        trial, peers = self.trials[number], self.peers(number, steps)
        trial.values[steps]  # a rung that was not learnt is the caller's mistake
        if self.is_spared(trial, steps, peers):
            return Decision(False, 0.0, len(peers) - 1, False)
        goal = compared_at(peers, steps, trial.last)
        becoming = None if goal == steps else Regression(steps, goal, [each for each in peers if goal in each.values])
        compared = stacked(peers, steps) if becoming is None else becoming.scores(peers)
        own = next(i for i, each in enumerate(peers) if each.number == number)
        share = 1 - float(among_best(compared, own, self.best(peers)).mean())
        return Decision(share > self.confidence, share, len(peers) - 1, becoming is not None)

    def best(self, peers: list[TrialRungs]) -> int:
        """How many of them go on."""
        return -(-len(peers) // self.reduction)

    def is_spared(self, trial: TrialRungs, steps: int, peers: list[TrialRungs]) -> bool:
        """Whether it goes on whatever the scores are."""
        return steps == trial.last or len(peers) < self.minimum or self.best(peers) >= len(peers)

    def peers(self, number: int, steps: int) -> list[TrialRungs]:
        """Trials that have this rung, the trial itself among them, by number."""
        having = self.having.get(steps, [])
        place = bisect_left(having, number)
        return [self.trials[each] for each in having[max(0, place - PEERS):place + PEERS + 1]]


def compared_at(peers: list[TrialRungs], steps: int, last: int) -> int:
    """The rung at which these trials, all of which have `steps`, are compared: the last one if enough have it for a regression."""
    return last if sum(last in each.values for each in peers) >= FEWEST_PAIRS else steps


def stacked(trials: list[TrialRungs], steps: int) -> np.ndarray:
    """Replicates of that rung of each of the trials, (R, n, m)."""
    found = np.empty((len(trials), REPLICATES, len(trials[0].values[steps])))
    for i, trial in enumerate(trials):
        replicates = trial.replicates[steps]
        found[i] = trial.values[steps] if replicates is None else replicates
    return found.swapaxes(0, 1)


class Regression:
    """Least squares with an intercept and a little ridge, from all objectives at one rung on each objective at a later one.

    Both sides are first put on a scale that is linear in the middle and logarithmic far out, asinh of the distance from the median in
    robust standard deviations: scores such as `fd` are heavy-tailed, so that a few diverged trials would be the whole fit, while
    others, such as `copy_excess`, are negative as often as not, so that no logarithm will do. It is monotone, so that nobody dominates
    anybody on it who did not before.
    """

    def __init__(self, steps: int, last: int, both: list[TrialRungs]):
        self.steps, self.last = steps, last
        before, after = (np.stack([trial.values[each] for trial in both]) for each in (steps, last))
        self.before, self.after = scale_of(before), scale_of(after)
        x, y = design(self.before(before)), self.after(after)
        penalty = RIDGE * np.diag([0.0] + [1.0] * before.shape[1])  # none on the intercept
        solved = np.linalg.solve(x.T @ x + penalty, x.T)
        self.coefficients = solved @ y  # (1 + m, m)
        leverage = np.einsum("ij,ji->i", x, solved)
        # A trial's residual where it was left out of the fit: what is predicted is not in the fit either.
        self.residuals = (y - x @ self.coefficients) / np.maximum(1 - leverage, 1 / len(both))[:, None]

    def scores(self, trials: list[TrialRungs]) -> np.ndarray:
        """What the trials become by the later rung, on the scale of the fit, (R, n, m): measured, or predicted with residuals drawn in."""
        found = np.empty((REPLICATES, len(trials), self.residuals.shape[1]))
        measured = np.array([self.last in trial.values for trial in trials])
        for chosen, made in ((measured, self.measured), (~measured, self.predicted)):
            if chosen.any():
                found[:, chosen] = made([trial for trial, wanted in zip(trials, chosen) if wanted])
        return found

    def measured(self, trials: list[TrialRungs]) -> np.ndarray:
        return self.after(stacked(trials, self.last))

    def predicted(self, trials: list[TrialRungs]) -> np.ndarray:
        centre = design(self.before(stacked(trials, self.steps))) @ self.coefficients
        # All objectives of one residual together, since they are correlated; of each trial and replicate its own, whoever is compared.
        drawn = np.stack([draws(trial.number, self.steps) for trial in trials], axis=1)
        return centre + self.residuals[(drawn * len(self.residuals)).astype(int)]


@lru_cache(MOST_DRAWS)
def draws(number: int, steps: int) -> np.ndarray:
    """Of the residuals of this trial at this rung, (R,) float64 from 0 to 1. Kept, since making them takes as long as all the comparing."""
    return np.random.default_rng([DRAWS, number, steps]).random(REPLICATES)


def design(values: np.ndarray) -> np.ndarray:
    """With the intercept, (..., m) -> (..., 1 + m)."""
    return np.concatenate([np.ones((*values.shape[:-1], 1)), values], axis=-1)


def scale_of(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The monotone scale that these values, (n, m), suggest for each objective; shifting and stretching an objective changes nothing."""
    low, centre, high = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
    spread = (high - low) / QUARTILES_OF_A_NORMAL
    spread = np.where(spread > 0, spread, values.std(axis=0))
    spread = np.where(spread > 0, spread, 1.0)
    return lambda given: np.arcsinh((given - centre) / spread)
