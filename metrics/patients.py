"""Uncertainty by patients: means over patients of their pictures' means, the delete-a-group jackknife, intervals.

There is no bootstrap here: drawing patients with replacement shrinks the number of distinct pictures by 37 %, which
raises a Fréchet distance (its bias goes with 1/n) and lengthens nearest distances. Deleting one group changes n by a
hundredth, needs no random numbers, and its variance is biased upwards if at all (Efron and Stein 1981).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from metrics.arrays import finite, same_length
from metrics.errors import BadArray
from metrics.estimate import Estimate

NORMAL_975 = 1.959963984540054  # 97.5 % quantile of the standard normal
STUDENT_FREEDOM = (1, 2, 3, 4, 5, 6, 8, 10, 14, 20, 40, math.inf)
STUDENT_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3060, 2.2281, 2.1448, 2.0860, 2.0211, NORMAL_975)
JACKKNIFE_GROUPS = 100  # more groups change an interval by less than 1 % of its width and cost time


@dataclass(frozen=True)
class Spread:
    """Variance of an estimate that is due to one sample of `units` independent patients (or groups of patients)."""

    variance: float
    units: int


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
    """Mean over patients of their pictures' means, with the variance of that mean: values (n,), patients (n,).

    Raises:
        BadArray: fewer than two patients, which have no variance.
    """
    means = patient_means(values, patients)
    if len(means) < 2:
        raise BadArray(f"patients holds {len(means)} patient, an interval needs at least 2: take more patients")
    return float(means.mean()), Spread(float(means.var(ddof=1) / len(means)), len(means))


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


def jackknife(left_out: np.ndarray) -> Spread:
    """Delete-a-group jackknife: left_out (n_groups,), the statistic without each group -> its variance."""
    count = len(left_out)
    return Spread(float((count - 1) / count * np.sum((left_out - left_out.mean()) ** 2)), count)


def interval(value: float, spreads: Iterable[Spread], floor: float = -math.inf) -> Estimate:
    """The 95 % interval value ± t · sqrt(sum of variances), by independent samples of patients.

    t has Welch and Satterthwaite's degrees of freedom. `floor` cuts the interval where the statistic cannot lie
    below (a Fréchet distance cannot be negative); the value is never cut.
    """
    spreads = [spread for spread in spreads if spread.variance > 0]
    variance = sum(spread.variance for spread in spreads)
    if variance == 0:
        return Estimate(value, value, value)
    freedom = variance**2 / sum(spread.variance**2 / (spread.units - 1) for spread in spreads)
    half = student_975(freedom) * math.sqrt(variance)
    return Estimate(value, min(value, max(floor, value - half)), value + half)


def student_975(freedom: float) -> float:
    """97.5 % quantile of Student's t, linear in 1 / freedom between tabulated values (within 0.5 % from 3 on).

    >>> round(student_975(10), 3)
    2.228
    """
    return float(np.interp(1 / freedom, 1 / np.array(STUDENT_FREEDOM)[::-1], STUDENT_975[::-1]))
