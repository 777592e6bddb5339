"""Who dominates whom: non-domination ranks, crowding, and who is among the best by both. Arrays in, arrays out; all objectives minimised.

Equal points stand and fall together here: none of them dominates another, they share a rank, and each is as crowded as that point would
be alone. So nothing depends on the order of the points. NaN and infinity are the caller's to refuse.
"""

from __future__ import annotations

import numpy as np

BLOCK = 512  # points that are compared with all others at once, so that memory stays small


def ranks(points: np.ndarray) -> np.ndarray:
    """Non-domination ranks, (..., n, m) float64 -> (..., n) int64: 0 for the front, 1 for the front of what is left without it, …

    A point dominates another if it is nowhere worse and somewhere better. Leading axes are independent rankings. One and two objectives
    take O(n) for each front after sorting, all rankings at once; more of them O(n² m) (exact, tens of times slower).
    Source: Deb et al. 2002, NSGA-II.
    """
    *leading, n, m = points.shape
    if points.size == 0:
        return np.zeros((*leading, n), np.int64)
    flat = points.reshape(-1, n, m)
    found = ranks_of_two(flat) if m <= 2 else np.stack([ranks_of_many(each) for each in flat])
    return found.reshape(*leading, n)


def ranks_of_two(points: np.ndarray) -> np.ndarray:
    """(R, n, 1 or 2) -> (R, n), front after front."""
    x, left, places = lexicographic(points)
    again = copies(x, left)
    found, rank = np.empty(left.shape, np.int64), 0
    while np.isfinite(left).any():
        front = undominated_of_two(left, again)
        np.putmask(found, front, rank)
        np.putmask(left, front, np.inf)
        rank += 1
    result = np.empty_like(found)
    np.put_along_axis(result, places, found, axis=1)
    return result


def lexicographic(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both objectives in the order of the first, and of the second where that is equal, with the places from where they are, (R, n, 1 or 2) ->
    (R, n) each; one objective is as two of which the first never differs."""
    first, second = (np.zeros(points.shape[:2]) if points.shape[2] == 1 else points[..., 0]), points[..., -1]
    places = np.argsort(first, axis=1)  # not stable, which takes five times as long
    x = np.take_along_axis(first, places, axis=1)
    tied = np.flatnonzero((x[:, 1:] == x[:, :-1]).any(axis=1))
    if len(tied):
        places[tied] = np.lexsort((second[tied], first[tied]), axis=1)
    return x, np.take_along_axis(second, places, axis=1), places


def copies(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points are the same as the one before, (R, n) in lexicographic order -> (R, n) bool."""
    found = np.zeros(x.shape, bool)
    found[:, 1:] = (x[:, 1:] == x[:, :-1]) & (y[:, 1:] == y[:, :-1])
    return found


def undominated_of_two(y: np.ndarray, again: np.ndarray) -> np.ndarray:
    """Which points no other dominates, by their second objective in lexicographic order, infinite where a point is taken away; (R, n) -> (R, n) bool.

    Whatever dominates a point comes before it, so that a point is free where it is lower than all before; a copy is where its first is.
    """
    found = np.empty(y.shape, bool)
    found[:, 0] = np.isfinite(y[:, 0])
    found[:, 1:] = y[:, 1:] < np.minimum.accumulate(y, axis=1)[:, :-1]
    if again.any():
        first = np.maximum.accumulate(np.where(again, 0, np.arange(y.shape[1])), axis=1)
        found = np.take_along_axis(found, first, axis=1)
    return found


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
    """Whether any other point dominates it, (n, m) float64 -> (n,) bool. Two objectives take O(n log n), more O(n · front · m)."""
    found = np.zeros(len(points), bool)
    order = np.lexsort(points.T[::-1])
    ordered = points[order]
    if len(points) and points.shape[1] == 2:
        x, y = ordered.T[:, None]
        found[order] = ~undominated_of_two(y, copies(x, y))[0]
        return found
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


def among_best(points: np.ndarray, which: int, best: int) -> np.ndarray:
    """Whether the point `which` is among the best so many, (R, n, m) float64 -> (R,) bool, in each of the R rankings.

    Front goes before front; inside the front that the cut goes through, the less crowded goes first. It is in unless so many others are
    strictly better: ties are in its favour. Two objectives take some milliseconds for 256 rankings of 500 points, more of them hundreds.
    """
    better, worse = compared_with(points, which)
    ahead, behind = better.sum(axis=1), worse.sum(axis=1)  # at least
    inside = behind >= points.shape[1] - best
    undecided = np.flatnonzero(~inside & (ahead < best))
    if len(undecided):
        inside[undecided] = (among_best_of_two if points.shape[2] <= 2 else among_best_of_many)(points[undecided], which, best)
    return inside


def compared_with(points: np.ndarray, which: int) -> tuple[np.ndarray, np.ndarray]:
    """Which points dominate that one, and which it dominates, (R, n, m) -> (R, n) bool each."""
    nowhere_worse, nowhere_better = np.ones(points.shape[:2], bool), np.ones(points.shape[:2], bool)
    for place in range(points.shape[2]):
        values = points[..., place]
        own = values[:, which:which + 1]
        nowhere_worse &= values <= own
        nowhere_better &= values >= own
    return nowhere_worse & ~nowhere_better, nowhere_better & ~nowhere_worse


def among_best_of_two(points: np.ndarray, which: int, best: int) -> np.ndarray:
    """Front after front is taken away, in all replicates at once, until the point's own is reached or as many as are wanted are ahead of it."""
    x, y, places = lexicographic(points)
    own = (places == which).argmax(axis=1)
    again = copies(x, y)
    inside = np.zeros(len(points), bool)
    rows, left, ahead = np.arange(len(points)), y.copy(), np.zeros(len(points), np.int64)
    while len(rows):
        front = undominated_of_two(left, again[rows])
        reached = front[np.arange(len(rows)), own[rows]]
        if reached.any():
            inside[rows[reached]] = within_front(x[rows[reached]], y[rows[reached]], front[reached], own[rows[reached]], best - ahead[reached])
        ahead += front.sum(axis=1)
        np.putmask(left, front, np.inf)
        further = ~reached & (ahead < best)
        if not further.all():
            rows, left, ahead = rows[further], left[further], ahead[further]
    return inside


def within_front(x: np.ndarray, y: np.ndarray, front: np.ndarray, own: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Whether fewer than `best` points of the front are less crowded than the point at `own`, (R, n) in lexicographic order -> (R,)."""
    rows, columns = np.nonzero(front)
    merit = crowding_of_two(rows, x[front], y[front])
    threshold = merit[columns == own[rows]]  # one a row
    return np.bincount(rows, merit > threshold[rows], minlength=len(front)) < best


def crowding_of_two(rows: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """As `crowding`, of many fronts, one after the other, each from left to right; rows: which front a point is of, (k,) each -> (k,)."""
    new = np.ones(len(x), bool)
    new[1:] = (rows[1:] != rows[:-1]) | (x[1:] != x[:-1]) | (y[1:] != y[:-1])
    which, rows, x, y = np.cumsum(new) - 1, rows[new], x[new], y[new]
    first = np.ones(len(x), bool)
    first[1:] = rows[1:] != rows[:-1]
    last = np.append(first[1:], True)
    front = np.cumsum(first) - 1
    width, height = x[last] - x[first], y[first] - y[last]
    distances = np.full(len(x), np.inf)
    inner = np.flatnonzero(~first & ~last)  # whose neighbours, on a front of two objectives, are the same in both
    distances[inner] = (x[inner + 1] - x[inner - 1]) / width[front[inner]] + (y[inner - 1] - y[inner + 1]) / height[front[inner]]
    return distances[which]


def among_best_of_many(points: np.ndarray, which: int, best: int) -> np.ndarray:
    return np.array([is_among_best(each, which, best) for each in points])


def is_among_best(points: np.ndarray, which: int, best: int) -> bool:
    """The same of one replicate, (n, m), in any number of objectives."""
    _, behind = compared_with(points[None], which)
    left = np.flatnonzero(~behind[0])
    ahead = 0
    while ahead < best:
        free = ~dominated(points[left])
        front = left[free]
        if which in front:
            merit = crowding(points[front])
            return bool(ahead + (merit > merit[front == which]).sum() < best)
        left, ahead = left[~free], ahead + len(front)
    return False
