"""Kernel distance. Measured coverage of the 95 % interval: .94 to .98 over the twelve cases of test_frechet."""

import numpy as np
import pytest
import torch
from torchmetrics.image.kid import KernelInceptionDistance

from metrics.errors import BadArray
from metrics.kernel import kid, kid_estimate


class Features(torch.nn.Module):
    """Stands where Inception does in torchmetrics: what it is given are features already."""

    num_features = 6

    def forward(self, features):
        return features


@pytest.fixture
def two_sets():
    rng = np.random.default_rng(0)
    return rng.standard_normal((40, 6)), rng.standard_normal((40, 6)) * 1.3 + 0.3


def test_kid_by_hand():
    """k = (x y + 1)³ on {0, 1} and {1, 2}: k(0,1) = 1, k(1,2) = 27, mean across (1 + 1 + 8 + 27) / 4 = 9.25."""
    assert kid(np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])) == pytest.approx(1 + 27 - 2 * 9.25)


def test_kid_agrees_with_torchmetrics(two_sets):
    reference = KernelInceptionDistance(feature=Features(), subsets=1, subset_size=40).set_dtype(torch.float64)
    reference.update(torch.from_numpy(two_sets[0]), real=True)
    reference.update(torch.from_numpy(two_sets[1]), real=False)
    assert kid(*two_sets) == pytest.approx(float(reference.compute()[0]), rel=1e-6)


def test_kid_invariances(two_sets):
    real, fake = two_sets
    rng = np.random.default_rng(1)
    rotation, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    assert kid(fake, real) == pytest.approx(kid(real, fake))
    assert kid(real @ rotation, fake @ rotation) == pytest.approx(kid(real, fake))
    assert kid(rng.permutation(real), rng.permutation(fake)) == pytest.approx(kid(real, fake))


def test_kid_of_one_distribution_is_0_on_average_and_is_not_clipped():
    rng = np.random.default_rng(0)
    values = np.array([kid(rng.standard_normal((20, 4)), rng.standard_normal((30, 4))) for _ in range(400)])
    assert abs(values.mean()) < 3 * values.std() / 20
    assert 0.3 < np.mean(values < 0) < 0.8


def test_the_interval_is_that_of_leaving_patients_out_one_by_one(two_sets):
    real, fake = two_sets
    patients = np.arange(40) // 2
    estimate = kid_estimate(real, patients, fake, patients)
    assert estimate.value == pytest.approx(kid(real, fake))
    left_out = [[kid(real[patients != one], fake), kid(real, fake[patients != one])] for one in range(20)]
    deviation = np.sqrt(19**2 / 20 * np.var(left_out, axis=0, ddof=1).sum())
    assert 1.96 * deviation < estimate.high - estimate.value < 2.1 * deviation


def test_the_interval_covers_the_mean_over_draws(draw_patients):
    estimates = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        real, real_patients = draw_patients(rng, 60, 1, 8)
        fake, fake_patients = draw_patients(rng, 30, 2, 8)
        estimates.append(kid_estimate(real, real_patients, fake + 0.3, fake_patients))
    mean = np.mean([estimate.value for estimate in estimates])
    assert np.mean([not estimate.excludes(mean) for estimate in estimates]) >= 0.9


def test_what_has_no_distance_is_refused():
    with pytest.raises(BadArray, match="real has 2 columns, fake 3"):
        kid(np.ones((3, 2)), np.ones((3, 3)))
    with pytest.raises(BadArray, match="needs at least 2"):
        kid(np.ones((3, 2)), np.ones((1, 2)))
