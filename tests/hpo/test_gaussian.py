"""What the Gaussian process is fitted to, and the default's kernel. What it proposes is tested with the other samplers."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
import torch
from optuna._gp import gp
from optuna._gp.acqf import qLogEI
from optuna._gp.search_space import SearchSpace
from optuna.distributions import FloatDistribution

from hpo.gaussian import MOST_POINTS, additive_kernel, bounded, gain, nearly_normal, normalised, thinned
from hpo.history import FAILED

optuna.logging.set_verbosity(optuna.logging.WARNING)


def study_of(count: int) -> optuna.Study:
    """The first trial dominates all others, each of which is worse than the one before."""
    study = optuna.create_study(directions=["minimize"] * 2)
    for number in range(count):
        study.add_trial(optuna.trial.create_trial(params={"x": 0.5}, distributions={"x": FloatDistribution(0, 1)}, values=[number, number]))
    return study


def test_all_trials_as_long_as_they_are_few() -> None:
    study = study_of(MOST_POINTS)
    assert thinned(study, study.trials) == study.trials


def test_the_front_and_the_newest_when_they_are_many() -> None:
    study = study_of(MOST_POINTS + 50)
    kept = [trial.number for trial in thinned(study, study.trials)]
    assert kept == [0, *range(51, MOST_POINTS + 50)]


def test_trials_that_failed_stay_known() -> None:
    study = study_of(MOST_POINTS + 50)
    trials = study.trials
    trials[3].system_attrs[FAILED] = trials[7].system_attrs[FAILED] = True
    assert [trial.number for trial in thinned(study, trials)] == [0, 3, 7, *range(53, MOST_POINTS + 50)]


def test_a_diverged_trial_leaves_the_others_apart() -> None:
    scores = np.array([2.0, 3.0, 4.0, 8.0, 20.0, 35.0, 1e5])
    seen = nearly_normal(scores)
    assert (np.diff(seen) > 0).all(), "their order is what it was"
    plain = (scores - scores.mean()) / scores.std()
    assert np.ptp(seen[:-1]) / np.ptp(seen) > 1000 * np.ptp(plain[:-1]) / np.ptp(plain)


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0, 3.0, 3.0, 3.0], [1.0, 2.0, 1.0, 2.0, 1.0]])
def test_few_different_values_are_as_they_were(values: list[float]) -> None:
    assert nearly_normal(np.array(values)).tolist() == values


def test_values_most_of_which_are_equal() -> None:
    seen = nearly_normal(np.array([1.0, 2.0, 3.0, *[5.0] * 20]))
    assert np.isfinite(seen).all() and (np.diff(seen[:4]) > 0).all()


@pytest.mark.parametrize("far", [1e6, 1e30, 1e100, 1e150, 1e160, 1e300, 1.7e308])
@pytest.mark.parametrize("sides", [1, 2])
def test_what_is_far_leaves_the_rest_apart(far: float, sides: int) -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, far, *[-far] * (sides - 1)])
    seen = nearly_normal(values)
    assert np.isfinite(seen).all() and (np.diff(seen[np.argsort(values)]) > 0).all()
    assert np.ptp(seen[:7]) > 1e-3 * np.ptp(seen)


def test_values_that_are_equal_but_for_some_that_are_far() -> None:
    seen = nearly_normal(np.array([*[5.0] * 20, 1e200, 2e200, 3e200]))
    assert np.isfinite(seen).all() and (np.diff(seen[19:]) > 0).all()


@pytest.mark.parametrize("distances", [[-99.0, 0.0, 99.0], [-1e29, 0.0, 5.0], [-1.0, 0.0, 1e30]])
def test_what_a_power_can_tell_apart_is_left_as_it_is(distances: list[float]) -> None:
    assert bounded(np.array(distances)).tolist() == distances


def test_trials_themselves_keep_their_values() -> None:
    study = study_of(6)
    shown = normalised(study.trials)
    assert [trial.values for trial in study.trials] == [[number, number] for number in range(6)]
    assert [trial.number for trial in shown] == list(range(6)) and all(shown[i].values[0] < shown[i + 1].values[0] for i in range(5))


def regressor(points: torch.Tensor, values: torch.Tensor, categorical: list[bool]) -> gp.GPRegressor:
    """Fitted to nothing: all length scales and the variance are 1, hardly any noise."""
    one = torch.tensor(1.0, dtype=torch.float64)
    made = gp.GPRegressor(torch.tensor(categorical), points, values, torch.ones(points.shape[1], dtype=torch.float64), one, one * 1e-6)
    made._cache_matrix()
    return made


def test_what_parameters_do_by_themselves_is_known_in_the_corners_too() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(40, 6, dtype=torch.float64, generator=generator)
    values = ((points - 0.5) ** 2).sum(-1)
    corner = torch.tensor([[0.0, 1, 0, 1, 1, 0]], dtype=torch.float64)
    plain_mean, plain_variance = regressor(points, values - values.mean(), [False] * 6).posterior(corner)
    with additive_kernel():
        mean, variance = regressor(points, values - values.mean(), [False] * 6).posterior(corner)
    truth = 6 * 0.25 - float(values.mean())
    assert abs(float(mean) - truth) < abs(float(plain_mean) - truth)
    assert float(variance) < float(plain_variance)


def test_the_kernel_is_one_and_knows_choices() -> None:
    points = torch.tensor([[0.2, 0.0], [0.2, 1.0], [0.2, 2.0], [0.9, 0.0]], dtype=torch.float64)
    with additive_kernel():
        made = regressor(points, torch.zeros(4, dtype=torch.float64), [False, True])
    own = made.kernel()
    assert own.diagonal().tolist() == pytest.approx([1.0] * 4)
    assert own[0, 1] == own[0, 2], "choices are equal or not, and nothing in between"
    assert np.linalg.eigvalsh(own.numpy()).min() > -1e-12
    assert made.kernel(points, points).tolist() == own.tolist(), "of the same points, however they are asked for"
    assert made.kernel(points[0]).tolist() == own[0].tolist()


def test_optunas_own_process_is_as_it_was_afterwards() -> None:
    before = gp.GPRegressor
    with pytest.raises(RuntimeError), additive_kernel():
        assert gp.GPRegressor is not before
        raise RuntimeError
    assert gp.GPRegressor is before


def test_what_a_candidate_adds_to_those_that_run() -> None:
    """What those are worth by themselves is no merit of the candidate: divided by its seconds it would make the cheapest the best."""
    points = torch.tensor([[0.0], [0.4], [1.0]], dtype=torch.float64)
    model = regressor(points, torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64), [False])
    running = np.array([[0.55]])
    whole = qLogEI(model, SearchSpace({"x": FloatDistribution(0, 1)}), threshold=0.5, n_qmc_samples=512, qmc_seed=0, normalized_params_of_running_trials=running)
    own = gain()(whole)
    near, bad = np.array([[0.4]]), np.array([[1.0]])
    assert whole.eval_acqf_no_grad(near)[0] - whole.eval_acqf_no_grad(bad)[0] < 1.0
    assert own.eval_acqf_no_grad(near)[0] - own.eval_acqf_no_grad(bad)[0] > 5.0
    alone = float(np.exp(whole.eval_acqf_no_grad(bad)[0]))
    assert float(np.exp(own.eval_acqf_no_grad(near)[0])) == pytest.approx(float(np.exp(whole.eval_acqf_no_grad(near)[0])) - alone, rel=1e-3)
