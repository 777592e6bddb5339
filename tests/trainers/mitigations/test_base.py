"""The contract that every mitigation of the table keeps, and what a candidate's mitigations are together."""

from __future__ import annotations

import itertools

import pytest
import torch

from trainers.candidate import Applied, Candidate
from trainers.errors import BadSelection
from trainers.mitigations import MITIGATIONS, OUTPUTS, WEIGHTS, as_trained, check, generation_hooks, in_words, mitigation, training_hooks
from trainers.mitigations.hooks import GenerationHooks, TrainingHooks

EVERY = pytest.mark.parametrize("each", MITIGATIONS.values(), ids=MITIGATIONS)
GOOD = {"rwa": {"words": 2, "probability": 1.0}, "rwa-once": {"words": 4}, "threshold": {"rms": 1e-3}, "threshold-quantile": {"quantile": 0.99},
        "noise": {"scale": 1}, "deduplication": {"similarity": 0.99}, "random-tokens": {"words": 1}, "prompt-optimization": {"rms": 5.0, "steps": 1}}
BAD = [("rwa", "words", 0), ("rwa", "words", 1.5), ("rwa", "words", -2), ("rwa", "probability", 0), ("rwa", "probability", 1.01),
       ("rwa", "probability", float("nan")), ("rwa", "probability", True), ("rwa", "probability", "0.1"), ("rwa-once", "words", 0), ("threshold", "rms", 0),
       ("threshold", "rms", float("inf")), ("threshold-quantile", "quantile", 1), ("threshold-quantile", "quantile", 0), ("noise", "scale", 0),
       ("noise", "scale", 2), ("deduplication", "similarity", 1.0), ("random-tokens", "words", 0.5), ("prompt-optimization", "rms", -1),
       ("prompt-optimization", "steps", 0)]


def published(name: str) -> dict[str, float]:
    return {number: choices[0] for number, choices in MITIGATIONS[name].strengths.items()}


@EVERY
def test_it_says_what_it_is(each):
    assert MITIGATIONS[each.name] is each and each.title and each.paper
    assert each.protects in (WEIGHTS, OUTPUTS)
    assert each.limits.keys() == each.strengths.keys() and each.strengths.keys()


@EVERY
def test_every_choice_of_the_search_is_allowed_and_is_what_a_candidate_holds(each):
    for values in itertools.product(*each.strengths.values()):
        strength = dict(zip(each.strengths, values))
        each.check(strength)
        assert dict(Applied.of(each.name, **strength).strength) == strength, "else the search would ask for another number than is trained with"


@EVERY
def test_its_hooks_are_of_its_time(each, learned):
    hooks = each.hooks(published(each.name), learned)
    assert isinstance(hooks, TrainingHooks if each.protects == WEIGHTS else GenerationHooks)


@pytest.mark.parametrize("name, number, value", BAD)
def test_a_number_out_of_its_range_is_refused_in_one_line(name, number, value):
    with pytest.raises(BadSelection) as caught:
        mitigation(name).check({**GOOD[name], number: value})
    message = str(caught.value)
    assert message.startswith(f"mitigation {name}: {number} is {value!r} and must be ") and message.endswith(f"such as {published(name)[number]:g}")
    assert "\n" not in message
    mitigation(name).check(GOOD[name])


def test_numbers_that_are_missing_or_unknown_are_refused():
    with pytest.raises(BadSelection, match="its number 'probability' is missing, give one such as 0.1"):
        mitigation("rwa").check({"words": 2})
    with pytest.raises(BadSelection, match="it has no number 'word', take words"):
        mitigation("rwa-once").check({"word": 2})
    with pytest.raises(BadSelection, match="mitigation 'tm' is unknown: take .*threshold"):
        mitigation("tm")


def test_a_candidate_says_its_mitigations_in_words():
    applied = (Applied.of("threshold", rms=0.0156), Applied.of("rwa", words=2, probability=0.1))
    assert in_words(applied[0]) == "threshold on the noise norm (rms 0.0156)"
    assert Candidate.of("bias", ("up",), ("bias",), 1e-3, 5, mitigations=applied).words.endswith(
        "5 steps, threshold on the noise norm (rms 0.0156), random words (probability 0.1, words 2)")


# Together ------------------------------------------------------------------------------------------------------------


def test_hooks_of_both_times_are_sorted_out_in_one_order(learned):
    applied = [Applied.of(name, **published(name)) for name in ("prompt-optimization", "noise", "rwa", "random-tokens", "threshold")]
    training, generation = ([type(hook).__name__ for hook in hooks(applied, learned)] for hooks in (training_hooks, generation_hooks))
    assert training == ["ChangedCaptions", "Skipping", "NoisyStates"] and generation == ["InsertedTokens", "OptimizedPrompts"]
    for other in (applied[::-1], sorted(applied, key=lambda each: each.mitigation)):
        assert [type(hook).__name__ for hook in training_hooks(other, learned)] == training


def test_what_cannot_go_together_is_refused():
    rwa, once = Applied.of("rwa", words=2, probability=0.1), Applied.of("rwa-once", words=2)
    check([rwa, Applied.of("noise", scale=0.1), Applied.of("random-tokens", words=2)])
    with pytest.raises(BadSelection, match="mitigations rwa and rwa-once both rewrite what training hears: take one"):
        check([once, rwa])
    with pytest.raises(BadSelection, match="mitigation rwa is applied 2 times: once is enough"):
        check([rwa, rwa])
    with pytest.raises(BadSelection, match="mitigation noise: scale is 3 and must be above 0 and at most 1"):
        check([Applied("noise", (("scale", 3),))])


def test_as_trained_captions_are_those_of_training_alone(learned):
    """What is done at generation alone, or changes no caption, leaves captions as they are written."""
    captions = ["left lung", "no process"]
    assert as_trained([], captions, learned) is None
    for name in ("threshold", "deduplication", "random-tokens", "prompt-optimization"):
        assert as_trained([Applied.of(name, **published(name))], captions, learned) is None
        assert mitigation(name).as_trained(captions, published(name), learned) == captions
    once = Applied.of("rwa-once", words=2)
    texts = mitigation("rwa-once").as_trained(captions, {"words": 2}, learned)
    assert torch.equal(as_trained([once], captions, learned), learned.encode(texts))


def test_as_trained_captions_of_several_mitigations_are_changed_by_each(learned):
    captions, noise, once = ["left lung", "no process"], Applied.of("noise", scale=0.5), Applied.of("rwa-once", words=2)
    states = as_trained([once], captions, learned)
    expected = mitigation("noise").as_trained_states(states, {"scale": 0.5}, learned)
    assert not torch.allclose(expected, states)
    for order in ([noise, once], [once, noise]):
        assert torch.equal(as_trained(order, captions, learned), expected)
