"""Who dominates whom: non-domination ranks, crowding and hypervolume contributions. Arrays in, arrays out; all objectives minimised.

Equal points stand and fall together here: none of them dominates another, they share a rank, and each is as crowded and contributes as
much as that point would alone. So nothing depends on the order of the points. NaN is the caller's to refuse.
"""

from __future__ import annotations

import numpy as np

from hpo.objectives import hypervolume

CROWDING, HYPERVOLUME = "crowding", "hypervolume"
RANKINGS = (CROWDING, HYPERVOLUME)
BEYOND_WORST = 0.1  # of the range of all points: how far the reference point of a ranking's contributions is beyond the worst
BLOCK = 512  # points that are compared with all others at once, so that memory stays small


def ranks(points: np.ndarray) -> np.ndarray:
    """Non-domination ranks, (..., n, m) float64 -> (..., n) int64: 0 for the front, 1 for the front of what is left without it, …

    A point dominates another if it is nowhere worse and somewhere better. Leading axes are independent rankings. One and two objectives
    take O(n log n) a ranking, all rankings at once; more of them O(n² m) (exact, tens of times slower).
    Source: Deb et al. 2002, NSGA-II (the ranks); Jensen 2003 (two objectives by sorting).
    """
    *leading, n, m = points.shape
    if points.size == 0:
        return np.zeros((*leading, n), np.int64)
    flat = points.reshape(-1, n, m)
    found = ranks_of_one(flat[..., 0]) if m == 1 else ranks_of_two(flat) if m == 2 else np.stack([ranks_of_many(each) for each in flat])
    return found.reshape(*leading, n)


def ranks_of_one(values: np.ndarray) -> np.ndarray:
    """Dense ranks, (R, n) -> (R, n): equal values share one, and the next value has the next."""
    order = np.argsort(values, axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    steps = np.concatenate([np.zeros((len(values), 1), np.int64), ordered[:, 1:] > ordered[:, :-1]], axis=1)
    found = np.empty(values.shape, np.int64)
    np.put_along_axis(found, order, np.cumsum(steps, axis=1), axis=1)
    return found


def ranks_of_two(points: np.ndarray) -> np.ndarray:
    """(R, n, 2) -> (R, n). Whatever dominates a point comes before it in lexicographic order, and front k dominates it exactly if the
    lowest second objective that front k has so far is not above its own; those lowest ones grow with k, so that k is found by bisection.
    """
    replicates, n, _ = points.shape
    second = ranks_of_one(points[..., 1])
    order = lexicographic(points[..., 0], second)
    x, y = (np.take_along_axis(values, order, axis=1).T for values in (points[..., 0], second))  # (n, R), a point after the other
    again = np.zeros((n, replicates), bool)
    again[1:] = (x[1:] == x[:-1]) & (y[1:] == y[:-1])
    rows = np.arange(replicates)
    height = n + 1  # of a row of lowest second objectives, so that one ascending array holds them all, row after row
    lowest = np.full((replicates, 16), n, np.int64)  # n: no such front yet
    keys, found = ascending(lowest, height), np.empty((n, replicates), np.int64)
    for i in range(n):
        width = lowest.shape[1]
        front = np.searchsorted(keys, y[i] + rows * height, side="right") - rows * width
        if again[i].any():
            front = np.where(again[i], found[i - 1], front)
        found[i] = front
        if front.max() + 1 >= width:  # one spare front at the end, always
            lowest = np.concatenate([keys.reshape(replicates, width) - rows[:, None] * height, np.full((replicates, width), n)], axis=1)
            keys = ascending(lowest, height)
            width *= 2
        keys[rows * width + front] = y[i] + rows * height
    result = np.empty((replicates, n), np.int64)
    np.put_along_axis(result, order, found.T, axis=1)
    return result


def lexicographic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Order by x, and by the integers y where x is equal; (R, n) each -> (R, n)."""
    by_second = np.argsort(y, axis=1)
    by_first = np.argsort(np.take_along_axis(x, by_second, axis=1), axis=1, kind="stable")
    return np.take_along_axis(by_second, by_first, axis=1)


def ascending(rows: np.ndarray, height: int) -> np.ndarray:
    return (rows + np.arange(len(rows))[:, None] * height).ravel()


def ranks_of_many(points: np.ndarray) -> np.ndarray:
    """(n, m) -> (n,), front after front."""
    n = len(points)
    left, found = np.arange(n), np.zeros(n, np.int64)
    rank = 0
    while len(left):
        front = ~dominated(points[left])
        found[left[front]] = rank
        left, rank = left[~front], rank + 1
    return found


def dominated(points: np.ndarray) -> np.ndarray:
    """Whether any other point dominates it, (n, m) float64 -> (n,) bool."""
    found = np.zeros(len(points), bool)
    order = np.lexsort(points.T[::-1])
    ordered = points[order]
    kept = np.empty((0, points.shape[1]))
    for start in range(0, len(points), BLOCK):
        block = ordered[start:start + BLOCK]
        beaten = beaten_by(block, kept) | beaten_by(block, block)
        found[order[start:start + BLOCK]] = beaten
        kept = np.concatenate([kept, block[~beaten]])
    return found


def beaten_by(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether one of the others dominates it, (n, m) and (k, m) -> (n,) bool."""
    nowhere_worse, somewhere_better = np.ones((len(points), len(others)), bool), np.zeros((len(points), len(others)), bool)
    for mine, theirs in zip(points.T, others.T):
        nowhere_worse &= theirs[None] <= mine[:, None]
        somewhere_better |= theirs[None] < mine[:, None]
    return (nowhere_worse & somewhere_better).any(axis=1)


def crowding(front: np.ndarray) -> np.ndarray:
    """Crowding distances of the points of one front, (n, m) float64 -> (n,) float64, larger is lonelier, infinite at the ends.

    The sum over objectives of the gap between both neighbours, in units of the front's range there (an objective without a range adds
    nothing). Source: Deb et al. 2002, NSGA-II, section III-B; between distinct points, see above.
    """
    distinct, which = without_copies(front)
    distances = np.zeros(len(distinct))
    for values in distinct.T:
        order = np.argsort(values, kind="stable")
        low, high = values[order[0]], values[order[-1]]
        if high > low:
            distances[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / (high - low)
            distances[(values == low) | (values == high)] = np.inf
    return (distances if len(distinct) > 1 else np.array([np.inf]))[which]


def without_copies(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct points in lexicographic order, and which of them each point is, (n, m) -> (k, m) and (n,); np.unique takes three times as long."""
    order = np.lexsort(points.T[::-1])
    ordered = points[order]
    new = np.ones(len(points), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    which = np.empty(len(points), np.int64)
    which[order] = np.cumsum(new) - 1
    return ordered[new], which


def contributions(front: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Hypervolume that goes with each point of a front, (n, m) and (m,) float64 -> (n,) float64; 0 for one beyond the reference point.

    Exact: for two objectives by neighbours, else as the difference of two hypervolumes. Of distinct points, see above.
    Source: Beume et al. 2007, SMS-EMOA.
    """
    distinct, which = without_copies(front)
    inside = (distinct < reference).all(axis=1)
    found = np.zeros(len(distinct))
    points = distinct[inside]
    if front.shape[1] == 2:
        if (np.diff(points[:, 1]) >= 0).any():  # from left to right a front goes down
            raise ValueError("contributions: a point of the front dominates another, so that this is no front")
        right, above = np.append(points[1:, 0], reference[0]), np.append(reference[1], points[:-1, 1])
        found[inside] = (right - points[:, 0]) * (above - points[:, 1])
    else:
        whole = hypervolume(points.tolist(), reference.tolist())
        found[inside] = [whole - hypervolume(np.delete(points, i, axis=0).tolist(), reference.tolist()) for i in range(len(points))]
    return found[which]


def among_best(points: np.ndarray, which: int, best: int, ranking: str = CROWDING) -> np.ndarray:
    """Whether the point `which` is among the best so many, (R, n, m) float64 -> (R,) bool, in each of the R rankings.

    Front goes before front; inside the front that the cut goes through, the less crowded (or the larger contribution to the hypervolume
    up to a point beyond the worst of all n) goes first. It is in unless so many others are strictly better: ties are in its favour.
    """
    found = ranks(points)
    own = found[:, which:which + 1]
    ahead, level = (found < own).sum(axis=1), (found == own).sum(axis=1)
    inside = ahead + level <= best
    for replicate in np.flatnonzero((ahead < best) & ~inside):
        peers = found[replicate] == own[replicate]
        front = points[replicate, peers]
        if ranking == CROWDING:
            merit = crowding(front)
        else:
            low, high = points[replicate].min(axis=0), points[replicate].max(axis=0)
            merit = contributions(front, high + BEYOND_WORST * np.where(high > low, high - low, 1))
        inside[replicate] = ahead[replicate] + (merit > merit[peers[:which].sum()]).sum() < best
    return inside
