"""Optuna's Gaussian process on a conditional space: its acquisition function is maximised over what the space can give.

Optuna maximises it over the whole flattened box. There, on such a space, it soon proposes what cannot be had: a value of a parameter
that the proposed method has not. What is run instead teaches nothing about that point, and it is proposed again and again.

The default's process has another kernel, sees scores on a scale on which they are nearly normal, and prefers what is found in less time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from hpo.flat import at, place
from hpo.history import FAILED

if TYPE_CHECKING:
    import torch

RANDOM_POINTS = 200  # of the space, before the best are varied
BESIDE = (0.1, 0.1, 0.03, 0.03)  # of points of the front, as many more as these: the standard deviation of a child's numbers, of a range of 1
ROUNDS, SURVIVORS, CHILDREN = 8, 8, 6  # of an evolution strategy: as many points of the space again, twice
MOST_POINTS = 200  # that a process is fitted to, which takes 1 to 3 s; the time grows faster than their square
WIDEST, NARROWEST = 0.3, 0.01  # standard deviation of a child's numbers in the first and last round, of a range of 1
CHANGES = 1.5  # parameters that a child changes, on average
FEWEST = 4  # different values, from which a power can be told
NEAR, FAR, FARTHEST = 3.0, 100.0, 1e30  # in quartiles' distances from the median: see `bounded`
LEAST_GAIN = 1e-12  # whose logarithm is taken, as Optuna has it
LARGEST = 1e300  # of a score: differences of larger ones may be infinite
ADDITIVE = 0.9  # share of the kernel's variance that is a sum over the parameters


class Candidates(Protocol):
    """What is chosen from, by flattened parameters."""

    def reach(self, wishes: dict[str, Any], generator: np.random.RandomState) -> dict[str, Any] | None:
        """A new candidate that has as many of these parameters as it can; the rest at random. None where that gives no candidate, or one that was
        tried: a noisy objective would have the best measured once more."""

    def seconds(self, points: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """What trials of these candidates are expected to take, (n,) float64; only ratios count."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Its matrices are small: more threads than one wait for each other, and with workers side by side take ten times as long and more."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class ReachableGP(optuna.samplers.GPSampler):
    """GPSampler with another maximiser, a method that its authors leave for others to override, and a limit on what it is fitted to. Torch's
    default device must be the CPU."""

    def __init__(self, seed: int, candidates: Candidates):
        super().__init__(seed=seed, n_startup_trials=0, warn_independent_sampling=False)
        self.candidates, self.random = candidates, np.random.RandomState(seed)

    def _optimize_acqf(self, acqf: Any, best_params: np.ndarray | None) -> np.ndarray:
        """acqf: of normalised points (n, d) -> (n,); best_params: (k, d), of the front. Gives the best point (d,) that was found."""
        space, distributions = acqf.search_space, acqf.search_space._optuna_search_space

        def scored(points: list[dict[str, Any]]) -> list[tuple[float, dict[str, Any]]]:
            return list(zip(self.merits(acqf.eval_acqf_no_grad(space.get_normalized_params(points, points)), points).tolist(), points))

        front = [] if best_params is None else [space.get_unnormalized_param(row) for row in best_params]
        points = self.reached([*[{}] * RANDOM_POINTS, *(self.child(point, distributions, width) for point in front for width in BESIDE)])
        if not points:  # each candidate was tried, or the space gives none: the trial that is asked will say so
            return super()._optimize_acqf(acqf, best_params)
        best = scored(points)
        for width in np.geomspace(WIDEST, NARROWEST, ROUNDS):
            best = sorted(best, key=lambda each: -each[0])[:SURVIVORS]
            children = self.reached([self.child(point, distributions, width) for _, point in best for _ in range(CHILDREN)])
            best += scored(children) if children else []
        winner = max(best, key=lambda each: each[0])[1]
        return space.get_normalized_params([winner], [winner])[0]

    def merits(self, acquisitions: np.ndarray, points: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """What is maximised: the acquisition function's logarithm of points, (n,)."""
        return acquisitions

    @one_thread()
    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """As GPSampler has it, without its torch.device context, which sends each small tensor operation through Python and makes a proposal take
        a third longer, and without a note of the proposal in the trial, of which the history keeps none."""
        if not search_space:
            return {}
        completed, running = (study.get_trials(deepcopy=False, states=(state,)) for state in (TrialState.COMPLETE, TrialState.RUNNING))
        return self._sample_relative_impl(study, completed, [each for each in running if search_space.keys() <= each.params.keys()], search_space)

    def _sample_relative_impl(self, study: optuna.Study, completed_trials: list[FrozenTrial], *others: Any) -> dict[str, Any]:
        return super()._sample_relative_impl(study, self.fitted_to(study, completed_trials), *others)

    def fitted_to(self, study: optuna.Study, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        return thinned(study, trials)

    def reached(self, wishes: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [point for wish in wishes if (point := self.candidates.reach(wish, self.random)) is not None]

    def child(self, parent: dict[str, Any], distributions: dict[str, BaseDistribution], width: float) -> dict[str, Any]:
        changed = self.random.rand(len(distributions)) < CHANGES / len(distributions)
        changed[self.random.randint(len(distributions))] = True
        return parent | {name: self.varied(parent[name], distribution, width) for (name, distribution), is_changed in zip(distributions.items(), changed)
                         if is_changed}

    def varied(self, value: Any, distribution: BaseDistribution, width: float) -> Any:
        if isinstance(distribution, CategoricalDistribution):
            return at(distribution, self.random.rand())
        return at(distribution, min(max(place(distribution, value) + width * self.random.randn(), 0.0), 1.0))


class AdditiveGP(ReachableGP):
    """The default's: most of what a parameter does it does whatever the others are, so most of the kernel is a sum over parameters. Far from what was
    measured a process with a product of them expects anything, which in the corners of many dimensions is all that it looks at.

    Scores have long tails (`fd` of a diverged training) and noise that grows with them; each objective is raised to the power that makes it most
    nearly normal. What is maximised is expected hypervolume improvement a second. Source: Duvenaud et al. 2011, additive Gaussian processes, of
    first order; Cowen-Rivers et al. 2022 (HEBO), power transforms; Snoek et al. 2012, expected improvement per second.
    """

    def _optimize_acqf(self, acqf: Any, best_params: np.ndarray | None) -> np.ndarray:
        from optuna._gp.acqf import qLogCEI, qLogEI

        return super()._optimize_acqf(gain()(acqf) if isinstance(acqf, (qLogEI, qLogCEI)) else acqf, best_params)

    def merits(self, acquisitions: np.ndarray, points: Sequence[Mapping[str, Any]]) -> np.ndarray:
        return acquisitions - np.log(self.candidates.seconds(points))

    def fitted_to(self, study: optuna.Study, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        return normalised(super().fitted_to(study, trials))

    def _sample_relative_impl(self, *given: Any) -> dict[str, Any]:
        with additive_kernel():
            return super()._sample_relative_impl(*given)


@contextmanager
def additive_kernel() -> Iterator[None]:
    """Optuna has no place to hand a kernel in: inside, its Gaussian processes are ours."""
    from optuna._gp import gp

    plain, gp.GPRegressor = gp.GPRegressor, additive_regressor()
    try:
        yield
    finally:
        gp.GPRegressor = plain


@cache
def additive_regressor() -> type:
    """Made when it is needed: the class below brings torch with it."""
    from optuna._gp.gp import GPRegressor, Matern52Kernel

    class AdditiveRegressor(GPRegressor):
        def kernel(self, X1: torch.Tensor | None = None, X2: torch.Tensor | None = None) -> torch.Tensor:
            """Matérn 5/2 of each parameter by itself, on average, and of all of them together; (n, d) and (k, d) -> (n, k), as GPRegressor.kernel."""
            squares = self._squared_X_diff if X1 is None else self.squares(X1, self._X_train if X2 is None else X2)
            together = Matern52Kernel.apply(squares.matmul(self.inverse_squared_lengthscales))
            apart = Matern52Kernel.apply(squares * self.inverse_squared_lengthscales).mean(-1)
            return (ADDITIVE * apart + (1 - ADDITIVE) * together) * self.kernel_scale

        def squares(self, X1: torch.Tensor, X2: torch.Tensor) -> torch.Tensor:
            """Squared distances by parameter, (n, k, d); 1 between different choices."""
            found = (X1 - X2 if X1.ndim == 1 else X1.unsqueeze(-2) - X2.unsqueeze(-3)).square_()
            found[..., self._is_categorical] = (found[..., self._is_categorical] > 0).to(found.dtype)
            return found

    return AdditiveRegressor


@cache
def gain() -> type:
    """Made when it is needed, like the class above."""
    from optuna._gp.acqf import BaseAcquisitionFunc, qLogCEI

    class Gain(BaseAcquisitionFunc):
        """What a candidate adds to the trials that run. Optuna's acquisition functions of one objective say what all of them are worth together; a
        share of that by the candidate's own seconds would be the larger the less it takes, whatever it is worth."""

        def __init__(self, whole: Any):
            self.whole = whole
            self.terms = [whole._acqf, *whole._constraints_acqf_list] if isinstance(whole, qLogCEI) else [whole]
            super().__init__(whole.length_scales, whole.search_space)

        def eval_acqf(self, x: torch.Tensor) -> torch.Tensor:
            """(n, d) -> (n,), a logarithm."""
            utilities = sum(term.compute_per_sample_log_utility(x) for term in self.terms).exp()  # (n, samples, running + 1), the candidate last
            return (utilities[..., -1] - utilities[..., :-1].amax(-1)).clamp_min(LEAST_GAIN).mean(-1).log()

    return Gain


def thinned(study: optuna.Study, trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """At most MOST_POINTS of the trials, in their order: the front, some that failed, and the newest."""
    if len(trials) <= MOST_POINTS:
        return trials
    front = {trial.number for trial in study.best_trials[-MOST_POINTS // 2:]}
    front |= set([trial.number for trial in trials if FAILED in trial.system_attrs][-MOST_POINTS // 4:])
    others = [trial.number for trial in trials if trial.number not in front]
    kept = front | set(others[len(front) - MOST_POINTS:])
    return [trial for trial in trials if trial.number in kept]


def normalised(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials, each objective on a scale on which it is nearly normal, in the same order."""
    values = np.array([trial.values for trial in trials])
    columns = np.stack([nearly_normal(column) for column in values.T], axis=1)
    shown = [copy(trial) for trial in trials]
    for trial, own in zip(shown, columns.tolist()):
        trial.values = own
    return shown


def nearly_normal(values: np.ndarray) -> np.ndarray:
    """(n,) -> (n,), Yeo and Johnson's power transform of distances from the median in quartiles' distances; fewer than FEWEST different values, which
    tell of no power, are as they were."""
    from scipy.stats import yeojohnson

    if len(np.unique(values)) < FEWEST:
        return values
    values = np.clip(values, -LARGEST, LARGEST)
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    with np.errstate(over="ignore"):  # then the deviation is infinite
        deviation = min(values.std(), np.abs(values - middle).max())
    return yeojohnson(bounded((values - middle) / (high - low or deviation)))[0]


def bounded(distances: np.ndarray) -> np.ndarray:
    """(n,) -> (n,): logarithms of what is far, in the same order, where no power could tell the rest apart: far on both sides, or FARTHEST."""
    below, above = -distances.min(), distances.max()
    if min(below, above) <= FAR and max(below, above) <= FARTHEST:
        return distances
    beyond = np.maximum(np.abs(distances) - NEAR, 0.0)
    return np.clip(distances, -NEAR, NEAR) + np.sign(distances) * np.arcsinh(beyond)
