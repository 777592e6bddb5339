"""Bounds: how they are written, what they measure, and what is said of wrong ones."""

import pytest

from hpo import constraints
from hpo.errors import BadSetting
from hpo.settings import Settings
from metrics.estimate import Estimate
from metrics.scores import Scores

SCORED = Scores({"fd": Estimate(4.0, 3.0, 5.0), "copy_rate": Estimate(0.02, -0.02, 0.06)})


def violations(**given) -> dict[str, float]:
    return constraints.parse(Settings(**given)).after(SCORED, trainable=2_000, total=100_000, seconds=40.0, memory=3 * 2**30)


def test_without_flags_nothing_is_bounded() -> None:
    assert not constraints.parse(Settings()) and violations() == {}


def test_a_share_and_a_number_of_parameters() -> None:
    assert violations(max_trainable="1%") == {"max-trainable 1%": pytest.approx(0.01)}
    assert violations(max_trainable="2000") == {"max-trainable 2000": 0.0}
    assert constraints.parse(Settings(max_trainable="1 %")).before(1_000, 100_000) == {"max-trainable 1 %": pytest.approx(0.0)}


def test_memory_in_both_kinds_of_units_and_seconds() -> None:
    assert violations(max_memory="4GiB") == {"max-memory 4GiB": -(2.0**30)}
    assert violations(max_memory="3 gb")["max-memory 3 gb"] == 3 * 2**30 - 3e9
    assert violations(max_seconds=30.0) == {"max-seconds 30": 10.0}


def test_a_score_is_its_value_or_an_end_of_its_interval() -> None:
    assert violations(require="copy_rate<=0.05")["require copy_rate<=0.05"] == pytest.approx(-0.03)
    assert violations(require="copy_rate_high<=0.05")["require copy_rate_high<=0.05"] == pytest.approx(0.01)
    assert violations(require="fd_low >= 2, copy_rate <= 0")["require fd_low>=2"] == pytest.approx(-1.0)


def test_violated_bounds_are_told_by_name() -> None:
    assert constraints.told(violations(require="copy_rate_high<=0.05,fd<=9", max_seconds=30.0)) == "max-seconds 30, require copy_rate_high<=0.05"
    assert constraints.told({}) == ""


def test_samplers_see_shares_of_limits_in_the_order_of_names() -> None:
    given = dict(max_memory="4GiB", max_seconds=30.0, require="copy_rate<=0.05,loss_gap<=0", max_trainable="1%")
    measured = Scores({"copy_rate": Estimate(0.1, 0, 1), "loss_gap": Estimate(0.2, 0, 1)})
    parsed = constraints.parse(Settings(**given))
    found = parsed.after(measured, trainable=3_000, total=100_000, seconds=45.0, memory=5 * 2**30)
    assert sorted(found) == ["max-memory 4GiB", "max-seconds 30", "max-trainable 1%", "require copy_rate<=0.05", "require loss_gap<=0"]
    assert parsed.shares(found) == pytest.approx([0.25, 0.5, 2.0, 1.0, 0.2])
    assert parsed.shares({"of another launch": 7.0}) == [7.0]


@pytest.mark.parametrize("given, words", [
    ({"max_trainable": "much"}, "--max-trainable much: .* write 500000 or 1%"), ({"max_trainable": "101%"}, "--max-trainable 101%"),
    ({"max_trainable": "0"}, "--max-trainable 0"), ({"max_memory": "24"}, "--max-memory 24: .*24GiB"),
    ({"max_memory": "24 apples"}, "--max-memory 24 apples: .*24GiB"), ({"max_memory": "-1GiB"}, "--max-memory -1GiB"),
    ({"require": "copy_rate"}, "--require 'copy_rate': .*'copy_rate_high<=0.05'"), ({"require": "copy_rat<=1"}, "'copy_rat' is unknown: take copy_rate"),
    ({"max_memory": "1e300TB"}, "--max-memory 1e300TB: .*finite"), ({"require": "fd<=1e999"}, "--require 'fd<=1e999': the number must be finite"),
    ({"require": "fd>=-1e999"}, "the number must be finite"), ({"max_trainable": "1e999"}, "--max-trainable 1e999"), ({"require": "fd<=many"}, "--require 'fd<=many'"), ({"max_seconds": 0.0}, "--max-seconds 0: it must be above 0")])
def test_wrong_bounds_are_one_line(given: dict, words: str) -> None:
    with pytest.raises(BadSetting, match=words):
        Settings(**given).check()
