"""Uncertainty by patients: means over patients of their pictures' means, the delete-a-group jackknife, intervals, replicates.

No statistic is computed on resampled patients: drawing them with replacement shrinks the number of distinct pictures by
37 %, which raises a Fréchet distance (its bias goes with 1/n) and lengthens nearest distances. Deleting one group changes
n by a hundredth, needs no random numbers, and its variance is biased upwards if at all (Efron and Stein 1981). Bootstrap
replicates are linear in how far each unit moves the estimate (the infinitesimal jackknife), so they have that variance.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from metrics.arrays import finite, same_length
from metrics.bootstrap import REPLICATES, excess_draws
from metrics.errors import BadArray
from metrics.estimate import Estimate

NORMAL_975 = 1.959963984540054  # 97.5 % quantile of the standard normal
STUDENT_FREEDOM = (1, 2, 3, 4, 5, 6, 8, 10, 14, 20, 40, math.inf)
STUDENT_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3060, 2.2281, 2.1448, 2.0860, 2.0211, NORMAL_975)
JACKKNIFE_GROUPS = 100  # more groups change an interval by less than 1 % of its width and cost time


@dataclass(frozen=True, eq=False)
class Spread:
    """What of an estimate is due to one sample of independent units: patients, or groups of them.

    Attributes:
        moves: (units,) how far the estimate moves where a unit is drawn once more; they sum to 0, their squares to the variance.
        names: of the units, by which they are drawn alike in all estimates.
    """

    moves: np.ndarray
    names: tuple[Hashable, ...]

    @property
    def variance(self) -> float:
        return float(np.sum(self.moves**2))

    @property
    def units(self) -> int:
        return len(self.moves)

    def __neg__(self) -> Spread:
        """That of an estimate that is subtracted."""
        return Spread(-self.moves, self.names)

    def replicates(self) -> np.ndarray:
        """(256,) deviations from the estimate, in units drawn alike everywhere."""
        return excess_draws(self.names) @ self.moves


def patient_means(values: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Mean of each patient's pictures: values (n,), patients (n,) -> (n_patients,), by sorted patient.

    >>> patient_means(np.array([1.0, 3.0, 5.0]), np.array(["a", "a", "b"])).tolist()
    [2.0, 5.0]
    """
    values = finite("values", values, 1)
    same_length("values", values, "patients", patients)
    _, row = np.unique(patients, return_inverse=True)
    return np.bincount(row, weights=values) / np.bincount(row)


def mean_over_patients(values: np.ndarray, patients: np.ndarray) -> tuple[float, Spread]:
    """Mean over patients of their pictures' means, with the spread of that mean: values (n,), patients (n,).

    Raises:
        BadArray: fewer than two patients, which have no variance.
    """
    means = patient_means(values, patients)
    if len(means) < 2:
        raise BadArray(f"patients holds {len(means)} patient, an interval needs at least 2: take more patients")
    count = len(means)
    moves = (means - means.mean()) / math.sqrt(count * (count - 1))
    return float(means.mean()), Spread(moves, names_of(patients))


def groups_of(patients: np.ndarray, at_most: int = JACKKNIFE_GROUPS) -> np.ndarray:
    """Number of the group that each picture is deleted with: patients (n,) -> (n,) integers from 0.

    A group is a patient while there are at most `at_most` of them; else every `at_most`-th of the sorted patients.

    Raises:
        BadArray: fewer than two patients.
    """
    names, row = np.unique(patients, return_inverse=True)
    if len(names) < 2:
        raise BadArray(f"patients holds {len(names)} patient, an interval needs at least 2: take more patients")
    return row % at_most


def names_of(patients: np.ndarray, at_most: int | None = None) -> tuple[Hashable, ...]:
    """Names of the groups of `groups_of` in their order, or of all patients: a group is called after its first."""
    return tuple(np.unique(patients)[:at_most].tolist())


def jackknife(left_out: np.ndarray, names: Sequence[Hashable]) -> Spread:
    """Delete-a-group jackknife: left_out (n_groups,), the statistic without each group, names (n_groups,) -> its spread."""
    count = len(left_out)
    return Spread((left_out.mean() - left_out) * math.sqrt((count - 1) / count), tuple(names))


def interval(value: float, spreads: Iterable[Spread], floor: float = -math.inf) -> Estimate:
    """The 95 % interval value ± t · sqrt(sum of variances), by independent samples of patients, and replicates of the same variance.

    t has Welch and Satterthwaite's degrees of freedom. `floor` cuts the interval where the statistic cannot lie
    below (a Fréchet distance cannot be negative); value and replicates are never cut.
    """
    spreads = [spread for spread in spreads if spread.variance > 0]
    variance = sum(spread.variance for spread in spreads)
    if variance == 0:
        return Estimate(value, value, value, np.full(REPLICATES, value))
    freedom = variance**2 / sum(spread.variance**2 / (spread.units - 1) for spread in spreads)
    half = student_975(freedom) * math.sqrt(variance)
    replicates = value + sum(spread.replicates() for spread in spreads)
    return Estimate(value, min(value, max(floor, value - half)), value + half, replicates)


def student_975(freedom: float) -> float:
    """97.5 % quantile of Student's t, linear in 1 / freedom between tabulated values (within 0.5 % from 3 on).

    >>> round(student_975(10), 3)
    2.228
    """
    return float(np.interp(1 / freedom, 1 / np.array(STUDENT_FREEDOM)[::-1], STUDENT_975[::-1]))
