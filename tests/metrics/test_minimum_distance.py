"""AMD. Measured coverage of the 95 % interval: .92 to .99 in eleven of the twelve cases of test_frechet, .88 where
pictures are far off and a few references are the nearest of nearly all of them."""

import numpy as np
import pytest

from metrics.errors import BadArray
from metrics.minimum_distance import amd, amd_estimate, minimum_distances


def test_amd_by_hand():
    """Of the directions 0°, 60° and 180° from a single reference: 0, 1/2 and 2."""
    generated = np.array([[2.0, 0.0], [0.5, np.sqrt(0.75)], [-1.0, 0.0]])
    reference = np.array([[5.0, 0.0]])
    assert minimum_distances(generated, reference) == pytest.approx([0.0, 0.5, 2.0])
    assert amd(generated, reference) == pytest.approx(2.5 / 3)


def test_copies_have_no_distance_and_more_references_only_lower_it():
    rng = np.random.default_rng(0)
    generated, references = rng.standard_normal((20, 5)), rng.standard_normal((30, 5))
    assert amd(references, references) == pytest.approx(0, abs=1e-12)
    assert amd(generated, references) <= amd(generated, references[:15])
    assert amd(3 * rng.permutation(generated), 7 * rng.permutation(references)) == pytest.approx(
        amd(generated, references)
    )


def test_black_pictures_have_no_direction():
    assert amd(np.zeros((2, 3)), np.eye(3)) == 1.0


def test_two_sets_of_references_of_one_distribution_are_as_far_to_chance(draw_patients):
    differences = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        generated, first, second = (draw_patients(rng, 20, 2, 8)[0] for _ in range(3))
        differences.append(amd(generated, first) - amd(generated, second))
    assert abs(np.mean(differences)) < 3 * np.std(differences) / 10


def test_the_interval_is_that_of_leaving_patients_out_with_all_their_pictures():
    rng = np.random.default_rng(0)
    generated, references = rng.standard_normal((24, 5)), rng.standard_normal((12, 5))
    generated_patients, reference_patients = np.arange(24) // 2, np.arange(12) // 2  # 6 with references, 6 without
    estimate = amd_estimate(generated, generated_patients, references, reference_patients)
    assert estimate.value == pytest.approx(amd(generated, references))
    left_out = np.array(
        [amd(generated[generated_patients != one], references[reference_patients != one]) for one in range(12)]
    )
    deviation = np.sqrt(25 / 6 * (left_out[:6].var(ddof=1) + left_out[6:].var(ddof=1)))
    assert 1.96 * deviation < estimate.high - estimate.value < 2.6 * deviation


def test_one_patient_has_no_interval():
    with pytest.raises(BadArray, match="reference_patients holds 1 patient"):
        amd_estimate(np.eye(3), np.arange(3), np.eye(3), np.zeros(3))
    with pytest.raises(BadArray, match="generated_patients holds 1 patient"):
        amd_estimate(np.eye(3), np.zeros(3), np.eye(3), np.arange(3))
