"""The in-memory study that samplers see."""

from __future__ import annotations

import itertools
import math
import time

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from hpo.flat import AsAsked, Flat
from hpo.history import History, Point, Running

X, Y = FloatDistribution(0, 1), FloatDistribution(0, 2)
optuna.logging.set_verbosity(optuna.logging.WARNING)


def point(number: int, values=(1.0, 2.0), violations=(), **parameters: float) -> Point:
    chosen = parameters or {"x": 0.5}
    return Point(number, 22, False, chosen, {name: Y if name == "y" else X for name in chosen}, list(values), list(violations))


def complete(history: History) -> list[optuna.trial.FrozenTrial]:
    return history.study.get_trials(states=(TrialState.COMPLETE,))


@pytest.mark.parametrize("bad", [dict(values=(1.0,)), dict(values=(math.nan, 1.0)), dict(values=(1.0, math.inf)), dict(violations=(math.nan,))])
def test_what_is_no_result_is_refused(bad) -> None:
    history = History(["minimize"] * 2, AsAsked((22, 67)), constrained=True)
    with pytest.raises(ValueError, match="trial 3 at 22 steps: .* leave such a rung out"):
        history.teach(point(3, **bad))
    assert not complete(history)


def test_a_late_parameter_is_given_to_all_trials() -> None:
    history = History(["minimize"] * 2, Flat((22, 67)), constrained=False)
    history.teach(point(0))
    history.start(1, Running({"x": 0.1}, {"x": X}, {}, 67))
    history.teach(point(2, x=0.2, y=1.5))
    assert [trial.params for trial in complete(history)] == [{"x": 0.5, "y": 1.0, "steps": 22}, {"x": 0.2, "y": 1.5, "steps": 22}]
    running, = history.study.get_trials(states=(TrialState.RUNNING,))
    assert running.params == {"x": 0.1, "y": 1.0, "steps": 67}
    history.stop(1)
    assert not history.study.get_trials(states=(TrialState.RUNNING,))


def test_violations_are_optunas_constraints_equally_many_for_each() -> None:
    history = History(["minimize"] * 2, AsAsked((22, 67)), constrained=True)
    for each in (point(0), point(1, violations=(0.5, -1.0)), point(2)):
        history.teach(each)
    assert [list(trial.constraints.values()) for trial in complete(history)] == [[0, 0], [0.5, -1.0], [0, 0]]
    unconstrained = History(["minimize"] * 2, AsAsked((22, 67)), constrained=False)
    unconstrained.teach(point(1, violations=(0.5,)))
    assert complete(unconstrained)[0].constraints == {}


@pytest.mark.parametrize("places", itertools.permutations(range(3)))
def test_what_failed_has_the_worst_values_and_violations_of_all_points_in_whichever_order_they_came(places: tuple[int, ...]) -> None:
    history = History(["minimize", "maximize"], AsAsked((22, 67)), constrained=True)
    history.fail(9, Running({"x": 0.9}, {"x": X}, {}, 22))
    points = [point(0, (1.0, 5.0)), point(1, (3.0, 7.0), (-0.5, 0.25)), point(2, (2.0, 4.0))]
    for place in places:
        history.teach(points[place])
    history.drop(history.ask(optuna.samplers.RandomSampler(seed=0))[1])
    failed = complete(history)[0]
    assert failed.params == {"x": 0.9, "steps": 22} and failed.values == [3.0, 4.0]
    assert list(failed.constraints.values()) == [0.0, 0.25], "who was measured without constraints meets them"


def test_twice_as_many_points_take_about_twice_as_long_to_load() -> None:
    names = [f"p{i}" for i in range(30)]
    points = [Point(number, 22, True, dict.fromkeys(names, 0.5), dict.fromkeys(names, X), [1.0, 2.0]) for number in range(20_000)]
    for view in (AsAsked, Flat):
        history, took = History(["minimize"] * 2, view((22, 67)), constrained=False), []
        for part in (points[:5_000], points[5_000:10_000], points[10_000:15_000], points[15_000:]):
            began = time.process_time()
            for each in part:
                history.teach(each)
            took.append(time.process_time() - began)
        assert took[-1] < 4 * took[0]
