"""Conditional parameters as samplers see them."""

from __future__ import annotations

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from hpo.flat import STEPS, UNSAID, AsAsked, Flat, at, centre, place, union

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


def test_what_alternatives_have_is_one_parameter() -> None:
    view = Flat(RUNGS)
    few, many, other = CategoricalDistribution([2, 4]), CategoricalDistribution([1, 2, 4, 8]), CategoricalDistribution(["b", "c"])
    view.meet({"rate of full": RATE, "kinds of full": KIND})
    view.meet({"rate of lora": FloatDistribution(1e-3, 1e-1, log=True), "rank of lora": few, "kinds of lora": other})
    view.meet({"rank of loha": many})
    assert view.known == {STEPS: view.known[STEPS], "rate": FloatDistribution(0, 1), "rank": FloatDistribution(0, 1),
                          "kinds": CategoricalDistribution(["a", "b", "c"])}
    values, _ = view.shown({"rate of full": 1e-3, "rank of loha": 8}, {"rate of full": RATE, "rank of loha": many}, steps=67)
    assert values == {"rate": pytest.approx(0.5), "rank": 0.875, "kinds": "a", STEPS: 67}
    assert view.meant("rank of lora", values) == 4
    assert view.meant("rate of lora", values) == pytest.approx(1e-2)
    assert view.meant("kinds of full", values) == "a"
    assert view.meant("rate of bias", {}) is UNSAID


def test_what_one_trial_has_twice_stays_apart() -> None:
    view = Flat(RUNGS)
    view.meet({"share of one": RATE})
    view.meet({"share of other": RATE})
    assert set(view.known) == {STEPS, "share"}
    assert view.meet({"share of one": RATE, "share of other": RATE}), "what was shown before must be shown anew"
    assert set(view.known) == {STEPS, "share of one", "share of other"}
    assert view.meant("share of one", {"share of one": 2e-3}) == 2e-3


def test_words_and_numbers_stay_apart() -> None:
    view = Flat(RUNGS)
    view.meet({"rank of full": KIND})
    view.meet({"rank of lora": RANK})
    assert set(view.known) == {STEPS, "rank of full", "rank of lora"}


@pytest.mark.parametrize("distribution", [RATE, RANK, KIND, IntDistribution(1, 100, log=True), CategoricalDistribution([1, 2, 4])])
def test_a_place_gives_its_value_again(distribution) -> None:
    values = {at(distribution, share) for share in (0.0, 0.2, 0.5, 0.9, 1.0)}
    for value in values:
        again = at(distribution, place(distribution, value))
        assert again == (pytest.approx(value) if distribution is RATE else value)
