"""Ranks, crowding and contributions against hand-worked values, brute force, and Optuna's own sort."""

from __future__ import annotations

import numpy as np
import pytest
from optuna.study._multi_objective import _fast_non_domination_rank as optuna_ranks

from hpo.dominance import CROWDING, HYPERVOLUME, among_best, contributions, crowding, dominated, ranks
from hpo.objectives import hypervolume

STAIRS = np.array([[0.0, 4], [1, 2], [3, 1], [4, 0]])


def drawn(n: int, m: int, grid: int | None, seed: int = 0) -> np.ndarray:
    """(6, n, m): on a grid there are many ties and duplicates."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(6, n, m)) if grid is None else rng.integers(0, grid, (6, n, m)).astype(float)


def brute_force(points: np.ndarray) -> np.ndarray:
    left, found, rank = set(range(len(points))), np.zeros(len(points), int), 0
    while left:
        front = {i for i in left if not any((points[j] <= points[i]).all() and (points[j] < points[i]).any() for j in left)}
        for i in front:
            found[i] = rank
        left, rank = left - front, rank + 1
    return found


def test_ranks_by_hand():
    points = np.array([[0.0, 3], [1, 1], [3, 0], [1, 1], [1, 2], [2, 2], [0, 4]])
    assert ranks(points).tolist() == [0, 0, 0, 0, 1, 2, 1]


@pytest.mark.parametrize("n", [1, 2, 25, 200])
@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("grid", [None, 2, 7])
def test_ranks_are_optunas(n, m, grid):
    points = drawn(n, m, grid)
    assert (ranks(points) == [optuna_ranks(each) for each in points]).all()


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("grid", [None, 4])
def test_ranks_are_brute_forces(m, grid):
    points = drawn(30, m, grid, seed=1)
    assert (ranks(points) == [brute_force(each) for each in points]).all()


@pytest.mark.parametrize("signs, expected", [((1, 1), "chain"), ((1, -1), "front")])
def test_ranks_of_a_chain_and_of_a_front(signs, expected):
    """A chain has as many fronts as points, so that the array of fronts has to grow."""
    points = np.arange(100.0)[:, None] * signs
    assert (ranks(points) == (np.arange(100) if expected == "chain" else 0)).all()


def test_ranks_of_nothing():
    assert ranks(np.empty((3, 0, 2))).shape == (3, 0)


@pytest.mark.parametrize("m", [2, 3])
def test_ranks_do_not_depend_on_order_or_monotone_scales(m):
    points = drawn(60, m, 9, seed=2)
    order = np.random.default_rng(3).permutation(60)
    assert (ranks(points[:, order]) == ranks(points)[:, order]).all()
    assert (ranks(np.exp(points / 3) - 5) == ranks(points)).all()


def test_dominated_over_more_than_a_block_of_points():
    points = np.random.default_rng(4).normal(size=(1500, 3))
    assert (dominated(points) == (optuna_ranks(points) > 0)).all()


def test_crowding_by_hand():
    """Ranges are 4 and 4: (3 − 0) / 4 + (4 − 1) / 4 and (4 − 1) / 4 + (2 − 0) / 4."""
    assert crowding(STAIRS).tolist() == [np.inf, 1.5, 1.25, np.inf]


def test_copies_are_as_crowded_as_the_point_alone():
    assert crowding(STAIRS[[1, 0, 1, 2, 3, 3]]).tolist() == [1.5, np.inf, 1.5, 1.25, np.inf, np.inf]
    assert crowding(np.ones((3, 2))).tolist() == [np.inf] * 3


def test_crowding_of_three_objectives_does_not_depend_on_order_or_scale():
    front = drawn(12, 3, 4, seed=5)[0]
    order = np.random.default_rng(6).permutation(len(front))
    assert np.allclose(crowding(front[order] * (2, 50, 0.1) + 7), crowding(front)[order])


def test_contributions_by_hand():
    """Up to (5, 5): widths 1, 2, 1, 1 and heights 1, 2, 1, 1."""
    reference = np.array([5.0, 5.0])
    assert contributions(STAIRS, reference).tolist() == [1, 4, 1, 1]
    assert contributions(np.vstack([STAIRS, [[-1.0, 6]]]), reference).tolist() == [1, 4, 1, 1, 0]
    assert contributions(STAIRS[[1, 1, 2]], reference).tolist() == [6, 6, 2]


@pytest.mark.parametrize("m", [2, 3])
def test_a_contribution_is_what_is_lost_without_the_point(m):
    points = drawn(40, m, None, seed=7)[0]
    front, reference = points[~dominated(points)], np.full(m, 1.0)
    lost = [hypervolume(front, reference) - hypervolume(np.delete(front, i, axis=0), reference) for i in range(len(front))]
    assert np.allclose(contributions(front, reference), lost)


def test_contributions_of_no_front_are_refused():
    with pytest.raises(ValueError, match="no front"):
        contributions(np.array([[0.0, 0], [1, 1]]), np.array([5.0, 5.0]))


def test_among_best_by_hand():
    """Of the stairs and a dominated point the best two are the ends; the best three have (1, 2) too, the best four all stairs."""
    points = np.vstack([STAIRS, [[5.0, 5]]])[None]
    for best, expected in ((1, "yes no no yes no"), (2, "yes no no yes no"), (3, "yes yes no yes no"), (4, "yes yes yes yes no"),
                           (5, "yes yes yes yes yes")):
        assert [bool(among_best(points, i, best)[0]) for i in range(5)] == [word == "yes" for word in expected.split()], best


def test_among_best_by_contribution_takes_the_largest():
    """The reference point is at (5.5, 5.5): contributions 1.5, 4, 1, 1.5."""
    points = np.vstack([STAIRS, [[5.0, 5]]])[None]
    assert [bool(among_best(points, i, 1, HYPERVOLUME)[0]) for i in range(5)] == [False, True, False, False, False]
    assert [bool(among_best(points, i, 2, HYPERVOLUME)[0]) for i in range(5)] == [True, True, False, True, False]


@pytest.mark.parametrize("ranking", [CROWDING, HYPERVOLUME])
@pytest.mark.parametrize("m", [1, 2, 3])
def test_as_many_are_among_the_best_as_asked_where_nothing_ties(m, ranking):
    points = drawn(15, m, None, seed=8)
    for best in (1, 5, 14):
        inside = sum(among_best(points, i, best, ranking).astype(int) for i in range(15))
        ends = 2 * m if ranking == CROWDING else 0  # all ends of the front that is cut are infinitely lonely: ties
        assert (inside >= best).all() and (inside <= best + ends).all()
