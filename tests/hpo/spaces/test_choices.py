"""The conditional space as data: what is asked, in which words, and steps that are not equally spaced."""

from __future__ import annotations

from collections.abc import Callable

import optuna
import pytest

from hpo.spaces.choices import MOST_RANKS, Choices, Offer, suggest_steps
from trainers.candidate import Applied, Candidate, Part

RATES = (1e-4, 1e-2)
LORA = Offer((("up",), ("down", "mid")), (("attention",),), (4, 8), RATES, None)
SVDIFF = Offer((("up",), ("down", "mid")), (("everything",),), (), RATES, (1e-5, 1e-3))
CHOICES = Choices({"lora": LORA, "svdiff": SVDIFF}, (10, 40), {"rwa": {"words": (1, 4), "probability": (0.1,)}})


def names(candidates: Choices, seeds: int = 60) -> list[set[str]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(seeds)]
    for trial in trials:
        candidates.propose(trial)
    return [set(trial.params) for trial in trials]


def test_a_candidate_by_hand(answered: Callable) -> None:
    answers = {"method": "svdiff", "blocks": "down and mid blocks", "learning rate of svdiff": 0.00123456, "norm rate of svdiff": 2e-4, "steps": 40,
               "mitigation": "rwa", "words of rwa": 4.0}
    candidate = CHOICES.propose(answered(answers))
    assert candidate == Candidate("svdiff", (Part(("down", "mid"), ("everything",)),), 0.00123, 40, norm_rate=2e-4,
                                  mitigations=(Applied.of("rwa", words=4, probability=0.1),))
    told = {name: value for name, value in CHOICES.answers(candidate).items() if name in answers}
    assert told == {**answers, "learning rate of svdiff": 0.00123}


def test_only_what_depends_on_a_choice_is_asked() -> None:
    for asked in names(CHOICES):
        assert {"method", "blocks", "steps", "mitigation"} <= asked and not {"kinds of lora", "probability of rwa"} & asked, "one choice is none"
        assert ("norm rate of svdiff" in asked) == ("learning rate of svdiff" in asked) != ("learning rate of lora" in asked)
        assert ("rank of lora" in asked) + ("rank of lora in mid blocks" in asked) == ("learning rate of lora" in asked)


def test_methods_with_regions_of_their_own_are_asked_apart() -> None:
    own = Choices({"lora": LORA, "svdiff": Offer((("mid",), ("up",)), SVDIFF.kinds, (), RATES, None)}, (10,))
    assert {name for asked in names(own) for name in asked if "blocks of" in name} == {"blocks of lora", "blocks of svdiff"}


def test_without_a_plain_choice_a_mitigation_is_always_there() -> None:
    always = Choices({"svdiff": SVDIFF}, (10,), {"rwa": {"words": (1, 4)}}, plain=False)
    assert all("words of rwa" in asked and "mitigation" not in asked for asked in names(always))


def test_many_regions_share_a_rank() -> None:
    def regions(count: int) -> Choices:
        return Choices({"lora": Offer((tuple(f"up_blocks.1.attentions.{i}" for i in range(count)),), LORA.kinds, (4, 8), RATES, None)}, (10,))

    assert max(map(len, names(regions(MOST_RANKS)))) == MOST_RANKS + 4
    assert {name for asked in names(regions(MOST_RANKS + 1)) for name in asked if name.startswith("rank")} == {"rank of lora"}


@pytest.mark.parametrize(("steps", "seen"), [((10, 40), {10, 40}), ((50, 100, 150), {50, 100, 150}), ((7,), {7}), ((10, 20, 100), {10, 20, 100}), ((30, 10, 30), {10, 30})])
def test_steps_are_those_that_are_given(steps: tuple[int, ...], seen: set[int]) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = [suggest_steps(study.ask(), steps) for _ in range(60)]
    assert set(found) == seen and all(type(each) is int for each in found)


def test_an_unknown_method_has_no_answers() -> None:
    with pytest.raises(LookupError):
        CHOICES.answers(Candidate.of("bias", ("up",), ("bias",), 1e-3, 10))
