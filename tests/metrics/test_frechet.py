"""Fréchet distance.

Measured coverage of the 95 % interval, against the mean over 400 draws (24 dimensions of falling variance, pictures
of a patient correlated at .7; the slow test repeats two of the cases):

| patients × pictures, fake and real | same distribution | shift .2 | scale .6 | shift .5, scale .8 |
|---|---|---|---|---|
| 48 × 2, 100 × 1 | .998 | .960 | .948 | .927 |
| 60 × 4, 60 × 4 | .988 | .958 | .963 | .938 |
| 12 × 2, 12 × 2 (6 dimensions) | .978 | .945 | .953 | .945 |

Near the floor the jackknife is too wide (half-width .18 where 1.96 deviations are .13), elsewhere right.
"""

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from metrics.errors import BadArray
from metrics.frechet import Projection, dimension_for, fd, fd_estimate


class Features(torch.nn.Module):
    """Stands where Inception does in torchmetrics: what it is given are features already."""

    def __init__(self, dimension):
        super().__init__()
        self.num_features = dimension

    def forward(self, features):
        return features


@pytest.fixture
def two_sets():
    rng = np.random.default_rng(0)
    return rng.standard_normal((60, 6)), rng.standard_normal((50, 6)) @ rng.standard_normal((6, 6)) + 0.3


def test_fd_by_hand():
    """Variances 2 and 8, means 1 and 4: 3² + (√8 - √2)² = 9 + 2."""
    assert fd(np.array([[0.0], [2.0]]), np.array([[2.0], [6.0]])) == pytest.approx(11.0)


def test_fd_of_diagonal_gaussians_is_that_of_their_deviations():
    square = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])  # uncorrelated, variance 4/3
    assert fd(square, square * [2.0, 3.0]) == pytest.approx(4 / 3 * (1 + 4))


def test_fd_agrees_with_torchmetrics(two_sets):
    reference = FrechetInceptionDistance(feature=Features(6)).set_dtype(torch.float64)
    reference.update(torch.from_numpy(two_sets[0]), real=True)
    reference.update(torch.from_numpy(two_sets[1]), real=False)
    assert fd(*two_sets) == pytest.approx(float(reference.compute()), rel=1e-6)


def test_fd_invariances(two_sets):
    real, fake = two_sets
    rng = np.random.default_rng(1)
    rotation, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    distance = fd(real, fake)
    assert fd(fake, real) == pytest.approx(distance)
    assert fd(real @ rotation + 5, fake @ rotation + 5) == pytest.approx(distance)
    assert fd(rng.permutation(real), rng.permutation(fake)) == pytest.approx(distance)
    assert fd(3 * real, 3 * fake) == pytest.approx(9 * distance)
    assert fd(real, real + 2) == pytest.approx(6 * 4)
    assert fd(real, real) == pytest.approx(0, abs=1e-9)


def test_fd_of_one_distribution_is_its_known_bias():
    """About (d² / 2 + 2 d) / n for equal sets of n (reference values: 2.7 at d = 64, n = 800)."""
    rng = np.random.default_rng(0)
    assert fd(rng.standard_normal((800, 64)), rng.standard_normal((800, 64))) == pytest.approx(2.7, rel=0.1)


def test_collapsed_pictures_have_a_distance(two_sets):
    real, _ = two_sets
    collapsed = np.repeat(real[:1], 20, axis=0)
    spread = np.trace(np.cov(real, rowvar=False))
    assert fd(real, collapsed) == pytest.approx(np.sum((real.mean(axis=0) - real[0]) ** 2) + spread)


@pytest.mark.parametrize("case", ["left out", "rows permuted"])
def test_the_interval_is_that_of_leaving_patients_out_one_by_one(case, two_sets):
    real, fake = two_sets
    real_patients, fake_patients = np.arange(60) // 3, np.arange(50) // 2
    estimate = fd_estimate(real, real_patients, fake, fake_patients)
    assert estimate.value == fd(real, fake)
    if case == "rows permuted":
        order = np.random.default_rng(2).permutation(60)
        other = fd_estimate(real[order], real_patients[order], fake, fake_patients)
        assert (other.low, other.high) == (pytest.approx(estimate.low), pytest.approx(estimate.high))
        return
    variance = 0.0
    for patients, without in (
        (real_patients, lambda kept: fd(real[kept], fake)),
        (fake_patients, lambda kept: fd(real, fake[kept])),
    ):
        names = np.unique(patients)
        left_out = np.array([without(patients != name) for name in names])
        variance += (len(names) - 1) ** 2 / len(names) * left_out.var(ddof=1)
    half = estimate.high - estimate.value
    assert 1.96 * variance**0.5 < half < 2.1 * variance**0.5  # Student's t for some 40 degrees of freedom


def test_projection_keeps_what_lies_in_it_and_is_fitted_once():
    rng = np.random.default_rng(0)
    flat = rng.standard_normal((40, 3)) @ rng.standard_normal((3, 10)) + 1
    project = Projection.fit(flat, 3)
    others = rng.standard_normal((30, 3)) @ (flat[:3] - flat[3]) + flat[3]
    assert project.axes.T @ project.axes == pytest.approx(np.eye(3))
    assert fd(project(flat), project(others)) == pytest.approx(fd(flat, others), rel=1e-6)
    assert project(flat).var(axis=0).tolist() == sorted(project(flat).var(axis=0), reverse=True)
    assert Projection.fit(flat[:3], 8).axes.shape == (10, 2)
    with pytest.raises(BadArray, match="features has 9 columns, the projection 10"):
        project(flat[:, :9])


def test_dimension_is_a_quarter_of_the_smallest_set():
    assert dimension_for(96) == 24 and dimension_for(99) == 24
    with pytest.raises(BadArray, match="n_pictures=3"):
        dimension_for(3)


@pytest.mark.parametrize(
    "real, fake, message",
    [
        (np.full((3, 2), np.nan), np.ones((3, 2)), "real holds NaN"),
        (np.ones((3, 2)), np.ones((3, 3)), "real has 2 columns, fake 3"),
        (np.ones((3, 2)), np.ones((1, 2)), "needs at least 2"),
    ],
)
def test_what_has_no_distance_is_refused(real, fake, message):
    with pytest.raises(BadArray, match=message):
        fd(real, fake)


def coverage(draw_patients, draws, shift, scale):
    estimates = []
    spectrum = 1 / np.sqrt(np.arange(1, 25))
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        real, real_patients = draw_patients(rng, 100, 1, 24)
        fake, fake_patients = draw_patients(rng, 48, 2, 24)
        estimates.append(fd_estimate(real * spectrum, real_patients, fake * spectrum * scale + shift, fake_patients))
    mean = np.mean([estimate.value for estimate in estimates])
    return np.mean([not estimate.excludes(mean) for estimate in estimates])


def test_the_interval_covers_the_mean_over_draws(draw_patients):
    assert coverage(draw_patients, draws=120, shift=0.2, scale=1.0) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("shift, scale, most", [(0.0, 1.0, 1.0), (0.5, 0.8, 0.97)])
def test_measured_coverage(draw_patients, shift, scale, most):
    assert 0.91 <= coverage(draw_patients, 400, shift, scale) <= most
