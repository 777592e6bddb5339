"""The normal chest: what is where, what a patient keeps, and that edges are smooth."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from trainers.data.anatomy import Anatomy, Chest, Pose, line, soft


def draw(seed: int, resolution: int = 96, pose: Pose | None = None) -> Chest:
    return Chest(Anatomy.sample(np.random.default_rng(seed)), pose or Pose(), resolution)


@pytest.mark.parametrize("seed", range(5))
def test_lungs_are_darker_than_heart_and_belly(seed):
    chest = draw(seed)
    film = chest.film(np.random.default_rng(0), noise=0).astype(float)
    lungs = (chest.lung["left"] + chest.lung["right"] > 0.99) & (chest.air > 0.9 * chest.air.max())
    belly = (chest.v > chest.base["left"] + 0.1) & (np.abs(chest.u) < 0.3)
    assert film[lungs].mean() < film[belly].mean() - 60


def test_the_heart_lies_to_the_patients_left_which_is_the_pictures_right():
    chest = draw(0)
    covered = (chest.lung["left"] + chest.lung["right"]) * chest.anatomy.lung_air - chest.air
    assert (covered * (chest.u > 0)).sum() > 1.3 * (covered * (chest.u < 0)).sum()


def test_every_number_of_the_anatomy_is_seen():
    """Each field, moved through most of its range (a phase returns at the end of its), changes the picture."""
    middle = {part.name: sum(part.metadata["range"]) / 2 for part in fields(Anatomy)}
    for part in fields(Anatomy):
        lowest, highest = part.metadata["range"]
        low, high = (
            Chest(Anatomy(**{**middle, "scoliosis": 0.03, "breast": 0.06, part.name: value}), Pose(), 64).film(
                np.random.default_rng(0), 0
            )
            for value in (lowest, lowest + 0.7 * (highest - lowest))
        )
        assert np.abs(low.astype(int) - high).max() > 4, part.name  # of 255


def test_resolution_changes_the_grid_and_not_the_chest():
    coarse, fine = (draw(1, resolution).film(np.random.default_rng(0), 0).astype(float) for resolution in (64, 128))
    averaged = fine.reshape(64, 2, 64, 2).mean((1, 3))
    assert np.abs(coarse - averaged).mean() < 2


def test_pose_moves_the_chest():
    still, moved = draw(2), draw(2, pose=Pose(right=4 * 2 / 96))  # by four pixels
    np.testing.assert_allclose(moved.air[:, 4:], still.air[:, :-4], atol=1e-4)


def test_edges_are_smooth_steps():
    assert soft(np.array([-1.0, 0.0, 1.0]), 0.1).tolist() == [1.0, 0.5, 0.0]


def test_a_line_is_where_its_points_are():
    chest = draw(0)
    drawn = line(chest, [(-0.5, 0.0), (0.5, 0.0)], 0.1)
    assert drawn[48, 48] > 0.9 and drawn[20, 48] == 0 and drawn[48, 2] == 0
