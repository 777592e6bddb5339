"""Kernel distance (KID): the unbiased squared maximum mean discrepancy under a cubic kernel, and its interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metrics.arrays import finite, same_length
from metrics.errors import BadArray
from metrics.estimate import Estimate
from metrics.patients import JACKKNIFE_GROUPS, groups_of, interval, jackknife, names_of

DEGREE = 3  # Bińkowski et al. 2018, section 4
OFFSET = 1.0


def kid(real: np.ndarray, fake: np.ndarray) -> float:
    """real (n, d), fake (m, d) -> unbiased squared MMD of all pictures, k(x, y) = (x·y / d + 1)³.

    No subsets: the spread of overlapping subsets is not an interval, and few pictures need none. Negative values are
    what makes it unbiased for independent pictures and are never clipped. Symmetric, unchanged by a common rotation
    (not by a shift). Source: Bińkowski et al. 2018, "Demystifying MMD GANs", eq. 4.

    >>> kid(np.array([[0.0], [0.0]]), np.array([[1.0], [1.0]]))
    7.0

    Raises:
        BadArray: NaN, fewer than two pictures, or different numbers of columns.
    """
    real, fake = _both(real, fake)
    within_real = _Within.of(real, np.arange(len(real)))
    within_fake = _Within.of(fake, np.arange(len(fake)))
    return within_real.mean() + within_fake.mean() - 2 * float(_kernel(real, fake).mean())


def kid_estimate(real: np.ndarray, real_patients: np.ndarray, fake: np.ndarray, fake_patients: np.ndarray) -> Estimate:
    """`kid` with a 95 % interval, by leaving out patients of both sets: (n, d), (n,), (m, d), (m,)."""
    real, fake = _both(real, fake)
    same_length("real", real, "real_patients", real_patients)
    same_length("fake", fake, "fake_patients", fake_patients)
    real_group, fake_group = groups_of(real_patients), groups_of(fake_patients)
    within_real, within_fake = _Within.of(real, real_group), _Within.of(fake, fake_group)
    across = _kernel(real, fake)
    value = within_real.mean() + within_fake.mean() - 2 * float(across.mean())
    without_real = within_real.means_left_out() - 2 * _means_left_out(across.mean(axis=1), real_group)
    without_fake = within_fake.means_left_out() - 2 * _means_left_out(across.mean(axis=0), fake_group)
    return interval(value, [jackknife(without_real, names_of(real_patients, JACKKNIFE_GROUPS)), jackknife(without_fake, names_of(fake_patients, JACKKNIFE_GROUPS))])


@dataclass(frozen=True, eq=False)
class _Within:
    """Kernel sums inside one set by groups of pictures, without pairs of a picture with itself."""

    sums: np.ndarray  # (n_groups, n_groups)
    counts: np.ndarray  # (n_groups,) pictures

    @classmethod
    def of(cls, features: np.ndarray, group: np.ndarray) -> _Within:
        kernel = _kernel(features, features)
        np.fill_diagonal(kernel, 0.0)
        member = np.eye(group.max() + 1)[group]
        return cls(member.T @ kernel @ member, member.sum(axis=0))

    def mean(self) -> float:
        n = self.counts.sum()
        return float(self.sums.sum() / (n * (n - 1)))

    def means_left_out(self) -> np.ndarray:
        n = self.counts.sum() - self.counts
        if n.min() < 2:
            raise BadArray("one patient has all pictures but one: an interval needs more patients")
        return (self.sums.sum() - 2 * self.sums.sum(axis=1) + np.diag(self.sums)) / (n * (n - 1))


def _means_left_out(rows: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Mean of rows (n,) without each group."""
    counts = np.bincount(group)
    return (rows.sum() - np.bincount(group, weights=rows)) / (len(rows) - counts)


def _kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first @ second.T / first.shape[1] + OFFSET) ** DEGREE


def _both(real: np.ndarray, fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    real, fake = finite("real", real, 2), finite("fake", fake, 2)
    if real.shape[1] != fake.shape[1]:
        raise BadArray(f"real has {real.shape[1]} columns, fake {fake.shape[1]}: use one encoder for both")
    if min(len(real), len(fake)) < 2:
        raise BadArray(f"real has {len(real)} pictures, fake {len(fake)}: an unbiased distance needs at least 2")
    return real, fake
