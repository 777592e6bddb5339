"""What is proposed, by each sampler: the same from a history that was rebuilt, near the optimum, within constraints."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from hpo.errors import SearchError
from hpo.history import Point
from hpo.proposer import Proposal, Proposer
from hpo.samplers import FIRST_TRIALS, POPULATION, RANDOM_TRIALS
from hpo.spaces import BadProposal

RUNGS = (22, 67, 200)
TWO = ["minimize", "minimize"]
ALL, MODELS = ["tpe", "gp", "nsga2", "random", "auto"], ["tpe", "gp", "nsga2"]
optuna.logging.set_verbosity(optuna.logging.WARNING)


def conditional(trial: Any) -> dict[str, Any]:
    """A space whose optimum lies in a parameter that only some trials have; steps as our spaces ask for them."""
    kind = trial.suggest_categorical("kind", ["a", "b", "c"])
    place = trial.suggest_float("place", 0, 1) if kind == "b" else None
    trial.suggest_int("idle", 0, 3)
    return {"kind": kind, "place": place, "steps": trial.suggest_categorical("steps", list(RUNGS))}


def without_steps(trial: Any) -> float:
    return trial.suggest_float("place", 0, 1)


def measured(candidate: dict[str, Any], steps: int) -> list[float]:
    """Best with kind b, place near 0.8; one objective falls with steps, the other grows."""
    far = 2.0 if candidate["place"] is None else abs(candidate["place"] - 0.8)
    return [far + 22 / steps, far + steps / 400]


def even(trial: Any) -> dict[str, Any]:
    """Methods that are as good as each other."""
    return {"method": trial.suggest_categorical("method", ["quick", "slow"]), "x": trial.suggest_float("x", 0, 1), "y": trial.suggest_float("y", 0, 1)}


class Life:
    """A study with one worker, and all that a store would keep of it."""

    def __init__(self, sampler: str, space: Callable = conditional, measure: Callable = measured, directions: list[str] = TWO, seed: int = 3,
                 violations: Callable = lambda candidate: [], constrained: bool = False):
        self.new = lambda: Proposer(sampler, seed, directions, space, RUNGS, constrained)
        self.proposer, self.measure, self.violations = self.new(), measure, violations
        self.points: list[Point] = []
        self.proposals: list[Proposal] = []

    def run(self, trials: int) -> Life:
        for number in range(len(self.proposals), trials):
            proposal = self.proposer.propose(number)
            self.proposals.append(proposal)
            self.proposer.started(number, proposal.parameters, proposal.distributions, proposal.system_attrs)
            reached = [rung for rung in RUNGS if rung <= proposal.parameters.get("steps", RUNGS[-1])]
            reached = reached[:1] if number % 3 == 2 else reached  # every third is stopped
            for steps in reached:
                self.learn(Point(number, steps, False, proposal.parameters, proposal.distributions, self.measure(proposal.candidate, steps),
                                 self.violations(proposal.candidate), proposal.system_attrs))
            self.points[-1] = replace(self.points[-1], last=True)
            self.proposer.end(number)
        return self

    def learn(self, point: Point) -> None:
        self.points.append(point)
        self.proposer.learn(point)

    def rebuilt(self) -> Proposer:
        proposer = self.new()
        for point in self.points:
            proposer.learn(point)
        return proposer

    def candidates(self, first: int = 0) -> list[Any]:
        return [proposal.candidate for proposal in self.proposals[first:]]


@pytest.mark.parametrize(("sampler", "trials"), [("tpe", 25), ("gp", 25), ("nsga2", 3 * POPULATION + 4), ("random", 25), ("auto", 25)])
def test_a_rebuilt_history_gives_the_same_proposal(sampler: str, trials: int) -> None:
    life = Life(sampler).run(trials)
    rebuilt = life.rebuilt()
    proposed = [life.proposer.propose(number) for number in range(trials, trials + 5)]
    assert [rebuilt.propose(number) for number in range(trials, trials + 5)] == proposed
    assert any(each != proposed[0] for each in proposed), "each number has a proposal of its own, if there are several that are as good"
    assert Life(sampler, seed=4).run(RANDOM_TRIALS).candidates() != life.candidates()[:RANDOM_TRIALS], "each study too"


def test_a_resumed_study_goes_on_as_an_unbroken_one() -> None:
    unbroken = Life("nsga2").run(3 * POPULATION)
    resumed = Life("nsga2")
    for trials in (5, POPULATION + 3, 3 * POPULATION):
        resumed.run(trials)
        resumed.proposer = resumed.rebuilt()
    assert resumed.proposals == unbroken.proposals
    generations = {proposal.system_attrs["NSGAIISampler:generation"] for proposal in unbroken.proposals}
    assert generations == {0, 1, 2}


@pytest.mark.parametrize("sampler", MODELS)
def test_models_find_an_optimum_in_a_conditional_parameter(sampler: str) -> None:
    seeds = range(7, 11 if sampler == "nsga2" else 9)  # it learns more slowly, and costs nothing

    def near(name: str) -> int:
        return sum(candidate["place"] is not None and abs(candidate["place"] - 0.8) < 0.15
                   for seed in seeds for candidate in Life(name, seed=seed).run(36).candidates(RANDOM_TRIALS))

    assert near(sampler) > 1.5 * near("random") > 0


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_models_propose_what_is_good_at_the_last_rung(sampler: str) -> None:
    """The front has first rungs near 0.2 and last rungs near 0.8; a model that lets steps vary proposes both equally often."""
    def measure(place: float, steps: int) -> list[float]:
        far = abs(place - (0.2 if steps == 22 else 0.8))
        return {22: [far, 1 + far], 67: [2 + far, 2 + far], 200: [1 + far, far]}[steps]

    places = [place for seed in (3, 4) for place in Life(sampler, without_steps, measure, seed=seed).run(36).candidates(20)]
    assert sum(abs(place - 0.8) < 0.2 for place in places) >= 0.7 * len(places)


def test_what_is_learnt_of_one_alternative_is_known_of_the_others() -> None:
    """One process over "rate" of all kinds: it was good near 0.8 wherever it was tried, so it is proposed near 0.8 of the kind that was not."""
    def space(trial: Any) -> tuple[str, float]:
        kind = trial.suggest_categorical("kind", ["a", "b", "c"])
        return kind, trial.suggest_float(f"rate of {kind}", *{"a": (0.0, 1.0), "b": (0.0, 10.0), "c": (5.0, 6.0)}[kind])

    def place(kind: str, rate: float) -> float:
        return {"a": rate, "b": rate / 10, "c": rate - 5}[kind]

    proposer = Proposer("gp", 0, TWO, space, RUNGS)
    for number in range(RANDOM_TRIALS + 14):
        proposal = proposer.propose(number)
        kind, rate = proposal.candidate
        far = abs(place(kind, rate) - 0.8)
        proposer.learn(Point(number, RUNGS[-1], True, proposal.parameters, proposal.distributions, [far + (kind == "c"), far - (kind == "c") / 2]))
    near = [abs(place(*proposer.propose(number).candidate) - 0.8) < 0.1 for number in range(50, 56)]
    assert set(proposer.history.view.known) == {"kind", "rate", "steps"}
    assert sum(near) >= 4


@pytest.mark.parametrize("sampler", MODELS)
def test_a_single_objective_is_maximised(sampler: str) -> None:
    life = Life(sampler, without_steps, lambda place, steps: [-abs(place - 0.9)], ["maximize"]).run(40)
    assert sum(place > 0.75 for place in life.candidates(20)) >= 9


@pytest.mark.parametrize("sampler", MODELS)
def test_constraints_keep_proposals_out_of_where_they_are_violated(sampler: str) -> None:
    def inside(constrained: bool) -> int:
        life = Life(sampler, without_steps, lambda place, steps: [-place, abs(place - 1)], violations=lambda place: [place - 0.4], constrained=constrained)
        return sum(place <= 0.45 for place in life.run(36).candidates(20))

    assert inside(True) >= inside(False) + 5


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_random_proposals_are_counted_in_trials_not_in_rungs(sampler: str) -> None:
    life, plain = Life(sampler).run(RANDOM_TRIALS - 1), Life("random")
    drawn = plain.proposer.propose(99).parameters
    assert len(life.points) > 2 * RANDOM_TRIALS
    assert life.proposer.propose(99).parameters | {"steps": 0} == drawn | {"steps": 0}
    assert life.run(RANDOM_TRIALS).proposer.propose(99).parameters | {"steps": 0} != drawn | {"steps": 0}


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_running_trials_are_seen_until_they_end(sampler: str) -> None:
    life = Life(sampler, without_steps, lambda place, steps: [(place - 0.2) ** 2, (place - 0.4) ** 2]).run(14)
    def proposed() -> list[Proposal]:
        return [life.proposer.propose(number) for number in range(20, 26)]

    alone = proposed()
    for number, proposal in enumerate([*alone, *alone]):  # all of them are taken up by another worker
        life.proposer.started(14 + number % len(alone), proposal.parameters, proposal.distributions, proposal.system_attrs)
    assert proposed() != alone
    for number in range(len(alone)):
        life.proposer.end(14 + number)
    assert proposed() == alone


@pytest.mark.parametrize("sampler", ALL)
def test_nothing_is_left_of_a_proposal(sampler: str) -> None:
    life = Life(sampler).run(RANDOM_TRIALS + 2)
    before = life.proposer.propose(50)

    def fails(trial: Any) -> None:
        conditional(trial)
        raise SearchError("no")

    life.proposer.space = fails
    with pytest.raises(SearchError, match="no"):
        life.proposer.propose(51)
    life.proposer.space = conditional
    assert life.proposer.propose(50) == before
    assert not life.proposer.history.study.get_trials(states=(TrialState.RUNNING,))


@pytest.mark.parametrize("sampler", ALL)
def test_fixed_answers_are_given_and_the_rest_is_sampled(sampler: str) -> None:
    life = Life(sampler).run(RANDOM_TRIALS + 2)
    proposal = life.proposer.propose(40, {"kind": "b", "steps": 67, "of another space": 1})
    assert (proposal.candidate["kind"], proposal.candidate["steps"]) == ("b", 67)
    assert set(proposal.parameters) == set(proposal.distributions) == set(proposal.internal) == {"kind", "place", "idle", "steps"}
    assert (proposal.internal["kind"], proposal.internal["steps"]) == (1.0, 1.0), "Optuna's floats: a choice is its index"
    assert life.proposer.propose(40, {"place": 0.25, "kind": "b"}).parameters["place"] == 0.25
    with pytest.raises(BadProposal, match="kind='z' was enqueued, but the space offers .*: enqueue one of these, or leave it out"):
        life.proposer.propose(40, {"kind": "z"})


def test_nsga2_learns_what_it_did_not_propose() -> None:
    def rebuilt(points: list[Point]) -> Proposer:
        proposer = Proposer("nsga2", 3, TWO, without_steps, RUNGS)
        for point in points:
            proposer.learn(point)
        return proposer

    known = Proposer("nsga2", 3, TWO, without_steps, RUNGS).propose(0)
    others = [Point(-1 - place, 200, True, {"place": 0.7 + place / 1000}, known.distributions, [1.0, 1.0]) for place in range(2 * POPULATION)]
    proposer, points = rebuilt(others), list(others)
    for number in range(2 * POPULATION):
        proposal = proposer.propose(number)
        points.append(Point(number, 200, True, proposal.parameters, proposal.distributions, [2.0, 2.0], [], proposal.system_attrs))
        proposer.learn(points[-1])
        if number % 7 == 0:  # an enqueued one
            points.append(Point(100 + number, 200, True, {"place": 0.5}, known.distributions, [3.0, 3.0]))
            proposer.learn(points[-1])
        assert rebuilt(points).propose(number + 1) == proposer.propose(number + 1)
    bred = [point.parameters["place"] for point in points if 0 <= point.number < 100]
    assert sum(0.69 < place < 0.73 for place in bred) > len(bred) / 2


def test_a_trial_with_all_answers_fixed_belongs_to_a_generation() -> None:
    proposal = Proposer("nsga2", 3, TWO, conditional, RUNGS).propose(0, {"kind": "a", "idle": 0, "steps": 200})
    assert proposal.system_attrs == {"NSGAIISampler:generation": 0}


@pytest.mark.parametrize("sampler", [*MODELS, "random"])
def test_samplers_ask_for_whole_trials(sampler: str) -> None:
    assert {candidate["steps"] for candidate in Life(sampler).run(RANDOM_TRIALS + 3).candidates()} == {RUNGS[-1]}


@pytest.mark.parametrize(("evaluated_rungs", "steps"), [(1, 200), (2, 67), (3, 22), (9, 22), (None, 22)])
def test_the_defaults_first_trials_end_where_others_are_evaluated_first(evaluated_rungs: int | None, steps: int) -> None:
    assert Proposer("auto", 3, TWO, conditional, RUNGS, evaluated_rungs=evaluated_rungs).propose(0).candidate["steps"] == steps


def test_no_more_of_the_defaults_trials_are_short_than_it_needs_however_many_are_begun_at_once() -> None:
    proposer, steps = Proposer("auto", 3, TWO, conditional, RUNGS), []
    for number in range(FIRST_TRIALS + 5):
        proposal = proposer.propose(number)
        proposer.started(number, proposal.parameters, proposal.distributions, proposal.system_attrs)
        steps.append(proposal.candidate["steps"])
    assert steps == [RUNGS[0]] * FIRST_TRIALS + [RUNGS[-1]] * 5


def test_the_defaults_first_trials_are_short() -> None:
    candidates = Life("auto").run(FIRST_TRIALS + 3).candidates()
    assert [candidate["steps"] for candidate in candidates] == [RUNGS[0]] * FIRST_TRIALS + [RUNGS[-1]] * 3
    assert [candidate | {"steps": 0} for candidate in candidates[:FIRST_TRIALS]] == [
        candidate | {"steps": 0} for candidate in Life("gp").run(FIRST_TRIALS).candidates()], "and are random"


@pytest.mark.parametrize(("sampler", "taught"), [("tpe", [22, 67, 200]), ("gp", [22, 67, 200]), ("nsga2", [200]), ("random", []), ("auto", [22, 67, 200])])
def test_what_each_sampler_is_taught_of_a_trial(sampler: str, taught: list[int]) -> None:
    life = Life(sampler, without_steps, lambda place, steps: [place, place]).run(1)
    trials = life.proposer.history.study.get_trials(states=(TrialState.COMPLETE,))
    assert [trial.params["steps"] for trial in trials] == taught, "also where the space does not ask for steps"


def test_a_failed_trial_teaches_nsga2_what_it_reached() -> None:
    life = Life("nsga2", without_steps, lambda place, steps: [place, place])
    proposal = life.proposer.propose(0)
    for steps in (22, 67):
        life.learn(Point(0, steps, False, proposal.parameters, proposal.distributions, [1.0, 1.0], [], proposal.system_attrs))
    assert not life.proposer.history.study.get_trials(states=(TrialState.COMPLETE,))
    life.proposer.end(0)
    life.proposer.end(0)
    trial, = life.proposer.history.study.get_trials(states=(TrialState.COMPLETE,))
    assert trial.params["steps"] == 67


def steep(trial: Any) -> tuple[float, int, float]:
    """The faster it learns the better, until it diverges."""
    return trial.suggest_float("rate", 0, 1), trial.suggest_categorical("rank", [2, 4, 8, 16]), trial.suggest_float("other", 0, 1)


def gentle(candidate: tuple[float, int, float], steps: int) -> list[float]:
    rate, rank, other = candidate
    return [5 * (1 - rate) * (1.3 if steps < 200 else 1) + 0.3 * other, 0.5 * rate * rank / 16 * steps / 200 * (1 - other / 2)]


@pytest.mark.parametrize("sampler", ["auto", "gp"])
def test_where_trials_fail_no_more_are_proposed_than_by_chance(sampler: str) -> None:
    proposer, failed = Proposer(sampler, 1, TWO, steep, (67, 200)), 0
    for number in range(40):
        proposal = proposer.propose(number)
        if proposal.candidate[0] > 0.75:
            failed += 1
            proposer.fail(number, proposal.parameters, proposal.distributions)
            continue
        for steps in (67, 200):
            proposer.learn(Point(number, steps, steps == 200, proposal.parameters, proposal.distributions, gentle(proposal.candidate, steps)))
    assert failed <= 10, "a quarter of all"


@pytest.mark.parametrize("sampler", ["auto", "gp", "tpe"])
def test_failures_and_rungs_are_known_the_same_in_whichever_order_they_come(sampler: str) -> None:
    source, early, late = (Proposer(sampler, 1, TWO, steep, (67, 200)) for _ in range(3))
    known = [source.propose(number) for number in range(24)]
    failed = [number for number in range(24) if number % 3 == 1]
    for number in failed:
        early.fail(number, known[number].parameters, known[number].distributions)
    for number in set(range(24)) - set(failed):
        point = Point(number, 200, True, known[number].parameters, known[number].distributions, gentle(known[number].candidate, 200))
        for proposer in (source, early, late):
            proposer.learn(point)
        assert late.propose(99) == source.propose(99)
    for number in reversed(failed):
        late.started(number, known[number].parameters, known[number].distributions)
        late.fail(number, known[number].parameters, known[number].distributions)
    assert early.propose(50) == late.propose(50) != source.propose(50)
    complete = early.history.study.get_trials(states=(TrialState.COMPLETE,))
    worst = [max(trial.values[place] for trial in complete[len(failed):]) for place in (0, 1)]
    assert [trial.values for trial in complete[:len(failed)]] == [worst] * len(failed)


@pytest.mark.parametrize("sampler", ["auto", "gp", "tpe"])
def test_a_failed_trial_is_never_better_than_another(sampler: str) -> None:
    """Where all violate a bound, it does so too."""
    life = Life(sampler, without_steps, lambda place, steps: [place, -place], violations=lambda place: [1.0 + place], constrained=True).run(12)
    proposal = life.proposer.propose(12)
    life.proposer.fail(12, proposal.parameters, proposal.distributions)
    life.proposer.propose(13)
    failed, *others = life.proposer.history.study.get_trials(states=(TrialState.COMPLETE,))
    assert failed.constraints == {"0": max(trial.constraints["0"] for trial in others)}
    assert failed.values == [max(trial.values[place] for trial in others) for place in (0, 1)]


@pytest.mark.parametrize("sampler", ["auto", "gp"])
def test_what_another_study_evaluated_is_not_avoided(sampler: str) -> None:
    """Its worst ten of a hundred candidates were left: those who avoid the rest have nothing else to propose."""
    def small(trial: Any) -> tuple[int, int]:
        return trial.suggest_int("method", 0, 9), trial.suggest_int("rank", 0, 9)

    proposer = Proposer(sampler, 0, TWO, small, (67, 200))
    known = proposer.propose(0)
    for place in range(90):
        method, rank = divmod(place, 10)
        proposer.learn(Point(-1 - place, 200, True, {"method": method, "rank": rank}, known.distributions, [method + rank / 3, method + 3 - rank / 3]))
    assert all(proposer.propose(number).candidate[0] < 3 for number in range(3))
    assert {proposer.propose(number, at_random=True).candidate[0] for number in range(3, 7)} != {9}, "at random too"


@pytest.mark.parametrize("sampler", MODELS)
def test_a_parameter_that_no_random_proposal_had_is_taken_up_when_it_is_learnt(sampler: str) -> None:
    def space(trial: Any, rare: bool = False) -> None:
        trial.suggest_float("place", 0, 1)
        if rare:
            trial.suggest_int("rare", 1, 9)

    proposer = Proposer(sampler, 0, TWO, space, RUNGS)
    source = Proposer("random", 0, TWO, lambda trial: space(trial, rare=True), RUNGS)
    for number in range(RANDOM_TRIALS + 4):
        known = (proposer if number < 6 else source).propose(number)
        proposer.learn(Point(number, 200, True, known.parameters, known.distributions, [float(number), 1.0], [], {"NSGAIISampler:generation": 0}))
    proposer.space = lambda trial: space(trial, rare=True)
    assert set(proposer.propose(30).parameters) == {"place", "rare"}


def test_the_gaussian_process_tries_all_candidates_of_a_small_space_before_it_repeats_one() -> None:
    def small(trial: Any) -> tuple[str, int]:
        kind = trial.suggest_categorical("kind", ["a", "b"])
        return kind, trial.suggest_int("rank", 1, 8) if kind == "b" else 0

    life = Life("gp", small, lambda candidate, steps: [candidate[1] + 1.0, 9.0 - candidate[1]]).run(RANDOM_TRIALS)
    left = 9 - len(set(life.candidates()))
    assert 0 < left < 9
    assert len(set(life.run(RANDOM_TRIALS + left).candidates())) == 9
    life.run(RANDOM_TRIALS + left + 1)


@pytest.mark.parametrize("sampler", MODELS)
def test_steps_of_the_spaces_own_are_sampled(sampler: str) -> None:
    life = Life(sampler, lambda trial: {"place": trial.suggest_float("place", 0, 1), "steps": trial.suggest_categorical("steps", [50, 100])})
    assert {candidate["steps"] for candidate in life.run(24).candidates()} == {50, 100}


def test_thousands_of_generations_are_rebuilt() -> None:
    life = Life("nsga2", without_steps, lambda place, steps: [place, -place])
    drawn = [life.proposer.propose(number) for number in range(50)]
    for number in range(6_000):
        proposal = drawn[number % 50]
        life.proposer.learn(Point(number, 200, True, proposal.parameters, proposal.distributions, [number % 7, -number % 5], [],
                                  {"NSGAIISampler:generation": number // POPULATION}))
    assert life.proposer.propose(6_000).system_attrs == {"NSGAIISampler:generation": 6_000 // POPULATION}


def test_a_random_proposal_costs_no_more_after_ten_thousand_trials() -> None:
    def space(trial: Any) -> list[float]:
        return [trial.suggest_float(f"p{i}", 0, 1) for i in range(30)]

    proposer = Proposer("random", 0, TWO, space, RUNGS)
    known = proposer.propose(0)

    def seconds() -> float:
        """Of ten proposals, the least of three times."""
        found = []
        for _ in range(3):
            began = time.process_time()
            for number in range(10):
                proposer.propose(number)
            found.append(time.process_time() - began)
        return min(found)

    before = seconds()
    for number in range(10_000):
        proposer.learn(Point(number, 200, True, known.parameters, known.distributions, [1.0, 1.0]))
    assert seconds() < 3 * before


def test_answers_of_a_random_search_do_not_repeat_one_another() -> None:
    """The sampler and whoever answers in its place draw from streams of their own."""
    def propose(trial: Any) -> tuple[float, int]:
        return trial.suggest_float("x", 0, 1), trial.suggest_categorical("y", RUNGS)

    proposer = Proposer("random", 0, ["minimize"], propose, RUNGS)
    found = np.array([(x, RUNGS.index(steps)) for x, steps in (proposer.propose(number).candidate for number in range(200))])
    assert abs(np.corrcoef(found.T)[0, 1]) < 0.3


def test_of_equals_the_default_proposes_what_takes_less_time() -> None:
    def run(slow: float) -> list[str]:
        proposer, proposed = Proposer("auto", 5, TWO, even, RUNGS), []
        for number in range(25):
            proposal = proposer.propose(number)
            found = proposal.candidate
            proposed.append(found["method"])
            proposer.learn(Point(number, 200, True, proposal.parameters, proposal.distributions, [found["x"] + 0.1 * found["y"], 1 - found["x"] + 0.1 * found["y"]],
                                 seconds=slow if found["method"] == "slow" else 1.0))
        return proposed[FIRST_TRIALS + 5:]

    assert run(slow=10.0).count("slow") < run(slow=1.0).count("slow")


def test_a_model_that_is_stuck_proposes_at_random() -> None:
    proposer = Life("tpe").run(RANDOM_TRIALS + 10).proposer
    modelled = [proposer.propose(number).candidate["kind"] for number in range(100, 130)]
    drawn = [proposer.propose(number, at_random=True).candidate["kind"] for number in range(100, 130)]
    assert modelled.count("b") > 20 > drawn.count("b")


def test_a_space_that_looks_at_the_study_is_modelled_as_any_other() -> None:
    def space(trial: Any) -> float:
        return trial.suggest_float("place", 0, 1) + 0 * len(trial.study.trials)

    proposer = Life("auto", space, lambda place, steps: [abs(place - 0.8), abs(place - 0.8)]).run(20).proposer
    assert proposer.history.view.known.keys() == {"place", "steps"}
    assert proposer.reach({"place": 0.25}, np.random.RandomState(0))["place"] == 0.25


@pytest.mark.parametrize("sampler", ALL)
@pytest.mark.parametrize(("offer", "offered"), [(lambda trial: trial.suggest_categorical("steps", [67, 150]), {67, 150}), (lambda trial: trial.suggest_int("steps", 30, 34), set(range(30, 35))),
                                                (lambda trial: trial.suggest_categorical("steps", [22, 67]), {67})])
def test_steps_beside_the_rungs_are_searched_and_rungs_are_passed(offer: Callable, offered: set[int], sampler: str) -> None:
    def space(trial: Any) -> dict[str, Any]:
        return {"place": trial.suggest_float("place", 0, 1), "steps": offer(trial)}

    life = Life(sampler, space).run(FIRST_TRIALS)
    found = {life.proposer.propose(number).candidate["steps"] for number in range(100, 140)}
    assert found == offered or sampler == "auto" and found < offered and found - set(RUNGS), "the model may have found some to be better"


@pytest.mark.parametrize("sampler", ALL)
def test_steps_that_are_words_are_no_rungs(sampler: str) -> None:
    def space(trial: Any) -> dict[str, Any]:
        return {"place": trial.suggest_float("place", 0, 1), "steps": trial.suggest_categorical("steps", ["short", "long"])}

    proposer = Proposer(sampler, 3, TWO, space, RUNGS)
    for number in range(RANDOM_TRIALS + 2):
        proposal = proposer.propose(number)
        proposer.started(number, proposal.parameters, proposal.distributions)
        if number == 1:
            proposer.fail(number, proposal.parameters, proposal.distributions)
        else:
            proposer.learn(Point(number, 67, True, proposal.parameters, proposal.distributions, measured(proposal.candidate, 67)))
            proposer.end(number)
    assert {proposer.propose(number).candidate["steps"] for number in range(100, 120)} == {"short", "long"}


@pytest.mark.parametrize("sampler", ["auto", "gp", "nsga2"])
def test_steps_that_each_alternative_asks_for_leave_the_rungs_apart(sampler: str) -> None:
    def space(trial: Any) -> dict[str, Any]:
        kind = trial.suggest_categorical("kind", ["a", "b"])
        return {"kind": kind, "place": trial.suggest_float("place", 0, 1), "steps of": trial.suggest_categorical(f"steps of {kind}", list(RUNGS))}

    proposer = Life(sampler, space).run(FIRST_TRIALS + 2).proposer
    shown = [trial.params["steps"] for trial in proposer.history.study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    assert set(shown) == ({22, 200} if sampler == "nsga2" else set(RUNGS))
    points = [proposer.history.view.shown(point.parameters, point.distributions, point.steps)[0] for point in proposer.history.points]
    assert np.isfinite(proposer.seconds(points)).all()


def test_what_was_stopped_is_not_taken_for_new() -> None:
    """Neither by who has seen it all nor by who reads it later; and a space that asks for no steps may train for fewer than all."""
    def cells(trial: Any) -> int:
        return trial.suggest_int("cell", 0, 149)

    def both(trial: Any) -> tuple[int, int]:
        return cells(trial), trial.suggest_categorical("steps", list(RUNGS[1:]))

    for space, steps in ((cells, 30), (both, 67)):
        life = Life("tpe", space)
        lived = life.new()
        for number in range(149):
            asked = lived.propose(number, fixed={"cell": number, "steps": 200} if space is both else {"cell": number})
            point = Point(number, steps, space is cells, asked.parameters, asked.distributions, [1.0, 1.0])
            life.points.append(point)
            for proposer in (lived, life.proposer):
                proposer.learn(point)
                proposer.end(number)
        for proposer in (lived, life.proposer):
            proposed = [proposer.propose(number, at_random=True).parameters["cell"] for number in range(1000, 1020)]
            assert proposed.count(149) >= 5, proposed
