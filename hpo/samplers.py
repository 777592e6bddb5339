"""Optuna's samplers, set up for two objectives and conditional spaces. How they are taught and asked is `hpo.proposer`'s."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import optuna
from optuna.samplers import BaseSampler

from hpo.errors import BadSetting
from hpo.gaussian import AdditiveGP, Candidates, ReachableGP
from trainers.errors import nearest

RANDOM_TRIALS = 10  # before a model proposes, as Optuna has it; trials, however many rungs they have
FIRST_TRIALS = 8  # the same of the default, whose first trials are short
POPULATION = 10  # of NSGA-II: with 50 to 200 trials, 5 to 20 generations
MUTATION = 0.2  # of each parameter; Optuna's 1 / their number changes mostly such as the trial has not, when the space is flattened
RUNGS, LAST, NOTHING = "rungs", "last", "nothing"


def tpe(seed: int, candidates: Candidates) -> BaseSampler:
    # Grouped, so that conditional parameters are modelled among the trials that have them. When it starts is for the proposer to say.
    return optuna.samplers.TPESampler(n_startup_trials=0, multivariate=True, group=True, constant_liar=True, seed=seed)


def nsga2(seed: int, candidates: Candidates) -> BaseSampler:
    return optuna.samplers.NSGAIISampler(population_size=POPULATION, mutation_prob=MUTATION, seed=seed)


def random(seed: int, candidates: Candidates) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


@dataclass(frozen=True)
class Sampler:
    """make: seed, what the space can give -> Optuna's sampler. learns: every evaluated rung (RUNGS), the last of each trial (LAST), or NOTHING.

    flat: whether it must see a conditional space as the union of its parameters. startup: trials that are proposed at random before a model is
    asked; short: whether they are to end where others are evaluated first. All others are to reach the last rung: one with fewer steps is evaluated at
    nothing that a whole one is not, and ending a trial early is for the stopping rule, which has seen how it goes.
    """

    make: Callable[[int, Candidates], BaseSampler]
    learns: str
    flat: bool = False
    startup: int = 0
    short: bool = False


SAMPLERS: dict[str, Sampler] = {
    "tpe": Sampler(tpe, RUNGS, startup=RANDOM_TRIALS),
    "gp": Sampler(ReachableGP, RUNGS, flat=True, startup=RANDOM_TRIALS),
    "nsga2": Sampler(nsga2, LAST, flat=True),
    "random": Sampler(random, NOTHING),
    # The best of benchmarks/search.py, docs/search.md: a model after a quarter of the price of RANDOM_TRIALS whole trials.
    "auto": Sampler(AdditiveGP, RUNGS, flat=True, startup=FIRST_TRIALS, short=True),
}


def check(name: str) -> None:
    if name not in SAMPLERS:
        raise BadSetting(f"--sampler {name!r} is unknown: take {nearest(name, SAMPLERS)}")
    missing = [package for package in ("scipy", "torch") if find_spec(package) is None]
    if SAMPLERS[name].make in (ReachableGP, AdditiveGP) and missing:
        raise BadSetting(f"--sampler {name}: Optuna's Gaussian process needs {' and '.join(missing)}, which is not installed; "
                         f"pip install {' '.join(missing)}, or take tpe")


def made(make: Callable[[int, Candidates], BaseSampler], seed: int, candidates: Candidates) -> BaseSampler:
    """The sampler, without Optuna's word on which of its parts may change some day."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return make(seed, candidates)
