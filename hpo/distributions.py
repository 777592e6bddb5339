"""Optuna's distributions from the text that is stored with a trial."""

from __future__ import annotations

import json
from functools import lru_cache

from optuna.distributions import BaseDistribution, json_to_distribution

MOST_TEXTS = 8192  # a conditional space gives thousands of different texts, of some kilobytes each


@lru_cache(maxsize=MOST_TEXTS)
def distributions_of(text: str) -> dict[str, BaseDistribution]:
    """A JSON object, name -> Optuna's own JSON of a distribution; the order of names is kept. Equal texts give one and the same dict: it must not be changed."""
    return {name: one(each) for name, each in json.loads(text).items()}


@lru_cache(maxsize=MOST_TEXTS)
def one(text: str) -> BaseDistribution:
    return json_to_distribution(text)
