"""A candidate's identity (hash), its line of words, and JSON there and back."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace

import pytest

from trainers.candidate import Applied, Candidate, Part, rounded, short

LORA = Candidate.of("lora", ("up",), ("cross-attention",), 3e-4, 200, 8)
BIAS = Candidate.of("bias", ("down", "mid", "up"), ("bias", "norm"), 1e-2, 50)


def test_words_are_those_of_the_issue():
    assert LORA.words == "LoRA rank 8 on cross-attention of up blocks, lr 3e-4, 200 steps"
    assert BIAS.words == "bias tuning on bias and norm of all blocks, lr 1e-2, 50 steps"
    three = Candidate.of("lora", ("down", "mid"), ("self-attention", "cross-attention", "feed-forward"), 3e-4, 200, 2)
    assert three.words == "LoRA rank 2 on self-attention, cross-attention and feed-forward of down and mid blocks, lr 3e-4, 200 steps"


@pytest.mark.parametrize("rate, words", [(3e-4, "3e-4"), (0.00217, "2.17e-3"), (0.01, "1e-2"), (1.0, "1e0"), (12.0, "1.2e1"), (9.999e-5, "1e-4")])
def test_a_learning_rate_is_short_and_is_what_is_trained(rate, words):
    assert short(rate) == words
    assert float(words) == rounded(rate)


def test_hash_is_of_the_training_not_of_how_it_was_named():
    everywhere = BIAS.parts[0]
    swapped = replace(BIAS, parts=(replace(everywhere, regions=("up", "down", "mid"), kinds=("norm", "bias")),))
    assert swapped.hash == BIAS.hash == replace(BIAS, parts=(replace(everywhere, kinds=("bias", "norm", "bias")),)).hash
    assert BIAS.hash == replace(BIAS, parts=(everywhere, everywhere)).hash
    assert replace(BIAS, learning_rate=0.010000001).hash == BIAS.hash  # the same to three digits


UP = LORA.parts[0]
OTHERS = [replace(UP, regions=("mid",)), replace(UP, kinds=("self-attention",)), replace(UP, rank=4), replace(UP, rank=None), replace(UP, alpha=4)]


@pytest.mark.parametrize("change", [{"method": "full"}, {"learning_rate": 3.01e-4}, {"steps": 201}, {"norm_rate": 1e-6}, {"frozen": (UP,)},
                                    {"mitigations": (Applied.of("rwa", words=4),)}, {"parts": (UP, OTHERS[0])}, *({"parts": (part,)} for part in OTHERS)])
def test_hash_differs_with_everything_that_changes_training(change):
    assert replace(LORA, **change).hash != LORA.hash


def test_the_order_of_parts_counts_only_where_ranks_differ():
    """A later part wins over an earlier one, so there the order means something."""
    low, high, other = Part(("up",), ("attention",), 2), Part(("up_blocks.1",), ("attention",), 8), Part(("mid",), ("attention",), 2)
    assert replace(LORA, parts=(low, other)).hash == replace(LORA, parts=(other, low)).hash
    assert replace(LORA, parts=(low, high)).hash != replace(LORA, parts=(high, low)).hash
    strong = replace(high, rank=2, alpha=16)
    assert replace(LORA, parts=(low, strong)).hash != replace(LORA, parts=(strong, low)).hash, "an alpha counts as a rank does"


def test_the_order_of_mitigations_does_not_count():
    both = Applied.of("rwa", words=4, probability=0.1), Applied.of("threshold", quantile=0.9)
    assert replace(LORA, mitigations=both).hash == replace(LORA, mitigations=both[::-1]).hash


def test_hash_is_pinned():
    """Studies in databases are keyed by it: a change of the formula makes every finished candidate look new."""
    assert (LORA.hash, BIAS.hash) == ("023691ba31690805", "fa71b65ea271baa7")


@pytest.mark.parametrize("candidate", [LORA, BIAS, replace(LORA, parts=(UP, OTHERS[4]), frozen=(OTHERS[0],), norm_rate=1e-6,
                                                           mitigations=(Applied.of("rwa", words=4, probability=0.1),))])
def test_json_round_trip(candidate):
    back = Candidate.from_json(json.loads(json.dumps(candidate.to_json())))
    assert back == candidate and back.hash == candidate.hash and hash(back) == hash(candidate)


def test_a_candidate_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        LORA.steps = 1
