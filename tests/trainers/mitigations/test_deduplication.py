"""Deduplication: connected groups, their first member, whatever the order or the length of features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

from trainers.errors import BadSelection
from trainers.mitigations import MITIGATIONS
from trainers.mitigations.deduplication import FEWEST, first_of_groups

DEDUPLICATION = MITIGATIONS["deduplication"]


def at(*degrees):
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)


def test_by_hand_a_chain_is_one_group():
    """0°, 10° and 20°: cos 10° = 0.985, cos 20° = 0.940. At 0.95 the three hang together through the one between."""
    assert first_of_groups(at(0, 10, 20, 90), 0.95).tolist() == [0, 3]
    assert first_of_groups(at(0, 20, 90), 0.95).tolist() == [0, 1, 2]
    assert first_of_groups(at(0, 20, 90), 0.93).tolist() == [0, 2]
    assert first_of_groups(at(0, 10, 20, 90), 0.99).tolist() == [0, 1, 2, 3]
    assert first_of_groups(at(90, 20, 0, 10), 0.95).tolist() == [0, 1]


def test_equal_pictures_are_one_and_the_first_stays():
    features = np.random.default_rng(0).normal(size=(12, 5))
    assert first_of_groups(np.concatenate([features, features, features[:3]]), 0.999).tolist() == list(range(12))


def test_length_does_not_matter_and_zeros_are_like_nothing():
    assert first_of_groups(at(0, 5) * [[1], [1000]], 0.95).tolist() == [0]
    assert first_of_groups(np.zeros((3, 2)), 0.5).tolist() == [0, 1, 2]


def test_opposite_features_are_not_alike():
    assert first_of_groups(at(0, 180), 0.5).tolist() == [0, 1]


@pytest.mark.parametrize("similarity", [0.9, 0.99, 0.9999])
def test_groups_are_the_connected_components_in_any_order(similarity):
    """More pictures than are compared at a time, against scipy's components of the whole matrix."""
    generator = np.random.default_rng(1)
    features = generator.normal(size=(2500, 5))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    count, label = connected_components(unit @ unit.T > similarity)
    first = [int(np.argmax(label == group)) for group in range(count)]
    assert first_of_groups(features, similarity).tolist() == sorted(first)
    assert len(first_of_groups(features[generator.permutation(2500)], similarity)) == count


def test_hooks_keep_the_first_rows(learned):
    features = np.concatenate([np.eye(FEWEST), np.eye(FEWEST)])
    kept = DEDUPLICATION.hooks({"similarity": 0.9}, replace(learned, features=lambda: features)).kept()
    assert kept.tolist() == list(range(FEWEST)) and kept.dtype == np.int64


def test_too_few_pictures_are_refused(learned):
    features = np.eye(FEWEST - 1)[np.arange(20) % (FEWEST - 1)]
    with pytest.raises(BadSelection, match="similarity 0.9 leaves 7 of 20 pictures and at least 8 must stay: take a higher one"):
        DEDUPLICATION.hooks({"similarity": 0.9}, replace(learned, features=lambda: features)).kept()
