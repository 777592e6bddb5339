"""When a trial is stopped: hand-worked cases, noise, predictions of the last rung, and what must not matter."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hpo.dominance import crowding, ranks
from hpo.pruning import FEWEST_PAIRS, PEERS, REPLICATES, Decision, Pruner, Regression

FIRST, MIDDLE, LAST = 22, 67, 200
SHARED = np.random.default_rng(1).normal(size=(REPLICATES, 2))  # the same draws of patients in every trial


def taught(first: dict[int, tuple[float, ...]], last: int = LAST, **settings) -> Pruner:
    pruner = Pruner(3, **settings)
    for number, values in first.items():
        pruner.learn(number, last, FIRST, np.array(values))
    return pruner


def chain(n: int) -> dict[int, tuple[float, float]]:
    """Trial i is dominated by all before it."""
    return {i: (float(i), float(i)) for i in range(n)}


def test_of_nine_in_a_chain_the_best_three_go_on():
    pruner = taught(chain(9))
    assert [pruner.decide(i, FIRST).stop for i in range(9)] == [False] * 3 + [True] * 6
    assert pruner.decide(8, FIRST) == Decision(stop=True, share=1.0, peers=8, predicted=False)


def test_inside_the_front_that_is_cut_the_lonely_go_on():
    """Seven on a front, two behind it: three go on, both ends and (4, 3), whose neighbours are 4 and 4 away."""
    pruner = taught(dict(enumerate([(0, 9), (1, 8), (2, 7), (4, 3), (6, 2), (7, 1), (9, 0), (9, 9), (10, 10)])))
    assert [i for i in range(9) if not pruner.decide(i, FIRST).stop] == [0, 3, 6]


@pytest.mark.parametrize("n, best", [(1, 1), (2, 1), (3, 1), (4, 2), (6, 2), (7, 3)])
def test_the_best_are_a_third_rounded_up(n, best):
    pruner = taught(chain(n))
    assert [pruner.decide(i, FIRST).stop for i in range(n)] == [i >= best for i in range(n)]


def test_nothing_is_stopped_below_the_minimum():
    assert not any(taught(chain(7), minimum=8).decide(i, FIRST).stop for i in range(7))
    assert taught(chain(8), minimum=8).decide(7, FIRST).stop


def test_at_its_own_last_rung_there_is_nothing_to_stop():
    pruner = taught(chain(9))
    pruner.learn(9, FIRST, FIRST, np.array([99.0, 99.0]))
    assert pruner.decide(9, FIRST) == Decision(False, 0.0, 9, False)
    assert pruner.decide(8, FIRST).peers == 9  # it is a peer all the same


def test_only_this_rung_counts_its_peers():
    pruner = taught(chain(9))
    pruner.learn(0, LAST, MIDDLE, np.array([0.0, 0.0]))
    pruner.learn(8, LAST, MIDDLE, np.array([8.0, 8.0]))
    assert pruner.decide(8, MIDDLE).peers == 1


def noisy(deviation: float) -> Pruner:
    pruner = taught(chain(12))
    pruner.learn(12, LAST, FIRST, np.array([20.0, 20.0]), 20 + deviation * np.random.default_rng(2).normal(size=(REPLICATES, 2)))
    return pruner


def test_a_trial_whose_scores_are_uncertain_goes_on_though_they_are_bad():
    certain, uncertain = noisy(1.0).decide(12, FIRST), noisy(40.0).decide(12, FIRST)
    assert certain.stop and certain.share == 1
    assert not uncertain.stop and 0.2 < uncertain.share < 0.8


def test_confidence_is_the_share_that_must_be_exceeded():
    share = noisy(40.0).decide(12, FIRST).share
    for confidence, stop in ((share - 0.01, True), (share, False), (share + 0.01, False)):
        pruner = noisy(40.0)
        pruner.confidence = confidence
        assert pruner.decide(12, FIRST).stop is stop


def test_noise_that_all_trials_share_does_not_matter():
    """The same draws of patients make all scores better or worse together."""
    pruner = Pruner(3)
    for i, values in chain(9).items():
        pruner.learn(i, LAST, FIRST, np.array(values), np.array(values) + 50 * SHARED)
    assert [pruner.decide(i, FIRST).share for i in range(9)] == [0] * 3 + [1] * 6


def slow_but_good(pairs: int, residual: float = 0.01) -> Pruner:
    """Quality at the first rung misleads: it becomes the better the worse it is. Trials 0, 1, … have both rungs, 100 to 119 the first only."""
    rng = np.random.default_rng(3)
    pruner = Pruner(3)
    for number in [*range(pairs), *range(100, 120)]:
        slowness, private = rng.uniform(0, 1, 2)
        pruner.learn(number, LAST, FIRST, np.array([slowness, private]))
        if number < 100:
            pruner.learn(number, LAST, LAST, np.array([1 - slowness, private]) + residual * rng.normal(size=2))
    return pruner


def test_a_slow_but_good_learner_goes_on_and_a_fast_but_bad_one_is_stopped():
    pruner = slow_but_good(20)
    pruner.learn(200, LAST, FIRST, np.array([1.0, 0.5]))  # the worst at this rung but for privacy
    pruner.learn(201, LAST, FIRST, np.array([0.0, 0.5]))
    slow, fast = pruner.decide(200, FIRST), pruner.decide(201, FIRST)
    assert slow.predicted and not slow.stop and slow.share < 0.1
    assert fast.predicted and fast.stop


def test_with_fewer_than_eight_pairs_this_rung_decides():
    for pairs in (FEWEST_PAIRS - 1, FEWEST_PAIRS):
        pruner = slow_but_good(pairs)
        pruner.learn(200, LAST, FIRST, np.array([1.0, 0.5]))
        decision = pruner.decide(200, FIRST)
        assert decision.predicted is (pairs == FEWEST_PAIRS)
        assert decision.stop is not decision.predicted


def test_a_rung_that_says_nothing_about_the_last_one_stops_nobody():
    """Residuals as wide as the scores themselves: out of the best third in about two thirds of the replicates."""
    rng = np.random.default_rng(4)
    pruner = Pruner(3)
    for number in range(40):
        pruner.learn(number, LAST, FIRST, rng.normal(size=2))
        pruner.learn(number, LAST, LAST, rng.normal(size=2))
    for number in range(40, 50):
        pruner.learn(number, LAST, FIRST, rng.normal(size=2))
        decision = pruner.decide(number, FIRST)
        assert decision.predicted and not decision.stop and 0.3 < decision.share < 0.9


def test_a_measured_last_rung_outweighs_what_this_rung_says():
    """All are alike at this rung; those that got there are worse by far than what is predicted of the trial."""
    rng = np.random.default_rng(5)
    pruner = Pruner(3)
    for number in range(30):
        slope = rng.uniform(0, 1)
        pruner.learn(number, LAST, FIRST, np.array([slope, slope]))
        pruner.learn(number, LAST, LAST, np.array([slope, slope]) + 0.01 * rng.normal(size=2))
    pruner.learn(30, LAST, FIRST, np.array([0.5, 0.5]))
    assert pruner.decide(30, FIRST).stop
    for number in range(25):  # measured again, and much worse: now the regression says that it is worse too, but the trial is in the middle
        pruner.learn(number, LAST, LAST, np.array([9.0, 9.0]))
    assert pruner.decide(30, FIRST).share < 0.9


def crowd(order=range(30), scale=(1.0, 1.0), shift=(0.0, 0.0), pairs: int = 12) -> Pruner:
    drawn = np.random.default_rng(6).normal(size=(30, 4, 2))
    noise = np.random.default_rng(7).normal(size=(30, REPLICATES, 2))
    pruner = Pruner(3)
    for i in order:
        for steps, values in ((FIRST, np.exp(drawn[i, 0])), (LAST, np.exp(drawn[i, 0] + 0.3 * drawn[i, 1]))):
            if steps == FIRST or i < pairs:
                pruner.learn(i, LAST, steps, values * scale + shift, (values + 0.1 * noise[i]) * scale + shift)
    return pruner


@pytest.mark.parametrize("pairs", [0, 12])
def test_neither_order_nor_scale_matters(pairs):
    base = crowd(pairs=pairs)
    for other in (crowd(order=reversed(range(30)), pairs=pairs), crowd(scale=(128.0, 1 / 64), pairs=pairs), crowd(shift=(5.0, -3.0), pairs=pairs)):
        for number in range(12, 30):
            assert other.decide(number, FIRST).share == pytest.approx(base.decide(number, FIRST).share, abs=1 / REPLICATES)
    assert any(base.decide(i, FIRST).stop for i in range(12, 30)) and not all(base.decide(i, FIRST).stop for i in range(12, 30))


def test_a_rung_learnt_again_replaces_the_first():
    pruner = taught(chain(9))
    assert pruner.decide(8, FIRST).stop
    pruner.learn(8, LAST, FIRST, np.array([-1.0, -1.0]))
    assert pruner.decide(8, FIRST) == Decision(False, 0.0, 8, False)


def test_one_objective_is_plain_successive_halving():
    pruner = taught({i: (float(i),) for i in range(9)})
    assert [pruner.decide(i, FIRST).stop for i in range(9)] == [False] * 3 + [True] * 6


def test_replicates_are_learnt_when_a_decision_needs_them():
    """Of peers that have the last rung they are those there, of the others those at this one; of rungs that are not compared none."""
    given = many(30)
    pruner = Pruner(3)
    for number, trial in given.trials.items():
        for steps, values in trial.values.items():
            pruner.learn_values(number, LAST, steps, values)
    missing = pruner.missing(29, FIRST)
    assert missing == [(number, FIRST if number % 3 else LAST) for number in range(30)]
    with pytest.raises(KeyError):
        pruner.decide(29, FIRST)
    for number, steps in missing:
        pruner.learn_replicates(number, steps, given.trials[number].replicates[steps])
    assert pruner.missing(29, FIRST) == [] and pruner.decide(29, FIRST) == given.decide(29, FIRST)
    pruner.learn_values(4, LAST, FIRST, np.zeros(2))
    assert pruner.missing(29, FIRST) == [(4, FIRST)], "what was measured again has other replicates"
    pruner.learn_replicates(4, FIRST, None)
    assert pruner.missing(29, FIRST) == [], "there are none"


def test_nothing_is_missing_where_nothing_is_compared():
    pruner = Pruner(3)
    for number in range(9):
        pruner.learn_values(number, LAST, FIRST, np.zeros(2))
    assert pruner.missing(8, FIRST)
    pruner.learn_values(8, LAST, LAST, np.zeros(2))
    assert pruner.missing(8, LAST) == []
    pruner.minimum = 10
    assert pruner.missing(8, FIRST) == []


def test_objectives_that_do_not_differ_can_be_predicted():
    pruner = Pruner(3)
    for number in range(10):
        pruner.learn(number, LAST, FIRST, np.array([float(number), 0.0]))
        pruner.learn(number, LAST, LAST, np.array([float(number), 0.0]))
    pruner.learn(10, LAST, FIRST, np.array([9.0, 0.0]))
    assert pruner.decide(10, FIRST).stop


@pytest.mark.parametrize("call, words", [
    (lambda: Pruner(1), "reduction=1"), (lambda: Pruner(3, confidence=1.0), "confidence=1.0"),
    (lambda: Pruner(3).learn(4, LAST, FIRST, np.array([np.nan, 0])), "trial 4 at 22 steps: values"),
    (lambda: taught(chain(2)).learn(4, LAST, FIRST, np.array([1.0])), "not 2 finite numbers"),
    (lambda: Pruner(3).learn(4, LAST, FIRST, np.zeros(2), np.zeros((9, 2))), r"shape \(9, 2\)"),
    (lambda: Pruner(3).learn(4, FIRST, LAST, np.zeros(2)), "beyond its last at 22")])
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_rung_that_was_not_learnt_is_no_rung_to_decide_at():
    with pytest.raises(KeyError):
        taught(chain(9)).decide(8, MIDDLE)


def share_by_definition(pruner: Pruner, number: int) -> float:
    """Of the replicates, at the first rung, where all trials are peers: nothing kept, nothing left out, one replicate after the other."""
    peers = list(pruner.trials.values())
    both = sorted((each for each in peers if LAST in each.values), key=lambda each: each.number)
    becoming = Regression(FIRST, LAST, both) if len(both) >= FEWEST_PAIRS else None
    best, own, outside = -(-len(peers) // pruner.reduction), [each.number for each in peers].index(number), 0
    compared = np.stack([each.replicates[FIRST] for each in peers], axis=1) if becoming is None else becoming.scores(peers)
    for points in compared:
        found = ranks(points)
        level = np.flatnonzero(found == found[own])
        ahead, merit = (found < found[own]).sum(), crowding(points[level])
        outside += ahead + len(level) > best and ahead + (merit > merit[level == own]).sum() >= best
    return outside / REPLICATES


def many(count: int, objectives: int = 2, pairs: int = 3) -> Pruner:
    """Every third trial has the last rung too."""
    rng = np.random.default_rng(8)
    pruner = Pruner(3)
    for number in range(count):
        for steps in (FIRST, LAST) if number % pairs == 0 else (FIRST,):
            values = rng.normal(size=objectives)
            pruner.learn(number, LAST, steps, values, values + 0.1 * rng.normal(size=(REPLICATES, objectives)))
    return pruner


@pytest.mark.parametrize("count, objectives, pairs", [(12, 2, 3), (60, 2, 3), (60, 2, 99), (60, 1, 3), (24, 3, 3), (240, 2, 3)])
def test_decisions_are_those_of_the_definition(count, objectives, pairs):
    pruner = many(count, objectives, pairs)
    chosen = range(1, count, max(1, count // 12))
    shares = [pruner.decide(number, FIRST).share for number in chosen]
    assert shares == [share_by_definition(pruner, number) for number in chosen]
    assert len(set(shares)) > 2


def test_only_trials_of_near_numbers_are_peers():
    """Others neither count nor are in the regression: a trial far away is as one that was never learnt."""
    pruner = taught({number: (float(number % 7), float(number % 5)) for number in range(9)})
    for number in range(9, 9 + PEERS):  # numbers do not count: between them many were refused
        pruner.learn(10 * number, LAST, FIRST, np.array([float(number % 7), float(number % 5)]))
    enough = pruner.decide(8, FIRST)
    assert enough.peers == 8 + PEERS
    for far in range(20 * PEERS, 20 * PEERS + 2):
        pruner.learn(far, LAST, FIRST, np.array([-9.0, -9.0]))
        pruner.learn(far, LAST, LAST, np.array([-9.0, -9.0]))
    assert pruner.decide(8, FIRST) == enough


def test_pairs_of_far_trials_predict_nothing():
    pruner = slow_but_good(FEWEST_PAIRS)
    between = PEERS - FEWEST_PAIRS - 20  # beside the pairs and the 20 others that it has
    for number in range(1000, 1000 + between + 2):
        pruner.learn(number, LAST, FIRST, np.array([1.0, 0.5]))
    assert [pruner.decide(1000 + between + more, FIRST).predicted for more in (0, 1)] == [True, False], "from trial 0 on, or from trial 1 on"


def test_however_many_trials_there_are_a_decision_takes_a_moment():
    pruner = many(1500)
    pruner.decide(998, FIRST)
    took = []
    for number in (995, 997, 998):
        started = time.process_time()
        assert pruner.decide(number, FIRST).peers == 2 * PEERS
        took.append(time.process_time() - started)
    assert min(took) < 0.3, "0.04 s on an idle core"
