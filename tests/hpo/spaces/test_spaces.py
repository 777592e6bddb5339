"""The suite that every search space must pass: answers to candidate and back, on the miniature's U-Net."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpo.errors import BadSetting
from hpo.settings import DEFAULT_METHODS, Settings
from hpo.spaces import SPACES, Bounds, Space, check, methods, named
from hpo.spaces.reference import BASELINES, reference_candidate
from trainers.candidate import Candidate
from trainers.errors import BadSelection
from trainers.methods import METHODS
from trainers.mitigations import MITIGATIONS

MOST_DIMENSIONS = 30
ALL_OFF = ("down_blocks.0.attentions", "mid_block.attentions", "up_blocks.1.attentions")  # all that memcontrol-attention trains in the miniature
CHANGES = {"usual": {}, "one step": {"steps": (1,)}, "odd": {"steps": (4, 5, 6, 7), "rate_scale": 0.123456}, "every method": {"methods": tuple(METHODS)},
           "outputs": {"protects": "outputs"}}
OF_METHODS = ("every method", "outputs")  # change only what spaces with the methods of --methods offer
SELDOM = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


class Drawn:
    """A trial whose answers hypothesis chooses, so that ends of ranges are tried too."""

    def __init__(self, data: st.DataObject):
        self.data, self.params = data, {}

    def answer(self, name: str, strategy: st.SearchStrategy) -> Any:
        self.params[name] = self.data.draw(strategy, name)
        return self.params[name]

    def suggest_categorical(self, name: str, choices: list) -> Any:
        return self.answer(name, st.sampled_from(choices))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        return self.answer(name, st.sampled_from(range(low, high + 1, step)))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return self.answer(name, st.floats(low, high))


@pytest.fixture(params=SPACES, ids=str)
def space(request) -> Space:
    return SPACES[request.param]


@pytest.fixture(params=[(name, change) for name, space in SPACES.items() for change in CHANGES if space.takes_methods or change not in OF_METHODS],
                ids=" ".join)
def pair(request, bounds: Bounds) -> tuple[Space, Bounds]:
    """A space and bounds to try it within."""
    return SPACES[request.param[0]], replace(bounds, **CHANGES[request.param[1]])


@SELDOM
@given(data=st.data())
def test_parameters_give_the_same_candidate_back(pair: tuple[Space, Bounds], answered: Callable, data) -> None:
    (space, changed), drawn = pair, Drawn(data)
    candidate = space.propose(drawn, changed)
    parameters = space.fixed(candidate, changed).params
    assert 0 < len(parameters) <= len(drawn.params) <= MOST_DIMENSIONS
    trial = answered(parameters)
    assert space.propose(trial, changed) == candidate
    assert trial.params == parameters, "nothing was asked beyond them"
    assert all(isinstance(value, (str, int, float)) for value in parameters.values()), "a dashboard shows them"


def test_proposals_keep_to_the_bounds(pair: tuple[Space, Bounds], proposed: Callable) -> None:
    space, changed = pair
    for candidate in proposed(space, changed):
        assert candidate.steps in changed.steps
        assert not space.takes_methods or candidate.method in changed.methods
        assert {applied.mitigation for applied in candidate.mitigations} <= set(changed.mitigations)
        assert Candidate.from_json(candidate.to_json()) == candidate and candidate.words


def test_every_proposal_selects_something_of_the_miniatures_unet(space: Space, bounds: Bounds, proposed: Callable, unet, units) -> None:
    everything = replace(bounds, methods=tuple(METHODS))
    seen = proposed(space, everything, 300 if space.takes_methods else 30)
    assert not space.takes_methods or {candidate.method for candidate in seen} == set(METHODS)
    for candidate in seen:
        if space.name == "memcontrol-attention-strict" and candidate.frozen and candidate.frozen[0].regions == ALL_OFF:
            with pytest.raises(BadSelection, match="no parameters are left"):
                METHODS[candidate.method].count(unet, units, candidate)
        else:
            assert 0 < METHODS[candidate.method].count(unet, units, candidate) <= units.total * 1.1, candidate.words


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [name for name, space in SPACES.items() if space.takes_methods])
def test_every_method_as_published_is_a_point_of_the_space(name: str, method: str, bounds: Bounds, answered: Callable) -> None:
    for scale in (1.0, 0.123456):
        here = replace(bounds, methods=tuple(METHODS), rate_scale=scale)
        published = reference_candidate(method, here.steps[-1], scale)
        assert SPACES[name].propose(answered(SPACES[name].fixed(published, here).params), here) == published


def test_what_a_space_cannot_propose_has_no_parameters(space: Space, bounds: Bounds) -> None:
    published = reference_candidate("lora", 200)
    for stranger in (replace(published, learning_rate=123.0), replace(published, steps=77), replace(published, method="bias"),
                     replace(published, mitigations=(next(iter(other_mitigations(bounds)), None),)), replace(published, parts=())):
        assert space.fixed(stranger, bounds) is None
    assert space.fixed(published, replace(bounds, methods=("bias",))) is None


def other_mitigations(bounds: Bounds) -> list:
    from trainers.candidate import Applied

    return [Applied.of(name, **{number: choices[0] for number, choices in mitigation.strengths.items()})
            for name, mitigation in MITIGATIONS.items() if name not in bounds.mitigations]


def test_settings_name_methods_that_there_are() -> None:
    assert methods(Settings().methods) == DEFAULT_METHODS and set(BASELINES) <= set(DEFAULT_METHODS) <= set(METHODS)
    assert methods(" lora,bias , lora") == ("lora", "bias")


@pytest.mark.parametrize(("given", "says"), [("loar", "--methods 'loar' is unknown: take lora"), ("lora,biass", "'biass' is unknown: take bias"),
                                             ("", "'': it is empty, name one, or leave the flag out"),
                                             (" , ", "between its commas is empty"), ("lora,,bias", "leave the comma out"), ("lora,", "leave the comma out"), ("Lora", "take lora")])
def test_methods_that_there_are_not_are_refused(given: str, says: str) -> None:
    with pytest.raises(BadSetting) as refused:
        methods(given)
    assert says in str(refused.value)


def test_methods_are_refused_where_a_space_has_its_own() -> None:
    check("memcontrol-attention", Settings().methods, Settings().methods)
    check("default", "lora", Settings().methods)
    with pytest.raises(BadSetting, match="--methods lora: --space memcontrol-attention has methods of its own, leave the flag out or take --space default or ref"):
        check("memcontrol-attention", "lora", Settings().methods)


@pytest.mark.parametrize(("name", "says"), [("refrence", "--space 'refrence' is unknown: take reference"), ("memcontrol-svdif", "take memcontrol-svdiff"),
                                            ("space.py", "a function FILE.py:function"), ("", "is unknown")])
def test_an_unknown_space_is_refused_with_the_nearest_names(name: str, says: str) -> None:
    with pytest.raises(BadSetting) as refused:
        named(name)
    assert says in str(refused.value)


def test_what_protects_outputs_is_offered_only_to_those_who_ask_for_it(bounds: Bounds) -> None:
    of = {name: mitigation.protects for name, mitigation in MITIGATIONS.items()}
    assert set(bounds.mitigations) == {name for name, protects in of.items() if protects == "weights"}
    assert set(replace(bounds, protects="outputs").mitigations) == set(of)


def test_regions_are_those_of_the_unet(bounds: Bounds) -> None:
    assert bounds.regions == Bounds((1,)).regions == ("down", "mid", "up")
    assert replace(bounds, sites=("down_blocks.0.attentions.0", "up_blocks.1.attentions.0")).regions == ("down", "up")


def test_a_space_is_stateless(space: Space, bounds: Bounds) -> None:
    answers = space.fixed(space.propose(optuna.create_study().ask(), bounds), bounds).params
    first, second = (space.propose(optuna.trial.FixedTrial(answers), bounds) for _ in range(2))
    assert first == second and first.hash == second.hash
