"""Figures that several measurements are summed up by. What is measured, and the tables, are theirs."""

from __future__ import annotations

import numpy as np

from metrics.estimate import Estimate
from metrics.patients import NORMAL_975


def z(estimate: Estimate) -> float:
    """Value over its standard error by patients, from the width of the interval; 0 for one that is 0 without width."""
    if estimate.low == estimate.value == estimate.high == 0:
        return 0.0
    return estimate.value / ((estimate.high - estimate.low) / 2 / NORMAL_975)


def seed_noise(values: np.ndarray) -> float:
    """Pooled deviation between seeds of one method: values (methods, seeds)."""
    return float(np.sqrt(values.var(1, ddof=1).mean()))


def signal_to_noise(values: np.ndarray) -> float:
    """Range of the methods' means over the pooled deviation between seeds: values (methods, seeds)."""
    return float(np.ptp(values.mean(1)) / seed_noise(values))


def pairs_apart(values: np.ndarray, chance: float = 0.05) -> int:
    """How many pairs of methods a score tells apart: values (methods, seeds). Student's t of two means over seeds, with the
    deviation between seeds pooled over all methods, two-sided at `chance`."""
    from scipy.stats import t

    methods, seeds = values.shape
    least = t.ppf(1 - chance / 2, methods * (seeds - 1)) * seed_noise(values) * np.sqrt(2 / seeds)
    means = values.mean(1)
    return int(np.sum(np.abs(means[:, None] - means)[np.triu_indices(methods, 1)] > least))


def chance_of_fewer(least: int, intervals: int, level: float = 0.95) -> float:
    """How likely fewer than `least` of so many independent intervals hold the truth, if each does with chance `level`."""
    from scipy.stats import binom

    return float(binom.cdf(least - 1, intervals, level))
