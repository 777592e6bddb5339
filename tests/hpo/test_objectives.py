"""Objectives: what may be asked for, the hypervolume and the joint reward."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hpo import objectives
from hpo.errors import BadSetting
from hpo.objectives import Objective, hypervolume, joint_reward, parse
from metrics.scores import SCORES


def test_the_default_pair_is_minimised() -> None:
    chosen = parse("fd,copy_excess")
    assert chosen.names == ("fd", "copy_excess") and chosen.directions == ["minimize", "minimize"]
    assert (chosen.quality, chosen.memorization, chosen.is_joint_reward) == ("fd", "copy_excess", False)


def test_any_scores_in_any_order_may_be_chosen_and_the_first_of_each_kind_makes_the_reward() -> None:
    chosen = parse(" amd_train , kid, fd,loss_gap ")
    assert chosen.names == ("amd_train", "kid", "fd", "loss_gap") and chosen.directions == ["maximize", "minimize", "minimize", "minimize"]
    assert (chosen.quality, chosen.memorization) == ("kid", "amd_train")
    assert parse("kid,fd").memorization == "copy_excess" and parse("loss_gap,copy_rate").quality == "fd"


def test_joint_reward_stands_alone_and_is_maximised() -> None:
    chosen = parse("joint_reward")
    assert chosen.is_joint_reward and chosen.directions == ["maximize"] and (chosen.quality, chosen.memorization) == ("fd", "copy_excess")


@pytest.mark.parametrize(("text", "words"), [("fdd,copy_excess", "'fdd' is unknown: take fd"), ("fd", "two or more"), ("", "it is empty"), ("fd,,copy_excess", "an item between its commas is empty"),
                                             ("fd,fd", "named twice"), ("fd,joint_reward", "joint_reward alone"), ("fd,copy_exces", "take copy_excess")])
def test_what_may_not_be_asked_for_is_refused_in_one_line(text: str, words: str) -> None:
    with pytest.raises(BadSetting, match=words) as refused:
        parse(text)
    assert "\n" not in str(refused.value) and "--objectives" in str(refused.value)


def test_every_score_has_an_objective_whose_orientation_makes_smaller_better() -> None:
    for name, score in SCORES.items():
        found = objectives.objective(name)
        assert (found.name, found.direction) == (name, score.direction)
        better, worse = (1.0, 2.0) if score.direction == "minimize" else (2.0, 1.0)
        assert found.oriented(better) < found.oriented(worse)


def test_hypervolume_of_two_objectives_by_hand() -> None:
    # Steps (1, 3), (2, 2), (3, 1) under (4, 4): 3·1 + 2·1 + 1·1 squares.
    assert hypervolume([(1, 3), (2, 2), (3, 1)], (4, 4)) == pytest.approx(6)
    assert hypervolume([(1, 3), (2, 2), (3, 1), (3, 3), (2, 2)], (4, 4)) == pytest.approx(6), "dominated and equal points add nothing"
    assert hypervolume([(-1, -2)], (1, 1)) == pytest.approx(6)


def test_hypervolume_of_three_objectives_by_hand() -> None:
    # Two boxes 1 × 2 × 2 and 2 × 2 × 1 that share 1 × 2 × 1.
    assert hypervolume([(2, 1, 1), (1, 1, 2)], (3, 3, 3)) == pytest.approx(4 + 4 - 2)
    assert hypervolume([(0, 0, 0)], (1, 2, 3)) == pytest.approx(6)


def test_points_beyond_the_reference_have_no_volume() -> None:
    assert hypervolume([], (1, 1)) == 0 and hypervolume([(1, 0)], (1, 1)) == 0 and hypervolume([(2, -5)], (1, 1)) == 0


@pytest.mark.parametrize("dimension", [2, 3, 4])
def test_hypervolume_agrees_with_counting_random_points(dimension: int) -> None:
    rng = np.random.default_rng(dimension)
    points, thrown = rng.random((12, dimension)), rng.random((40_000, dimension))
    share = (thrown[:, None, :] >= points[None]).all(2).any(1).mean()
    error = (share * (1 - share) / len(thrown)) ** 0.5
    assert hypervolume(points.tolist(), [1.0] * dimension) == pytest.approx(share, abs=5 * error)


def test_hypervolume_scales_with_its_axes_and_does_not_care_for_their_order() -> None:
    points = np.random.default_rng(1).random((8, 3))
    whole = hypervolume(points.tolist(), [1, 1, 1])
    assert hypervolume((points * [2, 3, 5]).tolist(), [2, 3, 5]) == pytest.approx(30 * whole)
    for order in itertools.permutations(range(3)):
        assert hypervolume(points[:, order].tolist(), [1, 1, 1]) == pytest.approx(whole)


def test_joint_reward_is_worth_half_at_either_end() -> None:
    chosen = parse("fd,copy_excess")
    references = {"q_base": 5.0, "q_real": 1.0, "m_base": 0.0, "m_yard": 0.4}
    assert joint_reward(chosen, 0.5, q=5.0, m=0.0, **references) == 0, "the untouched base"
    assert joint_reward(chosen, 0.5, q=1.0, m=0.0, **references) == 0.5, "real pictures, nothing copied"
    assert joint_reward(chosen, 0.5, q=5.0, m=0.4, **references) == -0.5, "no better than the base, and copies like the yardstick"
    assert joint_reward(chosen, 0.25, q=3.0, m=0.2, **references) == pytest.approx(0.25 * 0.5 - 0.75 * 0.5)


def test_joint_reward_is_none_without_room() -> None:
    chosen = parse("fd,copy_excess")
    assert joint_reward(chosen, 0.5, 1, 1, q_base=5, q_real=1, m_base=0.1, m_yard=0.1) is None
    assert joint_reward(chosen, 0.5, 1, 1, q_base=1, q_real=1, m_base=0, m_yard=1) is None


@pytest.mark.parametrize("text", ["fd,copy_excess", "kid,amd_train", "fd,loss_gap"])
def test_joint_reward_is_what_the_database_computes(text: str, query) -> None:
    chosen = parse(text)
    signs = [1 if SCORES[name].direction == "minimize" else -1 for name in (chosen.quality, chosen.memorization)]
    sql = "SELECT peft_pareto.joint_reward(:q, :m, :weight, :q_base, :q_real, :m_base, :m_yard, :q_sign, :m_sign)"
    rng = np.random.default_rng(0)
    defined = 0
    for _ in range(40):
        given = dict(zip(("q", "m", "q_base", "q_real", "m_base", "m_yard"), rng.normal(size=6).tolist()), weight=float(rng.random()))
        ours = joint_reward(chosen, **given)
        theirs = query(sql, **given, q_sign=signs[0], m_sign=signs[1])[0][0]
        assert (ours is None) == (theirs is None)
        if ours is not None:
            defined += 1
            assert theirs == pytest.approx(ours)
    assert 0 < defined < 40


def test_an_objective_is_a_value() -> None:
    assert Objective("fd", "minimize", "") == Objective("fd", "minimize", "") and hash(Objective("fd", "minimize", ""))
