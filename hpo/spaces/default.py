"""The default space: method, regions, kinds, rank where there is an adapter, learning rate in the method's range, steps."""

from __future__ import annotations

from typing import Any

from hpo.spaces.base import Bounds, Space
from trainers.candidate import Candidate, listed, rounded
from trainers.methods import METHODS
from trainers.units import REGIONS

WHERE = {"all blocks": REGIONS, "up blocks": ("up",), "mid and up blocks": ("mid", "up"), "down blocks": ("down",),
         "down and mid blocks": ("down", "mid")}


class Default(Space):
    name = "default"

    def propose(self, trial: Any, bounds: Bounds) -> Candidate:
        method = METHODS[trial.suggest_categorical("method", list(METHODS))]
        regions = WHERE[trial.suggest_categorical("where", list(WHERE))]
        kinds = {listed(choice): choice for choice in method.kinds}
        chosen = next(iter(kinds)) if len(kinds) == 1 else trial.suggest_categorical(f"kinds of {method.name}", list(kinds))
        rank = trial.suggest_categorical(f"rank of {method.name}", list(method.ranks)) if method.ranks else None
        low, high = (rounded(rate * bounds.rate_scale) for rate in method.learning_rates)  # else a rounded rate could leave the range
        rate = trial.suggest_float(f"learning rate of {method.name}", low, high, log=True)
        return Candidate(method.name, regions, kinds[chosen], rounded(rate), suggest_steps(trial, bounds), rank)

    def parameters(self, candidate: Candidate, bounds: Bounds) -> dict[str, Any]:
        method = METHODS[candidate.method]
        answers = {"method": method.name, "where": next(words for words, regions in WHERE.items() if regions == candidate.regions),
                   f"learning rate of {method.name}": candidate.learning_rate, "steps": candidate.steps}
        if len(method.kinds) > 1:
            answers[f"kinds of {method.name}"] = listed(candidate.kinds)
        if method.ranks:
            answers[f"rank of {method.name}"] = candidate.rank
        return answers


def suggest_steps(trial: Any, bounds: Bounds) -> int:
    first, last = bounds.steps[0], bounds.steps[-1]
    unit = bounds.steps[1] - first if len(bounds.steps) > 1 else 1
    return trial.suggest_int("steps", first, last, step=unit)
