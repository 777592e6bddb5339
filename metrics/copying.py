"""Do generated pictures resemble the training pictures more than their twins? `copy_excess` and `copy_rate`.

Both compare two sides that only training tells apart, and change sign when the sides are swapped; so their
expectation is 0 for a model that treats both alike, however well it follows captions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metrics.arrays import finite, row_indices, same_length
from metrics.errors import BadArray
from metrics.estimate import Estimate
from metrics.patients import NORMAL_975, Spread, interval, mean_over_patients, names_of

SHORTEST = 1e-3  # of the median distance: shorter ones are "identical", so that one copy cannot outweigh all else
EXTREME = 0.01  # nearer to one side than all but this share of the pictures are to the other
EXCHANGES = 2000  # random exchanges of patients between the sides
LARGEST_CHUNK = 4_000_000  # pictures × exchanges at a time, 32 MB an array
EXCHANGE_SEED = 20240502  # only the width of copy_rate's interval depends on it


@dataclass(frozen=True, eq=False)
class CopySide:
    """One side, in the space in which copying is measured.

    Attributes:
        references: (n, k) pictures of this side's patients.
        patients: (n,) their patients.
        generated: (G, k) pictures made from captions of `references`.
        own: (G,) row of `references` whose caption called each of them up.
        base: (G, k) what the untouched base made of the same captions at the same noise; None = not subtracted.
    """

    references: np.ndarray
    patients: np.ndarray
    generated: np.ndarray
    own: np.ndarray
    base: np.ndarray | None = None


def copy_excess(train: CopySide, twin: CopySide) -> Estimate:
    """How much nearer a picture is to its own caption's picture, in train beyond twin and beyond the base; log units.

    With L = log Euclidean distances (not below 1e-3 of the median) of all generated pictures × all references of both
    sides, rows and columns centred: the mean of -L over own pairs of train minus that of twin, minus the same for the
    base's pictures. Only a caption's own picture counts, not its patient's others. Means are over patients of their
    pictures' means; base and tuned picture of one caption share their noise, so they are subtracted first. Positive =
    copying: 0.1 says that a training picture is 10 % nearer than it would be without training on it.

    With another fine-tuned model's pictures as `base` it is the paired difference of the two models.

    Raises:
        BadArray: NaN, sides that do not match, unequal numbers of references or generated pictures, one patient.
    """
    _check(train, twin)
    excess = _own_nearness(train.references, twin.references, train.generated, twin.generated, train.own, twin.own)
    if train.base is not None:
        base = _own_nearness(train.references, twin.references, train.base, twin.base, train.own, twin.own)
        excess = (excess[0] - base[0], excess[1] - base[1])
    train_mean, train_spread = mean_over_patients(excess[0], np.asarray(train.patients)[train.own])
    twin_mean, twin_spread = mean_over_patients(excess[1], np.asarray(twin.patients)[twin.own])
    return interval(train_mean - twin_mean, [train_spread, -twin_spread])


def copy_rate(train: CopySide, twin: CopySide, exchanges: int = EXCHANGES, seed: int = EXCHANGE_SEED) -> Estimate:
    """Share of pictures nearer to train than all but 1 % are to twin, minus the mirrored share; -1..1.

    All pictures of both sides count, whichever caption called them up: positive = that share are copies. Read it by
    its upper bound, since "not significant" is not "safe". The interval is value ± 1.96 standard deviations, the larger
    of two: that of the null, which exchanges whole patients at random between the two reference sets, with the
    pictures as they are; and that of the value over the patients whose captions called the pictures up. With many
    copies the null narrows, since both halves of an exchange hold some, and would cover the expected rate in .73 to
    .80 of draws only; the larger covers it in .95 or more (tests/metrics/test_copying.py). Blind to copies that are
    no nearer than the nearest 1 % would be anyway. The value needs no random numbers.

    Raises:
        BadArray: as `copy_excess`.
    """
    _check(train, twin)
    generated = np.concatenate([train.generated, twin.generated])
    references = np.concatenate([train.references, twin.references])
    patients = np.concatenate([np.asarray(train.patients), np.asarray(twin.patients)])
    names, row = np.unique(patients, return_inverse=True)
    nearest = _nearest_by_patient(_distances(generated, references), row, len(names))
    in_train = np.isin(names, np.asarray(train.patients))
    to_train, to_twin = nearest[:, in_train].min(axis=1), nearest[:, ~in_train].min(axis=1)
    difference = _differences(to_train[:, None], to_twin[:, None])[:, 0]
    value = float(difference.mean())
    dealt = deal_patients(np.bincount(row), exchanges, seed)
    # The null is symmetric about 0 by construction (every deal is as likely as its mirror), so its mean is known.
    chunks = np.array_split(dealt, 1 + exchanges * len(generated) // LARGEST_CHUNK, axis=1)
    null = np.concatenate([_rates(*_nearest_dealt(nearest, chunk)) for chunk in chunks])
    called = [_spread_of_sum(part / len(generated), np.asarray(side.patients)[side.own])
              for part, side in zip(np.split(difference, [len(train.generated)]), (train, twin))]
    variance = sum(spread.variance for spread in called)
    deviation = float(np.sqrt(max(np.mean(null**2), variance)))
    widened = deviation / np.sqrt(variance) if variance else 0.0
    half = NORMAL_975 * deviation
    return Estimate(value, value - half, value + half, value + widened * sum(spread.replicates() for spread in called))


def deal_patients(pictures: np.ndarray, deals: int, seed: int) -> np.ndarray:
    """Deals patients to two sides: pictures (P,) each patient's number of pictures -> (P, deals) True = first side.

    As the sides themselves were dealt: patients with (nearly) equal numbers of pictures are paired at random, and a
    coin decides which of a pair goes where. So both sides keep their size, to a picture or two.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(np.asarray(pictures)[:, None] + rng.random((len(pictures), deals)), axis=0)
    coins = rng.random((-(-len(pictures) // 2), deals)) < 0.5
    first = np.empty((len(pictures), deals), dtype=bool)
    np.put_along_axis(first, order[0::2], coins, axis=0)
    np.put_along_axis(first, order[1::2], ~coins[: len(pictures) // 2], axis=0)
    return first


def _own_nearness(
    train: np.ndarray, twin: np.ndarray, from_train: np.ndarray, from_twin: np.ndarray, *own: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """-L of each generated picture's own pair: (G,) of train, (G,) of twin."""
    distances = _distances(np.concatenate([from_train, from_twin]), np.concatenate([train, twin]))
    median = np.median(distances)
    if median == 0:
        raise BadArray("generated pictures and references are all the same picture: nothing to measure copying by")
    logs = np.log(np.maximum(distances, SHORTEST * median))
    centred = logs - logs.mean(axis=1, keepdims=True) - logs.mean(axis=0, keepdims=True) + logs.mean()
    rows = np.arange(len(centred))
    train_rows, twin_rows = np.split(rows, [len(from_train)])
    return -centred[train_rows, own[0]], -centred[twin_rows, len(train) + own[1]]


def _spread_of_sum(values: np.ndarray, patients: np.ndarray) -> Spread:
    """Spread of the sum of values (n,) whose patients (n,) were drawn at random."""
    _, row = np.unique(patients, return_inverse=True)
    return Spread(np.bincount(row, weights=values - values.mean()), names_of(patients))


def _rates(to_train: np.ndarray, to_twin: np.ndarray) -> np.ndarray:
    """Nearest distances (G, B) to both sides -> (B,) differences of shares."""
    return _differences(to_train, to_twin).mean(axis=0)


def _differences(to_train: np.ndarray, to_twin: np.ndarray) -> np.ndarray:
    """Nearest distances (G, B) to both sides -> (G, B): 1 where a picture is extremely near to train, -1 to twin, 0 to neither or both."""
    # Sorted from 0, this distance has at most 1 % of the pictures before it.
    allowed = int(EXTREME * len(to_train))
    train_limit = np.partition(to_train, allowed, axis=0)[allowed]
    twin_limit = np.partition(to_twin, allowed, axis=0)[allowed]
    return (to_train < twin_limit).astype(float) - (to_twin < train_limit)


def _nearest_by_patient(distances: np.ndarray, row: np.ndarray, patients: int) -> np.ndarray:
    """Distances (G, n), each reference's patient (n,) -> (G, patients) distance to the nearest of each's pictures."""
    order = np.argsort(row, kind="stable")
    starts = np.searchsorted(row[order], np.arange(patients))
    return np.minimum.reduceat(distances[:, order], starts, axis=1)


def _nearest_dealt(nearest: np.ndarray, dealt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances (G, P), deals (P, B) -> (G, B) to the nearest patient of the first side, and of the other.

    A picture's nearest patient settles one side; the other is settled by its first patient, from near to far, that
    was dealt there. Half the deals are settled by each, so that few steps are needed.
    """
    order = np.argsort(nearest, axis=1)
    ranked = np.take_along_axis(nearest, order, axis=1)
    settled = dealt[order[:, 0]]
    other = np.full(settled.shape, np.inf)
    picture, deal = np.nonzero(np.isinf(other))
    for rank in range(1, nearest.shape[1]):
        reached = dealt[order[picture, rank], deal] != settled[picture, deal]
        other[picture[reached], deal[reached]] = ranked[picture[reached], rank]
        picture, deal = picture[~reached], deal[~reached]
        if len(picture) == 0:
            break
    closest = np.broadcast_to(ranked[:, :1], settled.shape)
    return np.where(settled, closest, other), np.where(settled, other, closest)


def _distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Euclidean distances (n, m) of rows; centred first, so that near copies are not lost in rounding."""
    centre = second.mean(axis=0)
    first, second = first - centre, second - centre
    squares = np.sum(first**2, axis=1)[:, None] + np.sum(second**2, axis=1) - 2 * first @ second.T
    return np.sqrt(np.clip(squares, 0, None))


def _check(train: CopySide, twin: CopySide) -> None:
    for name, side in (("train", train), ("twin", twin)):
        references = finite(f"{name}.references", side.references, 2)
        generated = finite(f"{name}.generated", side.generated, 2)
        same_length(f"{name}.references", references, f"{name}.patients", side.patients)
        same_length(
            f"{name}.generated", generated, f"{name}.own", row_indices(f"{name}.own", side.own, len(references))
        )
        if side.base is not None:
            same_length(f"{name}.base", finite(f"{name}.base", side.base, 2), f"{name}.generated", generated)
    for what in ("references", "generated"):
        counts = len(getattr(train, what)), len(getattr(twin, what))
        if counts[0] != counts[1]:
            raise BadArray(
                f"train has {counts[0]} {what} and twin {counts[1]}: take equally many, the larger set is nearer to all"
            )
    if (train.base is None) != (twin.base is None):
        raise BadArray("base is given for one side only: give the base's pictures for both sides, or for neither")
    both = np.intersect1d(train.patients, twin.patients)
    if len(both):
        raise BadArray(f"{len(both)} patients stand on both sides, e.g. {both[0]}: deal whole patients to one side")
