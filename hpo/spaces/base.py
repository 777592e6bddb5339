"""The contract of a search space: Optuna's trial in, candidate out, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from trainers.candidate import Candidate


@dataclass(frozen=True)
class Bounds:
    """What the study's settings say about candidates: allowed steps, the last of them all, and a factor on learning rates."""

    steps: tuple[int, ...]
    rate_scale: float = 1.0


class Space(ABC):
    """A search space. One file a space, one line in `SPACES`. Stateless: the same answers give the same candidate."""

    name: ClassVar[str]

    @abstractmethod
    def propose(self, trial: Any, bounds: Bounds) -> Candidate:
        """The candidate that an Optuna trial's answers name. Parameters have readable names, since dashboards show them."""

    @abstractmethod
    def parameters(self, candidate: Candidate, bounds: Bounds) -> dict[str, Any]:
        """The answers that give this candidate, so that a baseline teaches the sampler too; empty if none do."""
