"""A user's space in TOML: which methods, where, of which kinds, at which ranks, rates and steps, with which mitigations.

    steps = [100, 200]                                # choices; without it those of --steps
    regions = ["up", ["mid", "up"], "up_blocks.1"]    # choices; each is one or several of what `python -m trainers.units` lists
    always_mitigate = false                           # true: training without any mitigation is no choice

    [methods.bias]                                    # a method with its own choices and ranges

    [methods.lora]
    regions = [["down", "mid", "up"]]                 # in place of those above
    kinds = ["cross-attention", ["self-attention", "cross-attention"]]
    ranks = [4, 8]
    learning_rates = [1e-4, 1e-2]                     # lowest and highest; these are not scaled by --learning-rate-scale

    [methods.svdiff]
    norm_rates = [1e-5, 1e-3]                         # only for methods that have a rate of their own for norms

    [mitigations.rwa]                                 # a mitigation with its own choices; its numbers may be named:
    probability = [0.1, 0.4]
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hpo.command import toml
from hpo.errors import BadSetting
from hpo.settings import LARGEST
from hpo.spaces.base import ROOTS, SHORT, Bounds, Space, Trained, is_number, is_region
from hpo.spaces.choices import Choices, Offer
from hpo.spaces.default import scaled
from trainers.candidate import Candidate
from trainers.errors import BadSelection, nearest
from trainers.methods import METHODS
from trainers.mitigations import MITIGATIONS
from trainers.units import REGIONS

KEYS = ("steps", "regions", "always_mitigate", "methods", "mitigations")
METHOD_KEYS = ("regions", "kinds", "ranks", "learning_rates", "norm_rates")


class File(Space):
    """Read and checked when it is made. Raises BadSetting naming the file, the key, its value and the rule."""

    def __init__(self, given: str):
        self.given, self.name = given, str(Path(given).absolute())
        data = toml("--space", Path(self.given))
        self.content = hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:SHORT]
        self.known(data, KEYS, "")
        self.steps = self.get(data, "steps", "", list_of(is_count, "whole numbers from 1 on"))
        self.always_mitigate = self.get(data, "always_mitigate", "", a_truth) or False
        regions = self.get(data, "regions", "", choices_of("region", is_region, (*REGIONS, *ROOTS))) or (REGIONS,)
        self.methods = {name: self.method(name, table, regions) for name, table in self.tables(data, "methods", METHODS).items()}
        self.mitigations = {name: self.mitigation(name, table) for name, table in self.tables(data, "mitigations", MITIGATIONS).items()}
        if not self.methods:
            raise self.refusal("it names no method, add a table such as [methods.lora]")
        if self.always_mitigate and not self.mitigations:
            raise self.refusal("always_mitigate = true, but it names no mitigation: add a table such as [mitigations.NAME], or take false")

    def refusal(self, words: str) -> BadSetting:
        return BadSetting(f"--space {self.given}: {words}")

    def known(self, table: Mapping[str, Any], keys: Iterable[str], inside_of: str) -> None:
        for key in table:
            if key not in keys:
                raise self.refusal(f"key {inside_of + key!r} is unknown: take {nearest(key, keys)}")

    def get(self, table: Mapping[str, Any], key: str, inside_of: str, parse: Callable[[Any], Any]) -> Any:
        """The parsed value of a key, None where it is not there."""
        if key not in table:
            return None
        try:
            return parse(table[key])
        except ValueError as error:
            raise self.refusal(f"{inside_of}{key} = {table[key]!r}: {error}") from error

    def tables(self, data: Mapping[str, Any], key: str, known: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        found = data.get(key, {})
        if not isinstance(found, dict) or not all(isinstance(table, dict) for table in found.values()):
            raise self.refusal(f"{key} = {found!r}: it must be tables, write [{key}.{next(iter(known), 'NAME')}]")
        for name in found:
            if name not in known:
                raise self.refusal(f"[{key}.{name}] is unknown: take {nearest(name, known)}")
        return found

    def method(self, name: str, table: Mapping[str, Any], regions: tuple[tuple[str, ...], ...]) -> Offer:
        """Its rates are None where the method's own, which are scaled, are meant."""
        method, inside_of = METHODS[name], f"methods.{name}."
        self.known(table, METHOD_KEYS, inside_of)
        for key, has in (("ranks", method.ranks), ("norm_rates", method.norm_rates)):
            if key in table and not has:
                raise self.refusal(f"{inside_of}{key}: {method.title} has none, leave it out")
        kinds = method.known_kinds
        return Offer(self.get(table, "regions", inside_of, choices_of("region", is_region, (*REGIONS, *ROOTS))) or regions,
                     self.get(table, "kinds", inside_of, choices_of("kind", kinds.__contains__, kinds)) or method.kinds,
                     self.get(table, "ranks", inside_of, list_of(is_count, "whole numbers from 1 on")) or method.ranks,
                     self.get(table, "learning_rates", inside_of, a_range), self.get(table, "norm_rates", inside_of, a_range))

    def mitigation(self, name: str, table: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
        numbers, inside_of = MITIGATIONS[name].strengths, f"mitigations.{name}."
        self.known(table, numbers, inside_of)
        found = {number: self.get(table, number, inside_of, list_of(is_number, f"numbers up to {LARGEST}")) or usual for number, usual in numbers.items()}
        for number, values in found.items():
            for value in values:
                try:
                    MITIGATIONS[name].check({**{other: choices[0] for other, choices in numbers.items()}, number: value})
                except BadSelection as error:
                    raise self.refusal(f"{error}") from error
        return found

    def check(self, bounds: Bounds) -> None:
        for steps in self.steps or ():
            if steps > bounds.steps[-1]:
                raise self.refusal(f"steps {steps}: no candidate may have more than --steps {bounds.steps[-1]}, raise it or take fewer here")
        for name in self.mitigations:
            if name not in bounds.mitigations:
                raise self.refusal(f"[mitigations.{name}]: it does not protect {bounds.protects}, leave it out or take --protects outputs")
        if bounds.model is not None:
            self.check_on(bounds.model, bounds)

    def check_on(self, model: Path, bounds: Bounds) -> None:
        """BadSetting for a region that the base model's U-Net does not have, and for a rank with which a method can train nothing that it is offered."""
        trained = Trained(model)
        for name, offer in self.choices(bounds).methods.items():
            for region in {region: None for choice in offer.regions for region in choice}:
                try:
                    trained.units.select((region,), ("everything",))
                except BadSelection as error:
                    raise self.refusal(f"{error}") from error
            for rank in offer.ranks or (None,):
                said = [trained.reason(Candidate.of(name, regions, kinds, offer.learning_rates[0], 1, rank)) for regions in offer.regions for kinds in offer.kinds]
                if all(said):
                    raise self.refusal(f"methods.{name}: {said[0]}")

    def choices(self, bounds: Bounds) -> Choices:
        offers = {name: Offer(offer.regions, offer.kinds, offer.ranks, offer.learning_rates or scaled(METHODS[name].learning_rates, bounds.rate_scale),
                              offer.norm_rates or scaled(METHODS[name].norm_rates, bounds.rate_scale)) for name, offer in self.methods.items()}
        return Choices(offers, self.steps or bounds.steps, self.mitigations, not self.always_mitigate, bounds.regions)

    def propose(self, trial: Any, bounds: Bounds) -> Candidate:
        return self.choices(bounds).propose(trial)

    def answers(self, candidate: Candidate, bounds: Bounds) -> dict[str, Any]:
        return self.choices(bounds).answers(candidate)


# Parsers of one value: they give it as a space has it, or raise ValueError with the rule and the way out.

def is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= LARGEST


def a_truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("it must be true or false, write one of them")
    return value


def list_of(holds: Callable[[Any], bool], words: str) -> Callable[[Any], tuple]:
    def parse(value: Any) -> tuple:
        if not isinstance(value, list) or not value or not all(map(holds, value)):
            raise ValueError(f"it must be a list of {words}, write it so")
        return tuple(dict.fromkeys(value))

    return parse


def choices_of(what: str, holds: Callable[[str], bool], known: Iterable[str]) -> Callable[[Any], tuple[tuple[str, ...], ...]]:
    """Choices, each of one name or of a list of names."""
    def parse(value: Any) -> tuple[tuple[str, ...], ...]:
        lists = [[each] if isinstance(each, str) else each for each in value] if isinstance(value, list) else []
        if not lists or not all(isinstance(names, list) and names and all(isinstance(name, str) for name in names) for names in lists):
            raise ValueError(f"it must be a list of choices, each one {what} or a list of them, write it so")
        for name in (name for names in lists for name in names):
            if not holds(name):
                raise ValueError(f"{what} {name!r} is unknown: take {nearest(name, known)}")
        return tuple(dict.fromkeys(tuple(dict.fromkeys(names)) for names in lists))

    return parse


def a_range(value: Any) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2 or not all(map(is_number, value)) or not 0 < value[0] <= value[1]:
        raise ValueError(f"it must be the lowest and the highest rate, both above 0 and at most {LARGEST}, write [1e-4, 1e-2]")
    return float(value[0]), float(value[1])
