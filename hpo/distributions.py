"""Optuna's distributions as the text that is stored with a trial, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution

MOST_TEXTS = 8192  # a conditional space gives thousands of different texts, of some kilobytes each


def distributions_text(distributions: Mapping[str, BaseDistribution]) -> str:
    """{name: distribution} → a JSON object of names and Optuna's own JSON of each; the order of names is kept."""
    return json.dumps({name: distribution_to_json(distribution) for name, distribution in distributions.items()})


@lru_cache(maxsize=MOST_TEXTS)
def distributions_of(text: str) -> dict[str, BaseDistribution]:
    """The inverse of `distributions_text`. Equal texts give one and the same dict: it must not be changed."""
    return {name: one(each) for name, each in json.loads(text).items()}


@lru_cache(maxsize=MOST_TEXTS)
def one(text: str) -> BaseDistribution:
    return json_to_distribution(text)
