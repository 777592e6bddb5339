"""The contract of a search space: Optuna's trial in, candidate out, and back."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FixedTrial

from hpo.errors import SearchError
from hpo.settings import DEFAULT_METHODS, LARGEST
from trainers.candidate import Candidate
from trainers.errors import BadSelection
from trainers.methods import method
from trainers.mitigations import MITIGATIONS, OUTPUTS, WEIGHTS
from trainers.units import REGIONS, RESOLUTION

ROOTS = ("down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "conv_norm_out", "time_embedding", "add_embedding", "class_embedding")
SHORT = 16  # hex digits of a hash: enough to tell contents apart, few enough to read in a message


class BadProposal(SearchError):
    """A space could not give a candidate for one trial; the message names space, what it gave, and the way out."""


@dataclass(frozen=True)
class Bounds:
    """What the study's settings and its base model say about candidates.

    steps: allowed numbers, the last of them all. rate_scale: a factor on learning rates. methods: names of methods that are
    offered. protects: what mitigations are for, "weights" or "outputs". sites: the U-Net's attention blocks by path, in the
    order down, mid, up (`hpo.spaces.sites`); empty where the U-Net is not known. model: the base model, as `model_files.find` takes it.
    """

    steps: tuple[int, ...]
    rate_scale: float = 1.0
    methods: tuple[str, ...] = DEFAULT_METHODS
    protects: str = WEIGHTS
    sites: tuple[str, ...] = ()
    model: Path | None = None

    @property
    def regions(self) -> tuple[str, ...]:
        """The regions that hold attention blocks: some U-Nets have no middle. All where the U-Net is not known."""
        return tuple(region for region in REGIONS if not self.sites or any(site.startswith(region) for site in self.sites))

    @property
    def mitigations(self) -> tuple[str, ...]:
        """Those that may be used. Weights that are released are protected by training alone, outputs by both kinds."""
        return tuple(name for name, mitigation in MITIGATIONS.items() if self.protects == OUTPUTS or mitigation.protects == self.protects)


def is_number(value: Any) -> bool:
    """Whether it is a number as users may give one: no truth value, and finite in all that is computed with it."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def is_region(name: str) -> bool:
    """Whether it is a region of some U-Net."""
    return name in REGIONS or name.split(".")[0] in ROOTS or name.startswith(f"{RESOLUTION}/")


class Trained:
    """Whether candidates can be trained on a base model, by the shapes of its U-Net alone. Raises BadModel."""

    def __init__(self, model: Path):
        from trainers.base_model import unet_on_meta
        from trainers.units import walk

        self.unet = unet_on_meta(model)
        self.units = walk(self.unet)

    def check(self, candidate: Candidate) -> int:
        """Elements that it trains. Raises BadSelection for a candidate that cannot be trained."""
        chosen = method(candidate.method)
        chosen.check(candidate)
        return chosen.count(self.unet, self.units, candidate)

    def reason(self, candidate: Candidate) -> str | None:
        """Why it cannot be."""
        try:
            self.check(candidate)
        except BadSelection as error:
            return str(error)
        return None


class Space(ABC):
    """A search space. One file a space, one line in `SPACES`. Stateless: the same answers give the same candidate.

    name: what --space calls it; of a user's file with its absolute path, since workers may start in other folders.
    content: None for a space of ours; of a user's, a hash of what decides its proposals, which a study is bound to.
    takes_methods: whether it offers the methods of --methods.
    """

    name: str
    content: str | None = None
    takes_methods: bool = False

    def check(self, bounds: Bounds) -> None:
        """Raises BadSetting where nothing can be proposed within these bounds. Asked once a launch, before the first trial."""
        return

    @abstractmethod
    def propose(self, trial: Any, bounds: Bounds) -> Candidate:
        """The candidate that an Optuna trial's answers name. Parameters have readable names, since dashboards show them.

        Raises BadProposal where the answers give no candidate: then the trial fails with that reason.
        """

    def answers(self, candidate: Candidate, bounds: Bounds) -> dict[str, Any]:
        """At least the answers that would give this candidate, if any do. Raises LookupError where it is sure that none do."""
        raise LookupError(f"space {self.name} cannot tell answers from candidates")

    def fixed(self, candidate: Candidate, bounds: Bounds, given: Mapping[str, Any] | None = None) -> FixedTrial | None:
        """A trial whose answers give exactly this candidate, so that a baseline teaches the sampler too; None if none do. given: answers that gave it, or a
        longer training of it, in another study: they are tried where this space cannot tell answers from candidates."""
        try:
            answers = self.answers(candidate, bounds)
        except (LookupError, ValueError):
            return None if given is None else self.tried(given, candidate, bounds, longer=True)
        return self.tried(answers, candidate, bounds)

    def tried(self, answers: Mapping[str, Any], candidate: Candidate, bounds: Bounds, longer: bool = False) -> FixedTrial | None:
        trial = FixedTrial(dict(answers))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # Optuna's on a value that is out of range
                found = self.propose(trial, bounds)
        except (LookupError, ValueError, UserWarning, SearchError):
            return None
        return trial if found == candidate or longer and found.root == candidate.root and found.steps >= candidate.steps else None
