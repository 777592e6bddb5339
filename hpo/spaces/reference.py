"""A finite space: the methods on all blocks, at their reference learning rates, over the grid of steps."""

from __future__ import annotations

from typing import Any

from hpo.spaces.base import Bounds, Space
from hpo.spaces.default import suggest_steps
from trainers.candidate import Candidate, rounded
from trainers.methods import METHODS
from trainers.units import REGIONS

REFERENCE_RANK = 16


def reference_candidate(name: str, steps: int, rate_scale: float = 1.0) -> Candidate:
    """A method as a baseline: all blocks, its first choice of kinds, its reference learning rate."""
    method = METHODS[name]
    return Candidate(name, REGIONS, method.kinds[0], rounded(method.reference_rate * rate_scale), steps,
                     REFERENCE_RANK if method.ranks else None)


class Reference(Space):
    name = "reference"

    def propose(self, trial: Any, bounds: Bounds) -> Candidate:
        name = trial.suggest_categorical("method", list(METHODS))
        return reference_candidate(name, suggest_steps(trial, bounds), bounds.rate_scale)

    def parameters(self, candidate: Candidate, bounds: Bounds) -> dict[str, Any]:
        same = candidate == reference_candidate(candidate.method, candidate.steps, bounds.rate_scale)
        return {"method": candidate.method, "steps": candidate.steps} if same else {}
