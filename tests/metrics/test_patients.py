"""Means and intervals by patients."""

import numpy as np
import pytest

from metrics.bootstrap import REPLICATES
from metrics.errors import BadArray
from metrics.patients import Spread, groups_of, interval, jackknife, mean_over_patients, patient_means, student_975


def test_mean_over_patients_by_hand():
    """Patient a has 1 and 3, b 5, c 8: means 2, 5, 8; variance 9, of the mean 3."""
    mean, spread = mean_over_patients(np.array([1.0, 3.0, 5.0, 8.0]), np.array(["a", "a", "b", "c"]))
    assert mean == 5.0 and spread.variance == pytest.approx(3.0) and spread.units == 3


def test_means_do_not_depend_on_the_order_of_pictures():
    rng = np.random.default_rng(0)
    values, patients = rng.random(20), rng.integers(0, 6, 20)
    order = rng.permutation(20)
    assert np.allclose(patient_means(values, patients), patient_means(values[order], patients[order]))


def test_the_jackknife_of_a_mean_is_the_variance_of_that_mean():
    values = np.random.default_rng(0).random(12)
    left_out = (values.sum() - values) / 11
    assert jackknife(left_out, range(12)).variance == pytest.approx(values.var(ddof=1) / 12)


def test_pictures_of_a_patient_are_left_out_together():
    patients = np.array(["b", "a", "b", "c", "d", "a"])
    assert groups_of(patients).tolist() == [1, 0, 1, 2, 3, 0]
    assert groups_of(patients, at_most=2).tolist() == [1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    "freedom, quantile", [(1, 12.706), (2, 4.303), (7, 2.365), (12, 2.179), (30, 2.042), (60, 2.000), (1e9, 1.960)]
)
def test_student_quantiles_are_those_of_the_tables(freedom, quantile):
    assert student_975(freedom) == pytest.approx(quantile, rel=5e-3)


def test_the_interval_of_a_difference_covers_at_its_level_with_few_unequal_sides():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        first, second = rng.standard_normal(8), 3 * rng.standard_normal(12)
        spreads = [mean_over_patients(some, np.arange(len(some)))[1] for some in (first, second)]
        covered += not interval(first.mean() - second.mean(), spreads).excludes(0.0)
    assert 0.93 <= covered / 1000 <= 0.97


def test_the_floor_cuts_the_interval_and_never_the_value():
    wide = Spread(np.tile([0.2, -0.2], 50), tuple(range(100)))  # of variance 4
    estimate = interval(1.0, [wide], floor=0.0)
    assert estimate.low == 0.0 and estimate.high > 4.9
    assert interval(-1.0, [wide], floor=0.0).value == -1.0


def test_one_patient_has_no_interval():
    with pytest.raises(BadArray, match="patients holds 1 patient"):
        mean_over_patients(np.ones(3), np.zeros(3))
    with pytest.raises(BadArray, match="patients holds 1 patient"):
        groups_of(np.zeros(3))


def test_replicates_have_the_variance_of_the_interval_and_the_value_as_their_mean():
    values = np.random.default_rng(1).random(200)
    mean, spread = mean_over_patients(values, np.arange(200))
    estimate = interval(mean, [spread])
    assert estimate.replicates.shape == (REPLICATES,)
    assert estimate.replicates.std() == pytest.approx(np.sqrt(spread.variance), rel=0.1)
    assert abs(estimate.replicates.mean() - mean) < 4 * np.sqrt(spread.variance / REPLICATES)


def test_the_same_patients_are_drawn_alike_in_every_estimate():
    values = np.random.default_rng(2).random(50)
    shuffled = np.random.default_rng(3).permutation(50)
    names = np.array([f"p{number}" for number in range(50)])
    one = interval(*listed(mean_over_patients(values, names)))
    other = interval(*listed(mean_over_patients(values[shuffled] + 7.0, names[shuffled])))
    assert np.allclose(one.replicates + 7.0, other.replicates)
    strangers = interval(*listed(mean_over_patients(values, np.array([f"q{number}" for number in range(50)]))))
    assert abs(np.corrcoef(one.replicates, strangers.replicates)[0, 1]) < 0.3


def listed(found):
    mean, spread = found
    return mean, [spread]
