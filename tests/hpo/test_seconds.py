"""What trials are expected to take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from hpo.flat import STEPS, Flat
from hpo.history import Point
from hpo.seconds import FEWEST, Seconds

DISTRIBUTIONS = {"method": CategoricalDistribution(("quick", "slow")), "rate": FloatDistribution(1e-4, 1e-2, log=True)}
RUNGS = (67, 200)


def point(number: int, method: str, rate: float, steps: int, seconds: float | None) -> Point:
    return Point(number, steps, True, {"method": method, "rate": rate}, DISTRIBUTIONS, [0.0, 0.0], seconds=seconds)


@pytest.fixture
def model() -> Seconds:
    view = Flat(RUNGS)
    view.meet(DISTRIBUTIONS)
    return Seconds(view)


def asked(method: str, steps: int = 200, rate: float = 1e-3) -> dict[str, Any]:
    return {"method": method, "rate": rate, STEPS: steps}


def teach(model: Seconds, count: int) -> None:
    generator = np.random.default_rng(0)
    for number in range(count):
        method, steps = ("quick", "slow")[number % 2], RUNGS[number // 2 % 2]
        model.learn(point(number, method, float(generator.uniform(1e-4, 1e-2)), steps, steps * (0.1, 0.2)[number % 2] * float(np.exp(0.05 * generator.normal()))))


def test_nothing_is_said_of_few_trials_or_of_trials_without_seconds(model: Seconds) -> None:
    teach(model, FEWEST - 1)
    model.learn(point(99, "quick", 1e-3, 200, None))
    assert model.of([asked("quick"), asked("slow")]).tolist() == [1.0, 1.0]


def test_a_slow_method_and_more_steps_take_longer(model: Seconds) -> None:
    teach(model, 60)
    quick, slow, short = model.of([asked("quick"), asked("slow"), asked("slow", 67)])
    assert slow / quick == pytest.approx(2, rel=0.1)
    assert slow / short == pytest.approx(3, rel=0.1)
    assert quick == pytest.approx(20, rel=0.1)


def test_what_was_not_seen_is_not_believed_to_be_beyond_all_that_was(model: Seconds) -> None:
    for number in range(FEWEST):
        model.learn(point(number, "slow", 1e-4 * (1 + number), 67, 5.0 + number))
    assert model.of([asked("slow", 200, 1e-2)]) <= 5.0 + FEWEST - 1
