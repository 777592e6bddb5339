"""Fréchet distance between two sets of pictures, in a PCA space that few pictures can fill, and its interval.

Feature extraction is not here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metrics.arrays import finite, same_length
from metrics.errors import BadArray
from metrics.estimate import Estimate
from metrics.patients import JACKKNIFE_GROUPS, groups_of, interval, jackknife, names_of

PICTURES_PER_DIMENSION = 4  # a covariance of d dimensions from fewer than 4 d pictures is mostly noise


def dimension_for(n_pictures: int) -> int:
    """The most dimensions that the smallest of the sets to be compared, of `n_pictures`, can fill: a quarter of it.

    Raises:
        BadArray: fewer than 4 pictures.
    """
    if n_pictures < PICTURES_PER_DIMENSION:
        raise BadArray(
            f"n_pictures={n_pictures}, a Fréchet distance needs at least {PICTURES_PER_DIMENSION}: generate more"
        )
    return n_pictures // PICTURES_PER_DIMENSION


@dataclass(frozen=True, eq=False)
class Projection:
    """PCA without whitening: `mean` (d,), `axes` (d, k) orthonormal columns, by falling variance.

    Fitted once, on the validate pictures, and used for every model: distances of two fits are not comparable.
    """

    mean: np.ndarray
    axes: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, dimension: int) -> Projection:
        """features (n, d), wished dimension -> at most min(dimension, d, n - 1) axes.

        Raises:
            BadArray: dimension below 1, or fewer than two pictures.
        """
        features = finite("features", features, 2)
        if dimension < 1 or len(features) < 2:
            raise BadArray(f"dimension={dimension} with {len(features)} pictures: give at least 1 and 2")
        mean = features.mean(axis=0)
        _, _, rows = np.linalg.svd(features - mean, full_matrices=False)
        axes = rows[: min(dimension, features.shape[1], len(features) - 1)].T
        # The sign of an axis is the library's choice: fixed, so that projected features can be compared as well.
        largest = np.abs(axes).argmax(axis=0)
        return cls(mean, axes * np.where(axes[largest, np.arange(axes.shape[1])] < 0, -1.0, 1.0))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """features (n, d) -> (n, k)."""
        features = finite("features", features, 2)
        if features.shape[1] != len(self.mean):
            raise BadArray(f"features has {features.shape[1]} columns, the projection {len(self.mean)}: one encoder")
        return (features - self.mean) @ self.axes


def fd(real: np.ndarray, fake: np.ndarray) -> float:
    """Squared Fréchet distance of Gaussians fitted to real (n, d) and fake (m, d), in squared feature units, >= 0.

    |mu1 - mu2|² + Tr(S1 + S2 - 2 (S1 S2)^½) with ddof=1 (Heusel et al. 2017, eq. 6). Biased upwards by O(1/n):
    compare at equally many pictures, and read beside the distance of real pictures from real pictures. Rows may
    repeat. Symmetric; unchanged by a common rotation or shift; scaled by a² when both are scaled by a.

    >>> x = np.array([[0.0], [2.0]])
    >>> fd(x, x + 3.0)
    9.0

    Raises:
        BadArray: NaN, fewer than two pictures, or different numbers of columns.
    """
    real, fake = _both("real", real, "fake", fake)
    return float(_distances(*_moments(real), *(part[None] for part in _moments(fake)))[0])


def fd_estimate(real: np.ndarray, real_patients: np.ndarray, fake: np.ndarray, fake_patients: np.ndarray) -> Estimate:
    """`fd` with a 95 % interval, by leaving out patients of both sets: (n, d), (n,), (m, d), (m,).

    The patients of fake are those whose captions called its pictures up. The interval is for the mean of `fd` over
    draws of such sets of the same sizes, bias of O(1/n) included. Measured coverage (tests/metrics/test_frechet.py
    has the table): .93 to .96, and up to 1 near the floor, where the jackknife is a third too wide.

    Raises:
        BadArray: as `fd`, or fewer than two patients in a set.
    """
    real, fake = _both("real", real, "fake", fake)
    same_length("real", real, "real_patients", real_patients)
    same_length("fake", fake, "fake_patients", fake_patients)
    spreads = [
        jackknife(_distances(*_moments(fake), *_moments_left_out(real, groups_of(real_patients))), names_of(real_patients, JACKKNIFE_GROUPS)),
        jackknife(_distances(*_moments(real), *_moments_left_out(fake, groups_of(fake_patients))), names_of(fake_patients, JACKKNIFE_GROUPS)),
    ]
    return interval(fd(real, fake), spreads, floor=0.0)


def _both(name: str, first: np.ndarray, other: str, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = finite(name, first, 2), finite(other, second, 2)
    if first.shape[1] != second.shape[1]:
        raise BadArray(f"{name} has {first.shape[1]} columns, {other} {second.shape[1]}: use one encoder for both")
    if min(len(first), len(second)) < 2:
        raise BadArray(f"{name} has {len(first)} pictures, {other} {len(second)}: a covariance needs at least 2")
    return first, second


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))


def _moments_left_out(features: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means (n_groups, d) and covariances (n_groups, d, d) without each group."""
    centre = features.mean(axis=0)
    centred = features - centre
    whole = centred.T @ centred
    means, covariances = [], []
    for number in range(group.max() + 1):
        away = centred[group == number]
        count = len(features) - len(away)
        if count < 2:
            raise BadArray("one patient has all pictures but one: an interval needs more patients")
        mean = -away.sum(axis=0) / count
        means.append(centre + mean)
        covariances.append((whole - away.T @ away - count * np.outer(mean, mean)) / (count - 1))
    return np.array(means), np.array(covariances)


def _distances(mean: np.ndarray, covariance: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> np.ndarray:
    """Distances (k,) of one Gaussian from k others.

    Tr (S1 S2)^½ as the sum of roots of the eigenvalues of S1^½ S2 S1^½, which is symmetric: no complex numbers.
    """
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ covariances @ root)
    traces = np.trace(covariance) + np.trace(covariances, axis1=1, axis2=2)
    overlap = np.sqrt(np.clip(inner, 0, None)).sum(axis=1)
    # Equal sets end at -1e-12 or so, by rounding.
    return np.clip(np.sum((means - mean) ** 2, axis=1) + traces - 2 * overlap, 0, None)
