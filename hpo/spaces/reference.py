"""A finite space: the methods on all blocks, at their reference learning rates, over the grid of steps; and the baselines."""

from __future__ import annotations

from typing import Any

from hpo.spaces.base import Bounds, Space
from hpo.spaces.choices import suggest_steps
from trainers.candidate import Candidate, rounded
from trainers.methods import METHODS
from trainers.units import REGIONS

REFERENCE_RANK = 16
YARDSTICK_METHOD = "full"
BASELINES = (YARDSTICK_METHOD, "attention", "bias", "norm", "lora", "svdiff", "difffit")  # the papers' methods, in the order of their trials


def reference_candidate(name: str, steps: int, rate_scale: float = 1.0) -> Candidate:
    """A method as it was published: all blocks, its first choice of kinds, its reference rates, the rank nearest to REFERENCE_RANK."""
    method = METHODS[name]
    rank = min(method.ranks, key=lambda rank: abs(rank - REFERENCE_RANK), default=None)
    norm_rate = None if method.reference_norm_rate is None else rounded(method.reference_norm_rate * rate_scale)
    return Candidate.of(name, REGIONS, method.kinds[0], rounded(method.reference_rate * rate_scale), steps, rank, norm_rate=norm_rate)


class Reference(Space):
    name, takes_methods = "reference", True

    def propose(self, trial: Any, bounds: Bounds) -> Candidate:
        name = trial.suggest_categorical("method", list(bounds.methods))
        return reference_candidate(name, suggest_steps(trial, bounds.steps), bounds.rate_scale)

    def answers(self, candidate: Candidate, bounds: Bounds) -> dict[str, Any]:
        return {"method": candidate.method, "steps": candidate.steps}
