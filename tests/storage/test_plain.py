"""Values as PostgreSQL takes them."""

from __future__ import annotations

import numpy as np
import pytest

from storage import plain
from storage.errors import BadValue


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2), np.array(2.0)])
def test_any_finite_number_becomes_a_plain_float(value: object) -> None:
    assert type(plain.number("x", value)) is float and plain.number("x", value) == 2


@pytest.mark.parametrize("value", [float("nan"), np.float32("inf"), -np.inf])
def test_what_is_not_finite_is_refused_by_name(value: float) -> None:
    with pytest.raises(BadValue, match="fd=.* must be a finite number"):
        plain.number("fd", value)
    assert plain.optional("fd", None) is None


def test_json_is_what_comes_back_from_jsonb() -> None:
    assert plain.as_stored({1: (1, "a\0b")}) == {"1": [1, "ab"]}
    for bad in ({"a": float("nan")}, {"a": object()}):
        with pytest.raises(BadValue, match="cannot be stored as JSON"):
            plain.as_stored(bad)
    assert plain.clean("a\0b") == "ab" and plain.clean(None) is None
