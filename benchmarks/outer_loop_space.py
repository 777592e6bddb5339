"""A user's space of 30 parameters, floats, whole numbers and choices, for `benchmarks.outer_loop`: LoRA with parts of its own rank, kinds and alpha."""

from __future__ import annotations

from typing import Any

from hpo.spaces.base import Bounds
from trainers.candidate import Candidate, Part
from trainers.units import REGIONS

KINDS = ("self-attention", "cross-attention", "attention")
PARTS_A_REGION = 3
PARAMETERS = 3 * PARTS_A_REGION * len(REGIONS) + 3


def propose(trial: Any, bounds: Bounds) -> Candidate:
    parts = []
    for region in REGIONS:
        for place in range(PARTS_A_REGION):
            name = f"{region} {place}"
            kind = trial.suggest_categorical(f"kinds of {name}", KINDS)
            rank = trial.suggest_int(f"rank of {name}", 1, 32, log=True)
            parts.append(Part((region,), (kind,), rank, trial.suggest_float(f"alpha of {name}", 0.5, 64.0, log=True)))
    rate = trial.suggest_float("learning rate", 1e-5, 1e-2, log=True) * trial.suggest_float("factor", 0.5, 2.0)
    return Candidate("lora", tuple(parts), rate, trial.suggest_categorical("steps", bounds.steps))
