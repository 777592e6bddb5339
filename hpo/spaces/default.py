"""The default space: what the tables of methods and mitigations offer, everywhere in the U-Net."""

from __future__ import annotations

from typing import Any

from hpo.spaces.base import Bounds, Space
from hpo.spaces.choices import Choices, Offer
from trainers.candidate import Candidate
from trainers.methods import METHODS
from trainers.mitigations import MITIGATIONS
from trainers.units import REGIONS

WHERE = (REGIONS, ("up",), ("mid", "up"), ("down",), ("down", "mid"), ("mid",), ("down", "up"))


def scaled(rates: tuple[float, float] | None, scale: float) -> tuple[float, float] | None:
    return None if rates is None else (rates[0] * scale, rates[1] * scale)


def choices(bounds: Bounds) -> Choices:
    """The methods of the bounds with their own choices of kinds, ranks and rates, and all mitigations that are allowed."""
    regions = tuple(choice for choice in WHERE if choice == REGIONS or set(choice) <= set(bounds.regions))
    offers = {name: Offer(regions, METHODS[name].kinds, METHODS[name].ranks, scaled(METHODS[name].learning_rates, bounds.rate_scale),
                          scaled(METHODS[name].norm_rates, bounds.rate_scale)) for name in bounds.methods}
    return Choices(offers, bounds.steps, {name: MITIGATIONS[name].strengths for name in bounds.mitigations}, there=bounds.regions)


class Default(Space):
    name, takes_methods = "default", True

    def propose(self, trial: Any, bounds: Bounds) -> Candidate:
        return choices(bounds).propose(trial)

    def answers(self, candidate: Candidate, bounds: Bounds) -> dict[str, Any]:
        return choices(bounds).answers(candidate)
