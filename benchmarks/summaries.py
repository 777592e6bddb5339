"""Figures that several measurements are summed up by. What is measured, and the tables, are theirs."""

from __future__ import annotations

import numpy as np

from metrics.estimate import Estimate
from metrics.patients import NORMAL_975


def z(estimate: Estimate) -> float:
    """Value over its standard error by patients, from the width of the interval."""
    return estimate.value / ((estimate.high - estimate.low) / 2 / NORMAL_975)


def seed_noise(values: np.ndarray) -> float:
    """Pooled deviation between seeds of one method: values (methods, seeds)."""
    return float(np.sqrt(values.var(1, ddof=1).mean()))


def signal_to_noise(values: np.ndarray) -> float:
    """Range of the methods' means over the pooled deviation between seeds: values (methods, seeds)."""
    return float(np.ptp(values.mean(1)) / seed_noise(values))


def chance_of_ratio(one: float, other: float, freedom: int) -> float:
    """How likely two scores whose signal to noise is truly the same differ by this ratio or more, either way: the F test of two
    deviations that were each measured with `freedom` degrees of freedom."""
    from scipy.stats import f

    return float(min(1.0, 2 * f.sf((max(one, other) / min(one, other)) ** 2, freedom, freedom)))
