"""How a trial's parameters are shown to a sampler: as they were asked, or flattened to the union of all that any trial asked.

Optuna's GPSampler and NSGAIISampler model only the parameters that every trial has (the intersection), so that on a conditional
space they would see next to nothing of it. ("Conditional" in Optuna 5's GP code means given the running trials, not such spaces.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

ALTERNATIVE = re.compile(r" of \S+")  # in a parameter's name: what it is asked of, as hpo.spaces names them
STEPS = "steps"  # the parameter that tells rungs apart, whether the space asks for it or not
UNSAID = object()


class AsAsked:
    """Parameters as the trial was asked, and the steps as a whole number on a log scale, since rungs grow geometrically.

    A parameter whose distribution is of another kind than an earlier one of that name is left out: no sampler could compare them.
    """

    def __init__(self, rungs: tuple[int, ...]):
        self.rungs = rungs
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

    def meant(self, name: str, values: Mapping[str, Any]) -> Any:
        """What a sampler's proposal, by names as it sees them, says of a parameter of the space, or UNSAID. Whether the space offers that is for
        the caller to ask: it does not offer UNSAID."""
        return values.get(name, UNSAID)

    def has(self, name: str, distribution: BaseDistribution) -> bool:
        """Whether a sampler may be asked for this parameter by itself: those that it knows otherwise would make it fail."""
        return are_alike(self.known.get(name, distribution), distribution)


class Flat(AsAsked):
    """The union of all parameters that were met; one that a trial was not asked has its distribution's centre.

    Parameters that only alternatives have ("rank of lora", "rank of loha") are one parameter here, "rank", unless a trial has two of them:
    numbers by their place in their own range, words as they are. A model then learns of all methods from each, and the default
    space has 18 dimensions in place of 52.
    """

    def __init__(self, rungs: tuple[int, ...]):
        super().__init__(rungs)
        self.asked: dict[str, BaseDistribution] = {}  # what was met, by its own name
        self.apart: set[str] = set()  # kinds of which a trial had two
        self.columns: dict[str, str] = {}  # own name -> name here
        self.met: dict[int, Mapping[str, BaseDistribution]] = {}  # by id: thousands of trials share a few
        self.plans: dict[int, dict[str, tuple[str, BaseDistribution | None]]] = {}  # of these: see plan_of
        self.centres: dict[str, Any] = {}

    def meet(self, distributions: Mapping[str, BaseDistribution]) -> bool:
        if id(distributions) in self.met:
            return False
        self.met[id(distributions)] = distributions
        grown = False
        for name, distribution in distributions.items():
            known = self.asked.get(name)
            if known is distribution or name == STEPS:
                continue
            wanted = distribution if known is None else union(known, distribution)
            if wanted != known:
                self.asked[name], grown = wanted, True
        kinds = [kind_of(name) for name in distributions]
        if len(kinds) > len(set(kinds)):
            twice = {kind for kind in kinds if kinds.count(kind) > 1} - self.apart
            self.apart, grown = self.apart | twice, grown or bool(twice)
        if grown:
            self.flatten()
        return grown

    def flatten(self) -> None:
        """Find the parameters as they are seen here. A new dict, since trials that were shown before hold the old one."""
        kinds: dict[str, list[str]] = {}
        for name in self.asked:
            kinds.setdefault(name if kind_of(name) in self.apart else kind_of(name), []).append(name)
        self.plans = {}
        self.columns, known = {}, {STEPS: self.known[STEPS]}
        for kind, names in kinds.items():
            pooled = together([self.asked[name] for name in names]) if len(names) > 1 else None
            for name in names:
                self.columns[name] = name if pooled is None else kind
                known[self.columns[name]] = self.asked[name] if pooled is None else pooled
        self.known = known
        self.centres = {name: centre(distribution) for name, distribution in known.items()}

    def shown(self, parameters: Mapping[str, Any], distributions: Mapping[str, BaseDistribution], steps: int) -> tuple[dict, dict]:
        plan = self.plans.get(id(distributions)) or self.plan_of(distributions)
        own = {}
        for name, (column, range_) in plan.items():
            if name in parameters:
                own[column] = parameters[name] if range_ is None else place(range_, parameters[name])
        return {**self.centres, **own, STEPS: self.clipped(steps)}, self.known

    def plan_of(self, distributions: Mapping[str, BaseDistribution]) -> dict[str, tuple[str, BaseDistribution | None]]:
        """Own name -> its name here and the range in which its place is taken, None where the value stays as it is."""
        plan = {}
        for name, distribution in distributions.items():
            known = self.asked.get(name)
            if known is not None and are_alike(known, distribution):
                column = self.columns[name]
                plan[name] = column, None if column == name or is_worded(known) else known
        if id(distributions) in self.met:
            self.plans[id(distributions)] = plan
        return plan

    def meant(self, name: str, values: Mapping[str, Any]) -> Any:
        column = self.columns.get(name, name)
        value = values.get(column, UNSAID)
        return value if value is UNSAID or column == name or is_worded(self.asked[name]) else at(self.asked[name], value)

    def has(self, name: str, distribution: BaseDistribution) -> bool:
        return name not in self.asked or (self.columns[name] == name and are_alike(self.asked[name], distribution))


def kind_of(name: str) -> str:
    """What a parameter says, whatever it says it of: "rank in up" of "rank of lora in up". "steps of lora" stays apart: the rung is told by another."""
    kind = ALTERNATIVE.sub("", name)
    return name if kind == STEPS else kind


def is_worded(distribution: BaseDistribution) -> bool:
    """Choices that have no order."""
    return isinstance(distribution, CategoricalDistribution) and not all(type(choice) in (int, float) for choice in distribution.choices)


def together(distributions: Sequence[BaseDistribution]) -> BaseDistribution | None:
    """One distribution for parameters that alternatives have: a place from 0 to 1, or any of their words; None where some have words and others numbers."""
    if all(map(is_worded, distributions)):
        return CategoricalDistribution(tuple(dict.fromkeys(choice for each in distributions for choice in each.choices)))
    return None if any(map(is_worded, distributions)) else FloatDistribution(0, 1)


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
    """The inverse of `at`, of a range or of choices: of one of several values the middle of those places that give it."""
    if isinstance(distribution, CategoricalDistribution):
        return (distribution.choices.index(value) + 0.5) / len(distribution.choices)
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
