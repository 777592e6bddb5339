"""Samplers: seeded by the trial's number, so that a resumed study goes on as an unbroken one would."""

from __future__ import annotations

import warnings

import optuna
import pytest

from hpo.errors import BadSetting
from hpo.samplers import RANDOM_TRIALS, SAMPLERS, SeededByNumber, check

NUMBER = 14  # trials: the model proposes from the eleventh on


def objective(trial: optuna.Trial) -> tuple[float, float]:
    x, kind = trial.suggest_float("x", 0, 1), trial.suggest_categorical("kind", ["a", "b"])
    rank = trial.suggest_int("rank", 1, 8) if kind == "b" else 0
    return (x - 0.3) ** 2 + rank, (x - 0.7) ** 2 - rank


def proposals(name: str, seed: int, runs: tuple[int, ...]) -> list[dict]:
    """What is proposed when a study is run in pieces of so many trials, each by a sampler made anew."""
    storage = optuna.storages.InMemoryStorage()
    for count in runs:
        study = optuna.create_study(study_name="s", storage=storage, directions=["minimize"] * 2, sampler=SeededByNumber(name, seed), load_if_exists=True)
        study.optimize(objective, n_trials=count)
    return [trial.params for trial in study.trials]


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random"])
def test_a_resumed_study_proposes_what_an_unbroken_one_would(name: str) -> None:
    unbroken = proposals(name, 3, (NUMBER,))
    assert proposals(name, 3, (5, 6, NUMBER - 11)) == unbroken
    assert len({params["x"] for params in unbroken[:RANDOM_TRIALS]}) == RANDOM_TRIALS, "random proposals do not repeat"
    assert proposals(name, 4, (NUMBER,)) != unbroken


def test_the_gaussian_process_is_resumed_too() -> None:
    pytest.importorskip("scipy", reason="Optuna's Gaussian process needs scipy")
    assert proposals("gp", 3, (11,)) == proposals("gp", 3, (6, 5))


@pytest.mark.parametrize("name", SAMPLERS)
def test_optuna_gives_no_warning(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SeededByNumber(name, 0)


def test_an_unknown_sampler_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(BadSetting, match="--sampler 'nsga' is unknown: take nsga2"):
        check("nsga")
