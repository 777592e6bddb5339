"""Costs, curves, duplicates and workers of a simulated search, by hand on small tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
import pytest

from benchmarks.problems import PROBLEMS, Asked
from benchmarks.simulation import Attained, Curve, MoAsha, net, search
from hpo.objectives import hypervolume
from hpo.proposer import Proposer
from hpo.pruning import Decision, Pruner

BOTH = ["minimize", "minimize"]


@dataclass
class Table:
    """Points by name; values that do not depend on steps; a second a step and ten an evaluation."""

    values: dict[str, tuple[float, float]]
    steps: tuple[int, ...] = (9,)
    rungs: tuple[int, ...] = (1, 3, 9)
    reference: tuple[float, float] = (10.0, 10.0)
    evaluation_seconds: float = 10.0
    yardstick: dict[str, Any] | None = None
    baselines: tuple[dict[str, Any], ...] = ()
    seen: list[tuple[str, int]] = field(default_factory=list)

    def propose(self, trial: Any) -> Asked:
        name = trial.suggest_categorical("name", list(self.values))
        return Asked((("name", name),), trial.suggest_categorical("steps", list(self.steps)))

    def true(self, point: Asked, steps: int) -> np.ndarray:
        return np.array(self.values[dict(point.root)["name"]])

    def observe(self, point: Asked, steps: int, rng: np.random.Generator) -> tuple[np.ndarray, None]:
        self.seen.append((dict(point.root)["name"], steps))
        return self.true(point, steps), None

    def seconds(self, point: Asked, steps: int) -> float:
        return float(steps)


def random_search(table: Table, rule=None, **settings) -> Curve:
    return search(table, Proposer("random", 0, BOTH, table.propose, table.rungs), rule, 0, **({"cost": 1e6} | settings))


def ladder(n: int = 6) -> Table:
    return Table({str(i): (float(i), float(i)) for i in range(n)})


def test_without_a_rule_a_trial_pays_for_its_last_rung_alone_and_the_space_is_exhausted():
    table = ladder()
    curve = random_search(table)
    assert sorted(table.seen) == [(str(i), 9) for i in range(6)]
    assert curve.cost.tolist() == [19 * i for i in range(1, 7)] == curve.elapsed.tolist()
    assert curve.trials.tolist() == [1, 2, 3, 4, 5, 6] and curve.stopped == 0
    assert curve.hypervolume[-1] == 100


def test_with_a_rule_every_rung_is_paid_for_until_the_trial_is_stopped():
    """Of a ladder with reduction 3 the first goes on, and what is worse than two thirds is stopped at once: 1 + 10 seconds."""
    table = ladder()
    curve = random_search(table, Pruner(3))
    steps = np.diff(curve.cost, prepend=0).tolist()
    rungs = [rung for _, rung in table.seen]
    assert steps == [{1: 11, 3: 12, 9: 16}[rung] for rung in rungs]
    assert curve.stopped > 0 and rungs.count(9) == 6 - curve.stopped
    assert curve.trials[-1] == 6


def test_an_evaluated_rung_is_never_paid_for_again():
    """Three points with three numbers of steps each are nine rungs, whatever is proposed."""
    table = Table({str(i): (float(i), 9.0 - i) for i in range(3)}, steps=(1, 3, 9))
    random_search(table, Pruner(3, minimum=100))
    assert len(table.seen) == len(set(table.seen)) == 9


def test_a_stopped_candidate_is_not_proposed_again():
    table = ladder()
    curve = random_search(table, Pruner(3))
    assert curve.trials[-1] == 6 and len(table.seen) == len(set(table.seen))


def test_two_workers_pay_the_same_in_half_of_the_time():
    one, two = random_search(ladder()), random_search(ladder(), workers=2)
    assert two.cost.tolist() == one.cost.tolist()
    assert two.elapsed.tolist() == [19, 19, 38, 38, 57, 57]


def test_a_rung_ahead_of_a_running_trial_is_a_duplicate():
    """One point, two workers: the second finds nothing that is not ahead of the first."""
    table = Table({"a": (1.0, 1.0)}, steps=(9,))
    curve = random_search(table, Pruner(3), workers=2)
    assert table.seen == [("a", 1), ("a", 3), ("a", 9)] and curve.elapsed.tolist() == [11, 23, 39]


def test_the_budget_ends_the_search():
    assert random_search(ladder(), cost=40).cost.tolist() == [19, 38, 57]


class Hasty:
    """Stops all that it is asked about."""

    def learn(self, *_: Any) -> None: ...
    def decide(self, number: int, steps: int) -> Decision:
        return Decision(True, 1.0, 0, False)


def test_the_yardstick_comes_first_and_is_never_stopped():
    table = Table({"a": (1.0, 1.0), "b": (2.0, 2.0)}, yardstick={"name": "b", "steps": 9})
    random_search(table, Hasty())
    assert table.seen == [("b", 1), ("b", 3), ("b", 9), ("a", 1)]


def test_baselines_come_next_and_are_evaluated_at_all_rungs_which_others_are_not():
    table = Table({name: (2.0, 2.0) for name in "abcd"}, yardstick={"name": "b", "steps": 9}, baselines=({"name": "d", "steps": 9},))
    random_search(table, Hasty(), evaluated_rungs=2, baselines=True)
    assert table.seen[:6] == [(name, steps) for name in "bd" for steps in (1, 3, 9)]
    assert sorted(table.seen[6:]) == [("a", 3), ("c", 3)]
    table.seen.clear()
    random_search(table, Hasty(), evaluated_rungs=2)
    assert sorted(table.seen[3:]) == [("a", 3), ("c", 3), ("d", 3)]


def test_a_curve_is_read_between_its_points():
    curve = Curve(np.array([10.0, 30.0]), np.array([10.0, 30.0]), np.array([1, 2]), np.array([1.0, 3.0]), 0)
    assert curve.at(np.array([0, 9.9, 10, 29, 30, 99])).tolist() == [0, 0, 1, 1, 3, 3]
    assert curve.at_trials(np.array([0, 1, 2, 5])).tolist() == [0, 1, 3, 3]
    assert curve.area(40) == pytest.approx((10 * 0 + 20 * 1 + 10 * 3) / 40)
    assert curve.area(20) == pytest.approx((10 * 0 + 10 * 1) / 20)


def test_what_is_attained_is_the_hypervolume():
    points = np.random.default_rng(0).integers(0, 12, (200, 2)).astype(float)
    attained = Attained((10.0, 10.0))
    for i, point in enumerate(points):
        assert attained.add(point) == pytest.approx(hypervolume(points[:i + 1].tolist(), (10.0, 10.0)))


def test_the_same_seed_is_the_same_search_and_another_one_another():
    problem = PROBLEMS["zdt1"]
    ends = [search(problem, Proposer("random", seed, BOTH, problem.propose, problem.rungs), Pruner(3), seed, 300).hypervolume.tolist() for seed in (0, 0, 1)]
    assert ends[0] == ends[1] != ends[2]


def test_mo_asha_by_hand():
    """Seven at a rung, 7 / 3 is 2.33: places 0, 1 and 2 go on; on the front the net goes from (0, 9) to (9, 0) to (5, 4)."""
    rule = MoAsha(3)
    for i, values in enumerate([(0, 9), (1, 8), (5, 4), (9, 0), (2, 9), (9, 9), (8, 8)]):
        rule.learn(i, 9, 1, np.array(values, float))
    assert [i for i in range(7) if not rule.decide(i, 1).stop] == [0, 2, 3]


def test_the_net_takes_the_farthest_next():
    assert net(np.array([[0.0, 10], [1, 9], [6, 4], [10, 0]])) == [0, 3, 2, 1]


def test_mo_ashas_first_goes_on():
    rule = MoAsha(3)
    rule.learn(0, 9, 1, np.array([5.0, 5.0]))
    assert not rule.decide(0, 1).stop


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_model_searches_too(sampler):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    problem = PROBLEMS["subsets"]
    curve = search(problem, Proposer(sampler, 0, BOTH, problem.propose, problem.rungs), Pruner(3), 0, 500)
    assert curve.hypervolume[-1] > 0 and (np.diff(curve.hypervolume) >= 0).all()
