"""Ranks, crowding and who is among the best against hand-worked values, brute force, and Optuna's own sort."""

from __future__ import annotations

import numpy as np
import pytest
from optuna.study._multi_objective import _fast_non_domination_rank as optuna_ranks

from hpo.dominance import among_best, crowding, dominated, ranks

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


@pytest.mark.parametrize("m", [2, 3])
def test_dominated_over_more_than_a_block_of_points(m):
    points = np.random.default_rng(4).normal(size=(1500, m)).round(2)  # with some copies
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


def test_among_best_by_hand():
    """Of the stairs and a dominated point the best two are the ends; the best three have (1, 2) too, the best four all stairs."""
    points = np.vstack([STAIRS, [[5.0, 5]]])[None]
    for best, expected in ((1, "yes no no yes no"), (2, "yes no no yes no"), (3, "yes yes no yes no"), (4, "yes yes yes yes no"),
                           (5, "yes yes yes yes yes")):
        assert [bool(among_best(points, i, best)[0]) for i in range(5)] == [word == "yes" for word in expected.split()], best


@pytest.mark.parametrize("m", [1, 2, 3])
def test_as_many_are_among_the_best_as_asked_where_nothing_ties(m):
    points = drawn(15, m, None, seed=8)
    for best in (1, 5, 14):
        inside = sum(among_best(points, i, best).astype(int) for i in range(15))
        assert (inside >= best).all() and (inside <= best + 2 * m).all()  # all ends of the front that is cut are infinitely lonely: ties


def plainly(points: np.ndarray, which: int, best: int) -> bool:
    """Of one replicate, as it is defined."""
    found = brute_force(points)
    ahead = (found < found[which]).sum()
    level = np.flatnonzero(found == found[which])
    if ahead + len(level) <= best:
        return True
    merit = crowding(points[level])
    return ahead + (merit > merit[level == which]).sum() < best


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("grid", [None, 3, 8])
def test_among_best_is_what_ranks_and_crowding_say(m, grid):
    """On grids there are copies, and points that share one value."""
    for n in (1, 2, 9, 40):
        points = drawn(n, m, grid, seed=9)
        for which in range(0, n, 4):
            for best in {1, -(-n // 3), n - 1, n} - {0}:
                assert among_best(points, which, best).tolist() == [plainly(each, which, best) for each in points], (n, which, best)
