"""What the Gaussian process is fitted to. What it proposes is tested with the other samplers."""

from __future__ import annotations

import optuna
from optuna.distributions import FloatDistribution

from hpo.gaussian import MOST_POINTS, thinned

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
