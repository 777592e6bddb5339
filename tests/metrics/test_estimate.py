"""The values that this package hands out."""

import json

import numpy as np
import pytest

from metrics.errors import BadArray
from metrics.estimate import Estimate


def test_an_estimate_round_trips_through_json_as_plain_floats():
    estimate = Estimate(np.float64(0.25), np.float32(0.125), 1)
    assert type(estimate.value) is type(estimate.low) is type(estimate.high) is float
    assert Estimate.from_json(json.loads(json.dumps(estimate.to_json()))) == estimate


@pytest.mark.parametrize("numbers", [(float("nan"), 0, 1), (0, float("nan"), 1), (0, 0, float("inf")), (2, 0, 1)])
def test_an_estimate_refuses_what_cannot_stand_on_a_front(numbers):
    with pytest.raises(BadArray, match=r"^Estimate\("):
        Estimate(*numbers)


def test_excludes_asks_for_the_interval_and_not_the_value():
    estimate = Estimate(0.5, 0.1, 0.9)
    assert estimate.excludes(0.0) and estimate.excludes(1.0) and not estimate.excludes(0.1)
