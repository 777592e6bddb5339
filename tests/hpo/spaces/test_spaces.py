"""The suite that every search space must pass: answers to candidate and back, on the miniature's U-Net."""

from __future__ import annotations

import warnings

import optuna
import pytest

from hpo.errors import BadSetting
from hpo.spaces import SPACES, Bounds, Space, named
from hpo.spaces.reference import reference_candidate
from trainers.candidate import Candidate
from trainers.methods import METHODS
from trainers.miniature import architecture
from trainers.units import walk

PROPOSALS = 200
BOUNDS = [Bounds((50, 100, 150, 200)), Bounds((1,)), Bounds((4, 5, 6, 7), 0.123456)]


@pytest.fixture(params=SPACES, ids=str)
def space(request) -> Space:
    return SPACES[request.param]


@pytest.fixture(scope="module")
def unet():
    return architecture.unet()


@pytest.fixture(scope="module")
def units(unet):
    return walk(unet)


def proposed(space: Space, bounds: Bounds, count: int = PROPOSALS) -> list[Candidate]:
    study = optuna.create_study(directions=["minimize"] * 2, sampler=optuna.samplers.RandomSampler(seed=1))
    return [space.propose(study.ask(), bounds) for _ in range(count)]


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_parameters_give_the_same_candidate_back(space: Space, bounds: Bounds) -> None:
    study = optuna.create_study(directions=["minimize"] * 2, sampler=optuna.samplers.RandomSampler(seed=2))
    for candidate in proposed(space, bounds):
        study.enqueue_trial(space.parameters(candidate, bounds))
        trial = study.ask()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Optuna's "fixed parameter is out of range"
            assert space.propose(trial, bounds) == candidate
        assert set(trial.params) == set(space.parameters(candidate, bounds)), "nothing was asked beyond them"


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_proposals_keep_to_the_bounds(space: Space, bounds: Bounds) -> None:
    for candidate in proposed(space, bounds):
        method = METHODS[candidate.method]
        low, high = (rate * bounds.rate_scale for rate in method.learning_rates)
        assert candidate.steps in bounds.steps and candidate.kinds in method.kinds
        assert low * 0.99 <= candidate.learning_rate <= high * 1.01, "three digits"
        assert (candidate.rank in method.ranks) if method.ranks else candidate.rank is None


def test_every_proposal_selects_something_of_the_miniatures_unet(space: Space, unet, units) -> None:
    seen = proposed(space, BOUNDS[0])
    assert {candidate.method for candidate in seen} == set(METHODS)
    for candidate in seen:
        assert 0 < METHODS[candidate.method].count(unet, units, candidate) <= units.total * 1.1


def test_candidates_survive_json(space: Space) -> None:
    for candidate in proposed(space, BOUNDS[0], 20):
        assert Candidate.from_json(candidate.to_json()) == candidate and candidate.words


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_every_baseline_is_a_point_of_the_space(space: Space, method: str, bounds: Bounds) -> None:
    baseline = reference_candidate(method, bounds.steps[-1], bounds.rate_scale)
    study = optuna.create_study(directions=["minimize"] * 2)
    study.enqueue_trial(space.parameters(baseline, bounds))
    assert space.propose(study.ask(), bounds) == baseline


def test_the_reference_space_is_finite() -> None:
    assert len(set(proposed(SPACES["reference"], BOUNDS[0]))) == len(METHODS) * 4


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("method", METHODS)
def test_rates_at_the_ends_of_the_range_can_be_proposed_again(method: str, end: int) -> None:
    bounds, space = Bounds((4,), 0.123456), SPACES["default"]
    rate = METHODS[method].learning_rates[end] * bounds.rate_scale
    answers = {**space.parameters(reference_candidate(method, 4, bounds.rate_scale), bounds), f"learning rate of {method}": rate}
    study = optuna.create_study(directions=["minimize"] * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.enqueue_trial(answers)
        candidate = space.propose(study.ask(), bounds)
    study.enqueue_trial(space.parameters(candidate, bounds))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert space.propose(study.ask(), bounds) == candidate


def test_a_rank_is_asked_only_where_there_is_an_adapter() -> None:
    for candidate in proposed(SPACES["default"], BOUNDS[0], 50):
        names = SPACES["default"].parameters(candidate, BOUNDS[0])
        assert any(name.startswith("rank") for name in names) == bool(METHODS[candidate.method].ranks)


def test_an_unknown_space_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(BadSetting, match="--space 'refrence' is unknown: take reference"):
        named("refrence")
