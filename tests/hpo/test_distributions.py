"""Optuna's distributions as stored text."""

from __future__ import annotations

import json

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution, distribution_to_json

from hpo.distributions import distributions_of

DISTRIBUTIONS = {"rate": FloatDistribution(1e-4, 1e-1, log=True), "kind": CategoricalDistribution(["a", 2, None]), "at": FloatDistribution(0, 1, step=0.25),
                 "rank": IntDistribution(2, 8, step=2)}


def distributions_text(distributions: dict[str, BaseDistribution]) -> str:
    return json.dumps({name: distribution_to_json(each) for name, each in distributions.items()})


def test_text_and_back() -> None:
    found = distributions_of(distributions_text(DISTRIBUTIONS))
    assert found == DISTRIBUTIONS
    assert list(found) == list(DISTRIBUTIONS), "the order in which they were asked is kept"


def test_equal_texts_are_parsed_once() -> None:
    text = distributions_text(DISTRIBUTIONS)
    assert distributions_of(text) is distributions_of(text[:5] + text[5:])
    assert distributions_of(distributions_text({"rank": DISTRIBUTIONS["rank"]}))["rank"] is distributions_of(text)["rank"]
