"""Conditional parameters as samplers see them."""

from __future__ import annotations

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from hpo.flat import STEPS, AsAsked, Flat, centre, union

RUNGS = (22, 67, 200)
RATE, RANK, KIND = FloatDistribution(1e-4, 1e-2, log=True), IntDistribution(1, 9), CategoricalDistribution(["a", "b"])


@pytest.mark.parametrize(("distribution", "expected"), [
    (FloatDistribution(0, 1), 0.5), (RATE, pytest.approx(1e-3)), (FloatDistribution(0, 1, step=0.25), 0.5), (RANK, 5),
    (IntDistribution(1, 100, log=True), 7), (IntDistribution(0, 9, step=3), 6), (KIND, "a")])
def test_the_centre_of_a_distribution(distribution, expected) -> None:
    assert centre(distribution) == expected
    assert distribution._contains(distribution.to_internal_repr(centre(distribution)))


@pytest.mark.parametrize(("one", "other", "expected"), [
    (RANK, IntDistribution(4, 12), IntDistribution(1, 12)), (RANK, IntDistribution(2, 3), RANK), (RANK, FloatDistribution(0, 90), RANK),
    (IntDistribution(2, 8, step=2), IntDistribution(2, 16, step=2), IntDistribution(2, 16, step=2)),
    (IntDistribution(2, 8, step=2), IntDistribution(1, 9, step=2), IntDistribution(1, 9)),
    (RATE, FloatDistribution(1e-5, 1e-3, log=True), FloatDistribution(1e-5, 1e-2, log=True)), (KIND, CategoricalDistribution(["c"]), KIND)])
def test_the_union_holds_both_where_they_are_alike(one, other, expected) -> None:
    assert union(one, other) == expected


def test_flat_trials_have_all_parameters() -> None:
    view = Flat(RUNGS)
    assert view.meet({"kind": KIND})
    assert view.meet({"kind": KIND, "rank": RANK})
    assert not view.meet({"rank": RANK}), "nothing new"
    values, distributions = view.shown({"kind": "b"}, {"kind": KIND}, steps=67)
    assert values == {"kind": "b", "rank": 5, STEPS: 67}
    assert set(distributions) == set(values)


def test_steps_are_the_rungs_on_a_log_scale_whatever_the_space_asked() -> None:
    view = AsAsked(RUNGS)
    asked = {STEPS: CategoricalDistribution(RUNGS), "rank": RANK}
    view.meet(asked)
    values, distributions = view.shown({STEPS: 200, "rank": 3}, asked, steps=22)
    assert values == {STEPS: 22, "rank": 3}
    assert distributions[STEPS] == IntDistribution(22, 200, log=True)
    assert view.shown({"rank": 3}, {"rank": RANK}, steps=400)[0][STEPS] == 200, "a warm start's steps may lie outside"


@pytest.mark.parametrize("view", [AsAsked, Flat])
def test_values_of_another_kind_under_the_same_name_are_not_shown(view) -> None:
    seen = view(RUNGS)
    seen.meet({"rank": RANK})
    seen.meet({"rank": CategoricalDistribution(["x"])})
    values, _ = seen.shown({"rank": "x"}, {"rank": CategoricalDistribution(["x"])}, steps=22)
    assert values.get("rank") in (None, 5)
