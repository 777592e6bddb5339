"""What the tests of search spaces share: the miniature's U-Net, its bounds, random proposals and trials with given answers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import optuna
import pytest

from hpo.spaces import Bounds, Space
from hpo.spaces.sites import attention_sites
from trainers.candidate import Candidate
from trainers.miniature import architecture
from trainers.units import walk

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="session")
def unet():
    return architecture.unet()


@pytest.fixture(scope="session")
def units(unet):
    return walk(unet)


@pytest.fixture(scope="session")
def bounds(unet) -> Bounds:
    """Those of a study on the miniature with the default settings."""
    return Bounds((50, 100, 150, 200), sites=attention_sites(unet.config))


@pytest.fixture
def answered() -> Callable[[dict[str, Any]], optuna.Trial]:
    """A trial with these answers; a warning that one of them is out of range is an error."""
    study = optuna.create_study(directions=["minimize"] * 2, sampler=optuna.samplers.RandomSampler(seed=2))

    def make(answers: dict[str, Any]) -> optuna.Trial:
        study.enqueue_trial(answers)
        return study.ask()

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield make


@pytest.fixture
def proposed() -> Callable[..., list[Candidate]]:
    """Candidates that a space proposes at random."""
    def make(space: Space, bounds: Bounds, count: int = 100) -> list[Candidate]:
        study = optuna.create_study(directions=["minimize"] * 2, sampler=optuna.samplers.RandomSampler(seed=1))
        return [space.propose(study.ask(), bounds) for _ in range(count)]

    return make
