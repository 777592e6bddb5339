"""What trials take, told from what others took: how much longer one candidate is than another. It knows no database."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from optuna.distributions import BaseDistribution

from hpo.flat import STEPS, AsAsked, is_worded, place

if TYPE_CHECKING:
    from hpo.history import Point

FEWEST = 8  # evaluated rungs, before it says anything
MOST = 300  # of the newest, that it is fitted to
RIDGE = 1.0  # in rungs: what a parameter does to the seconds is nothing until several rungs say so


class Fit(NamedTuple):
    """known: the parameters that it is of. centre, weights: of encoded candidates, (d,) float64. level, low, high: logarithms of seconds."""

    known: Mapping[str, BaseDistribution]
    centre: np.ndarray
    weights: np.ndarray
    level: float
    low: float
    high: float


class Seconds:
    """Ridge regression of the logarithm of a trial's seconds until a rung on the parameters as samplers see them: numbers by their place in their
    range, words by indicators, steps by their logarithm."""

    def __init__(self, view: AsAsked):
        self.view = view
        self.points: deque[Point] = deque(maxlen=MOST)
        self.fit: Fit | None = None

    def learn(self, point: Point) -> None:
        """An evaluated rung; one without seconds teaches nothing."""
        if point.seconds is not None and point.seconds > 0:
            self.points.append(point)
            self.fit = None

    def of(self, candidates: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Expected seconds of flattened candidates, (n,) float64; all 1 while fewer than FEWEST rungs are known. Never beyond the shortest and the
        longest that was seen."""
        if len(self.points) < FEWEST:
            return np.ones(len(candidates))
        if self.fit is None or self.fit.known is not self.view.known:
            self.fit = self.fitted()
        fit = self.fit
        return np.exp(np.clip(fit.level + (self.encoded(candidates) - fit.centre) @ fit.weights, fit.low, fit.high))

    def fitted(self) -> Fit:
        x = self.encoded([self.view.shown(point.parameters, point.distributions, point.steps)[0] for point in self.points])
        y = np.log([point.seconds for point in self.points])
        centre = x.mean(axis=0)
        weights = np.linalg.solve((x - centre).T @ (x - centre) + RIDGE * np.eye(x.shape[1]), (x - centre).T @ (y - y.mean()))
        return Fit(self.view.known, centre, weights, y.mean(), y.min(), y.max())

    def encoded(self, candidates: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """(n, d) float64."""
        columns = [column for name, distribution in self.view.known.items() for column in encode(name, distribution, [each[name] for each in candidates])]
        return np.stack(columns, axis=1)


def encode(name: str, distribution: BaseDistribution, values: Sequence[Any]) -> list[np.ndarray]:
    """The columns of one parameter, (n,) float64 each."""
    if name == STEPS:
        return [np.log(np.array(values, float) / math.sqrt(distribution.low * distribution.high))]
    if is_worded(distribution):
        return [np.array([value == choice for value in values], float) for choice in distribution.choices]
    return [np.array([place(distribution, value) for value in values])]
