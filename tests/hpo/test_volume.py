"""The hypervolume of a study's points: in memory, and as the store has them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hpo import volume
from hpo.dominance import ranks
from hpo.objectives import parse
from hpo.study import Search
from storage import standing, trials
from storage.results import References

KNOWN = References(q_base=5.0, q_real=0.0, m_base=0.0, scores={"fd": (5.0, 4.9, 5.1), "copy_excess": (0.0, 0.0, 0.0)}, base=None)


def test_the_volume_is_the_area_up_to_the_worse_of_base_and_yardstick():
    objectives = parse("fd,copy_excess")  # the base is worse in the first, the yardstick in the second: the corner is (5, 2)
    assert volume.of_points(objectives, 0.5, np.array([[3.0, 1.0], [1.0, 1.5], [4.0, 1.0], [6.0, 0.0]]), KNOWN, [1.0, 2.0]) == pytest.approx(3.0)
    assert volume.of_points(objectives, 0.5, np.empty((0, 1)), KNOWN, [1.0, 2.0]) == 0.0
    assert volume.of_points(objectives, 0.5, np.array([[3.0, 1.0]]), None, [1.0, 2.0]) is None
    assert volume.of_points(objectives, 0.5, np.array([[3.0, 1.0]]), KNOWN, None) is None


def test_of_the_joint_reward_it_is_how_far_the_best_is_above_the_base():
    # The yardstick's own is 0.5 · 4/5 − 0.5; of the points 0.5 · 2/5 − 0.5 · 1/2 and 0.5 · 4/5 − 0.5 · 1/4.
    assert volume.of_points(parse("joint_reward"), 0.5, np.array([[3.0, 1.0], [1.0, 0.5]]), KNOWN, [1.0, 2.0]) == pytest.approx(0.4 - 0.125 + 0.1)


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_undominated_points_are_those_of_rank_0(objectives):
    points = np.random.default_rng(objectives).integers(0, 12, (300, objectives)).astype(float)
    expected = np.unique(points[ranks(points) == 0], axis=0)
    found = volume.undominated(points)
    np.testing.assert_array_equal(found[np.lexsort(found.T[::-1])], expected)


def test_points_in_memory_are_those_of_the_store(searching, finish):
    search = searching(trials=12, pruner="none")
    values = np.random.default_rng(0).random((10, 2))
    for fd, copy_excess in values:
        finish(search, fd=float(fd), copy_excess=float(copy_excess))
    search.recall.refresh()
    means = search.recall.points.means()
    assert len(means) == len(trials.rungs_since(search.store, search.id))
    assert sorted(standing.front_values(search.store, search.id)) == sorted(volume.undominated(means).tolist())
    assert volume.hypervolume(search.store, search.id, search.objectives) == search.recall.volume() == standing.hypervolumes(search.store, search.id)[-1]


def test_the_reference_point_is_the_worse_of_base_and_yardstick_in_each_objective() -> None:
    chosen = parse("fd,amd_train")
    assert volume.reference_point(chosen, {"fd": (5.0, 4, 6), "amd_train": (0.3, 0.2, 0.4)}, {"fd": 1.0, "amd_train": 0.1}) == [5.0, -0.1]
    assert volume.reference_point(chosen, {"fd": (5.0, 4, 6)}, {"fd": 1.0, "amd_train": None}) is None


def test_it_is_known_once_the_yardstick_is(searching: Callable[..., Search], finish: Callable) -> None:
    search = searching()
    known = search.store, search.id, search.objectives
    assert volume.hypervolume(*known) is None
    finish(search, fd=1.0, copy_excess=0.5)  # the yardstick; the base is at (5, 0)
    assert volume.hypervolume(*known) == 0.0, "it lies on the edge of its own box"
    finish(search, fd=2.0, copy_excess=0.1)
    assert volume.hypervolume(*known) == pytest.approx((5 - 2) * (0.5 - 0.1))
