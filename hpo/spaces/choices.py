"""A conditional space by what it offers: a method, where and of which kind its units are, ranks, rates, steps, a mitigation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trainers.candidate import Applied, Candidate, Part, listed, rounded, where
from trainers.units import REGIONS

NO_MITIGATION = "none"
SAME, APART = "the same everywhere", "one a region"
MOST_RANKS = 20  # regions with a rank each: with the other parameters a trial then has at most about 30 dimensions


@dataclass(frozen=True)
class Offer:
    """What may be chosen of one method: regions and kinds as `Part` has them, ranks (none: the method has none), ranges of rates."""

    regions: tuple[tuple[str, ...], ...]
    kinds: tuple[tuple[str, ...], ...]
    ranks: tuple[int, ...]
    learning_rates: tuple[float, float]
    norm_rates: tuple[float, float] | None


@dataclass(frozen=True)
class Choices:
    """A search space as data. Only what depends on a choice is asked: a rank where there is an adapter, a strength where
    there is that mitigation, and nothing of which there is one choice but the method and the steps.

    mitigations: for each that is offered, the choices of its numbers; plain: whether none is a choice too. there: the
    regions that the U-Net has, since an adapter's part in another would select nothing.
    """

    methods: Mapping[str, Offer]
    steps: tuple[int, ...]
    mitigations: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)
    plain: bool = True
    there: tuple[str, ...] = REGIONS

    def propose(self, trial: Any) -> Candidate:
        name = trial.suggest_categorical("method", list(self.methods))
        offer = self.methods[name]
        regions = choose(trial, f"blocks of {name}" if self.differ else "blocks", {where(choice): choice for choice in offer.regions})
        kinds = choose(trial, f"kinds of {name}", {listed(choice): choice for choice in offer.kinds})
        rate = suggest_rate(trial, f"learning rate of {name}", offer.learning_rates)
        norm_rate = None if offer.norm_rates is None else suggest_rate(trial, f"norm rate of {name}", offer.norm_rates)
        return Candidate(name, self.parts(trial, name, regions, kinds), rate, suggest_steps(trial, self.steps), norm_rate=norm_rate,
                         mitigations=self.mitigated(trial))

    @property
    def differ(self) -> bool:
        """Whether methods have choices of regions of their own, which a parameter of one name cannot have."""
        return len({offer.regions for offer in self.methods.values()}) > 1

    def parts(self, trial: Any, name: str, regions: tuple[str, ...], kinds: tuple[str, ...]) -> tuple[Part, ...]:
        """One part, or one for each rank where ranks differ between regions."""
        ranks = {rank: rank for rank in self.methods[name].ranks}
        if not ranks:
            return (Part(regions, kinds),)
        several = self.several(regions) if len(ranks) > 1 else ()
        if not several or choose(trial, f"ranks of {name}", {SAME: True, APART: False}):
            return (Part(regions, kinds, choose(trial, f"rank of {name}", ranks)),)
        by_rank: dict[int, list[str]] = {}
        for region in several:
            by_rank.setdefault(choose(trial, f"rank of {name} in {where((region,))}", ranks), []).append(region)
        if len(by_rank) == 1:
            return (Part(regions, kinds, next(iter(by_rank))),)
        return tuple(Part(tuple(inside), kinds, rank) for rank, inside in by_rank.items())

    def several(self, regions: tuple[str, ...]) -> tuple[str, ...]:
        """The regions that may have a rank each; empty if there are not several, or too many."""
        found = tuple(region for region in regions if region not in REGIONS or region in self.there)
        return found if 1 < len(found) <= MOST_RANKS else ()

    def mitigated(self, trial: Any) -> tuple[Applied, ...]:
        names = [NO_MITIGATION] * self.plain + list(self.mitigations)
        chosen = choose(trial, "mitigation", {name: name for name in names})
        if chosen == NO_MITIGATION:
            return ()
        numbers = {number: choose(trial, f"{number} of {chosen}", {rounded(value): value for value in values})
                   for number, values in self.mitigations[chosen].items()}
        return (Applied.of(chosen, **numbers),)

    def answers(self, candidate: Candidate) -> dict[str, Any]:
        """See `Space.answers`. Raises LookupError."""
        name = candidate.method
        offer = self.methods[name]
        rank_of = {region: part.rank for part in candidate.parts for region in part.regions}
        regions = next((choice for choice in offer.regions if set(choice) == set(rank_of) or set(self.several(choice)) == set(rank_of)), ())
        answers = {"method": name, "blocks": where(regions) if regions else None, f"kinds of {name}": listed(candidate.parts[0].kinds),
                   f"learning rate of {name}": candidate.learning_rate, f"norm rate of {name}": candidate.norm_rate, "steps": candidate.steps,
                   f"ranks of {name}": SAME if len(candidate.parts) == 1 else APART, f"rank of {name}": candidate.parts[0].rank,
                   "mitigation": NO_MITIGATION}
        answers[f"blocks of {name}"] = answers["blocks"]
        answers |= {f"rank of {name} in {where((region,))}": rank for region, rank in rank_of.items()}
        for applied in candidate.mitigations:
            answers["mitigation"] = applied.mitigation
            answers |= {f"{number} of {applied.mitigation}": value for number, value in applied.strength}
        return answers


def choose(trial: Any, name: str, choices: Mapping[Any, Any]) -> Any:
    """The choice whose key, a word or a number, the trial answers with; it is not asked where there is only one."""
    keys = list(choices)
    return choices[keys[0] if len(keys) == 1 else trial.suggest_categorical(name, keys)]


def suggest_rate(trial: Any, name: str, rates: tuple[float, float]) -> float:
    """Log-uniform, to three digits; the ends too, else a rounded rate could leave the range."""
    low, high = map(rounded, rates)
    return rounded(trial.suggest_float(name, low, high, log=True))


def suggest_steps(trial: Any, steps: Iterable[int]) -> int:
    """One of these numbers, mostly the study's rungs."""
    return trial.suggest_categorical("steps", sorted(set(steps)))
