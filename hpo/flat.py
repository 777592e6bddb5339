"""How a trial's parameters are shown to a sampler: as they were asked, or flattened to the union of all that any trial asked.

Optuna's GPSampler and NSGAIISampler model only the parameters that every trial has (the intersection), so that on a conditional
space they would see next to nothing of it. ("Conditional" in Optuna 5's GP code means given the running trials, not such spaces.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

STEPS = "steps"  # the parameter that tells rungs apart, whether the space asks for it or not


class AsAsked:
    """Parameters as the trial was asked, and the steps as a whole number on a log scale, since rungs grow geometrically.

    A parameter whose distribution is of another kind than an earlier one of that name is left out: no sampler could compare them.
    """

    def __init__(self, rungs: tuple[int, ...]):
        self.known: dict[str, BaseDistribution] = {STEPS: IntDistribution(rungs[0], rungs[-1], log=True)}

    def meet(self, distributions: Mapping[str, BaseDistribution]) -> bool:
        """Take note of the distributions; whether trials that were shown before must be shown anew."""
        for name, distribution in distributions.items():
            self.known.setdefault(name, distribution)
        return False

    def shown(self, parameters: Mapping[str, Any], distributions: Mapping[str, BaseDistribution], steps: int) -> tuple[dict, dict]:
        """(values, distributions) for a sampler; the distributions have been met."""
        own = self.comparable(parameters, distributions)
        return own | {STEPS: self.clipped(steps)}, {name: distributions[name] for name in own} | {STEPS: self.known[STEPS]}

    def comparable(self, parameters: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> dict[str, Any]:
        known = self.known
        return {name: value for name, value in parameters.items()
                if name != STEPS and name in known and are_alike(known[name], distributions[name])}

    def clipped(self, steps: int) -> int:
        return min(max(steps, self.known[STEPS].low), self.known[STEPS].high)


class Flat(AsAsked):
    """The union of all parameters that were met; one that a trial was not asked has its distribution's centre."""

    def __init__(self, rungs: tuple[int, ...]):
        super().__init__(rungs)
        self.centres: dict[str, Any] = {}

    def meet(self, distributions: Mapping[str, BaseDistribution]) -> bool:
        grown = False
        for name, distribution in distributions.items():
            known = self.known.get(name)
            if known is distribution or name == STEPS:
                continue
            wanted = distribution if known is None else union(known, distribution)
            if wanted != known:
                self.known[name], self.centres[name], grown = wanted, centre(wanted), True
        if grown:  # a new dict, since trials that were shown before hold the old one
            self.known = dict(self.known)
        return grown

    def shown(self, parameters: Mapping[str, Any], distributions: Mapping[str, BaseDistribution], steps: int) -> tuple[dict, dict]:
        return {**self.centres, **self.comparable(parameters, distributions), STEPS: self.clipped(steps)}, self.known


def are_alike(one: BaseDistribution, other: BaseDistribution) -> bool:
    """Whether values of both can be compared: the same choices, or numbers of one kind on one scale."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    return one == other if isinstance(one, CategoricalDistribution) else one.log == other.log


def union(one: BaseDistribution, other: BaseDistribution) -> BaseDistribution:
    """The range that holds both; the first where they are not alike."""
    if one == other or not are_alike(one, other) or (one.low <= other.low and other.high <= one.high):
        return one
    low, high = min(one.low, other.low), max(one.high, other.high)
    same_grid = one.step == other.step and one.low == other.low
    if isinstance(one, FloatDistribution):
        return FloatDistribution(low, high, log=one.log, step=one.step if same_grid else None)
    return IntDistribution(low, high, log=one.log, step=one.step if same_grid else 1)


def at(distribution: BaseDistribution, place: float) -> Any:
    """The value at a place from 0 to 1 of a range, on its scale and grid, each of a grid with an equal share; of choices likewise."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[min(int(place * len(distribution.choices)), len(distribution.choices) - 1)]
    low, high = ends(distribution)
    value = math.exp(low + place * (high - low)) if distribution.log else low + place * (high - low)
    if distribution.step is not None:
        value = distribution.low + round((value - distribution.low) / distribution.step) * distribution.step
    return min(max(value, distribution.low), distribution.high)


def place(distribution: BaseDistribution, value: float) -> float:
    """The inverse of `at`, of a range."""
    low, high = ends(distribution)
    return 0.5 if low == high else ((math.log(value) if distribution.log else value) - low) / (high - low)


def ends(distribution: BaseDistribution) -> tuple[float, float]:
    """Half a step beyond a range at both ends, on its scale."""
    half = (distribution.step or 0) / 2
    low, high = distribution.low - half, distribution.high + half
    return (math.log(low), math.log(high)) if distribution.log else (low, high)


def centre(distribution: BaseDistribution) -> Any:
    """The middle of a range; the first of choices."""
    return at(distribution, 0.0 if isinstance(distribution, CategoricalDistribution) else 0.5)
