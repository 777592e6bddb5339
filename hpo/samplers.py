"""Optuna's samplers, set up for two objectives and conditional spaces, and seeded by the trial's number."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import optuna

from hpo.errors import BadSetting
from trainers.errors import nearest

RANDOM_TRIALS = 10  # before a model proposes


def tpe(seed: int) -> optuna.samplers.BaseSampler:
    # Multivariate reads the study once a trial, not once a parameter; grouped, so that ranks are modelled among LoRAs.
    return optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, multivariate=True, group=True, constant_liar=True, seed=seed)


def gp(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.GPSampler(n_startup_trials=RANDOM_TRIALS, seed=seed)


def nsga2(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.NSGAIISampler(population_size=RANDOM_TRIALS, seed=seed)


def random(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {"auto": tpe, "tpe": tpe, "gp": gp, "nsga2": nsga2, "random": random}


def check(name: str) -> None:
    if name not in SAMPLERS:
        raise BadSetting(f"--sampler {name!r} is unknown: take {nearest(name, SAMPLERS)}")
    if name == "gp" and find_spec("scipy") is None:
        raise BadSetting("--sampler gp: Optuna's Gaussian process needs scipy, which is not installed; pip install scipy, or take tpe")


def made(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler of that name, without Optuna's word on which of its parts may change some day."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[name](seed)


class SeededByNumber(optuna.samplers.BaseSampler):
    """A fresh sampler for each trial, seeded from (study seed, trial number).

    A sampler's random state is not in the store; without this a resumed study would propose its first trials again.
    """

    def __init__(self, name: str, seed: int):
        self.name, self.seed = name, seed
        self.number, self.inner = -1, made(name, seed)

    def of(self, trial: optuna.trial.FrozenTrial) -> optuna.samplers.BaseSampler:
        if trial.number != self.number:
            self.number = trial.number
            self.inner = made(self.name, int(np.random.SeedSequence([self.seed, trial.number]).generate_state(1)[0]))
        return self.inner

    def infer_relative_search_space(self, study, trial) -> dict[str, Any]:
        return self.of(trial).infer_relative_search_space(study, trial)

    def sample_relative(self, study, trial, search_space) -> dict[str, Any]:
        return self.of(trial).sample_relative(study, trial, search_space)

    def sample_independent(self, study, trial, param_name, param_distribution) -> Any:
        return self.of(trial).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study, trial) -> None:
        self.of(trial).before_trial(study, trial)

    def after_trial(self, study, trial, state, values) -> None:
        self.of(trial).after_trial(study, trial, state, values)
