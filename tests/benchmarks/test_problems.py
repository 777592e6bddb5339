"""The problems are what they say: known fronts, biases and noise that shrink, rankings that cross."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest

from benchmarks.problems import PROBLEMS, RUNGS, TUNERS, Asked, hypervolume, subset_scores
from hpo.dominance import dominated
from hpo.objectives import hypervolume as by_slices

FIRST, _, LAST = RUNGS
ALL = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=list(PROBLEMS))
FUNCTIONS = [problem for problem in PROBLEMS.values() if problem.name != "subsets"]


def asked(problem, n: int = 100) -> list[Asked]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [problem.propose(study.ask()) for _ in range(n)]


def at(name: str, *x: float) -> list[float]:
    return PROBLEMS[name].true(Asked(tuple((f"x{i}", value) for i, value in enumerate(x)), LAST), LAST).tolist()


def test_functions_by_hand():
    """On the front g is 1; with x1 = … = 1 it is 10; the radius of DTLZ2 grows by 0.25 for each parameter at its end."""
    assert at("zdt1", 0.25, 0, 0, 0, 0, 0) == pytest.approx([0.25, 0.5])
    assert at("zdt1", 0.4, 1, 1, 1, 1, 1) == pytest.approx([0.4, 10 * (1 - 0.2)])
    assert at("zdt2", 0.5, 0, 0, 0, 0, 0) == pytest.approx([0.5, 0.75])
    assert at("zdt3", 0.25, 0, 0, 0, 0, 0) == pytest.approx([0.25, 0.5 - 0.25])
    assert at("dtlz2", 0.5, 0.5, 0.5, 0.5, 0.5, 0.5) == pytest.approx([math.sqrt(0.5)] * 2)
    assert at("dtlz2", 0, 1, 0, 0.5, 0.5, 0.5) == pytest.approx([1.5, 0])


def test_the_hypervolume_is_that_of_the_objectives():
    points = np.random.default_rng(3).integers(0, 12, (60, 2)).astype(float)
    assert hypervolume(points, (10.0, 9.0)) == by_slices(points.tolist(), (10.0, 9.0))
    assert hypervolume(points, (0.0, 0.0)) == 0


def test_known_hypervolumes():
    """Below the curve 1 − √f there is a third, below 1 − f² two thirds, in the quarter circle π/4; the reference points are (1.1, 6), (1.8, 1.8)."""
    assert PROBLEMS["zdt1"].best_hypervolume == pytest.approx(1.1 * 6 - 1 / 3, rel=1e-3)
    assert PROBLEMS["zdt2"].best_hypervolume == pytest.approx(1.1 * 6 - 2 / 3, rel=1e-3)
    assert PROBLEMS["dtlz2"].best_hypervolume == pytest.approx(1.8 ** 2 - math.pi / 4, rel=1e-3)


@ALL
def test_nothing_lies_beyond_the_known_front(problem):
    found = np.array([problem.true(point, steps) for point in asked(problem) for steps in problem.rungs if steps <= point.steps])
    share = hypervolume(found, problem.reference) / problem.best_hypervolume
    together = hypervolume(np.concatenate([found, problem.front()]), problem.reference) / problem.best_hypervolume
    assert 0.3 < share < 0.97, "a problem that 100 random trials solve, or find nothing on, tells nobody apart"
    assert together == pytest.approx(1, abs=2e-3)
    assert not dominated(problem.front()).any()


@ALL
def test_rankings_cross_and_do_so_less_at_later_rungs(problem):
    points = asked(problem)
    places = {steps: np.array([problem.true(point, steps) for point in points]).argsort(axis=0).argsort(axis=0) for steps in problem.rungs}
    first, second = (np.mean([np.corrcoef(places[steps][:, j], places[LAST][:, j])[0, 1] for j in (0, 1)]) for steps in problem.rungs[:2])
    assert 0.5 < first < second < 1


@pytest.mark.parametrize("problem", FUNCTIONS, ids=[problem.name for problem in FUNCTIONS])
def test_the_bias_is_never_in_favour_and_gone_at_the_end(problem):
    for point in asked(problem, 20):
        values = [problem.true(point, steps) for steps in problem.rungs]
        assert (values[0] >= values[1]).all() and (values[1] >= values[2]).all()
        assert values[2] == pytest.approx(problem.final(np.array([value for _, value in point.root])))


def test_memorization_comes_late():
    """At the first rung full fine-tuning looks as private as the smallest subset."""
    full, norm = (lambda steps, method=method: subset_scores(method, TUNERS[method].rate, *TUNERS[method].best, steps, len(TUNERS[method].sizes) - 1)[1]
                  for method in ("full", "norm"))
    assert full(FIRST) - norm(FIRST) < 0.04 < 0.3 < full(LAST) - norm(LAST)


def test_a_method_has_its_own_parameters():
    points = [dict(point.root) for point in asked(PROBLEMS["subsets"], 60)]
    assert {point["method"] for point in points} == set(TUNERS)
    for point in points:
        assert ("size" in point) == (TUNERS[point["method"]].size_name is not None)


@ALL
def test_noise_is_what_it_says_and_replicates_know_it(problem):
    point = asked(problem, 1)[0]
    rng = np.random.default_rng(1)
    for steps, factor in ((LAST, 1.0), (FIRST, math.sqrt(LAST / FIRST))):
        seen = [problem.observe(point, steps, rng) for _ in range(400)]
        values, spread = np.stack([each[0] for each in seen]), np.mean([each[1].std(axis=0) for each in seen], axis=0)
        assert values.mean(axis=0) == pytest.approx(problem.true(point, steps), abs=4 * factor * max(problem.noise) / 20)
        assert values.std(axis=0) == pytest.approx(np.array(problem.noise) * factor * math.sqrt(0.5), rel=0.15)
        assert spread == pytest.approx(np.array(problem.noise) * factor, rel=0.15)


def test_half_of_the_replicates_noise_is_common_to_all_trials():
    problem, rng = PROBLEMS["zdt1"], np.random.default_rng(2)
    one, other = (problem.observe(point, LAST, rng)[1][:, 0] for point in asked(problem, 2))
    assert np.corrcoef(one, other)[0, 1] == pytest.approx(0.5, abs=0.15)


def test_seconds():
    """As docs/effect.md has it: some 20 s of training, a third of that for pictures and scores."""
    problem = PROBLEMS["subsets"]
    point = Asked((("method", "full"), ("rate", 1e-3)), LAST)
    assert problem.seconds(point, 200) == pytest.approx(23) and problem.seconds(point, 100) == pytest.approx(11.5)
    assert problem.whole_seconds() == pytest.approx(27)
