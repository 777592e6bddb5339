"""A candidate's identity (hash), its line of words, and JSON there and back."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace

import pytest

from trainers.candidate import Candidate, rounded, short

LORA = Candidate("lora", ("up",), ("cross-attention",), 3e-4, 200, 8)
BIAS = Candidate("bias", ("down", "mid", "up"), ("bias", "norm"), 1e-2, 50)


def test_words_are_those_of_the_issue():
    assert LORA.words == "LoRA rank 8 on cross-attention of up blocks, lr 3e-4, 200 steps"
    assert BIAS.words == "bias tuning on bias and norm of all blocks, lr 1e-2, 50 steps"
    three = replace(LORA, regions=("down", "mid"), kinds=("self-attention", "cross-attention", "feed-forward"), rank=2)
    assert three.words == "LoRA rank 2 on self-attention, cross-attention and feed-forward of down and mid blocks, lr 3e-4, 200 steps"


@pytest.mark.parametrize("rate, words", [(3e-4, "3e-4"), (0.00217, "2.17e-3"), (0.01, "1e-2"), (1.0, "1e0"), (12.0, "1.2e1"), (9.999e-5, "1e-4")])
def test_a_learning_rate_is_short_and_is_what_is_trained(rate, words):
    assert short(rate) == words
    assert float(words) == rounded(rate)


def test_hash_is_of_the_training_not_of_how_it_was_named():
    swapped = replace(BIAS, regions=("up", "down", "mid"), kinds=("norm", "bias"))
    assert swapped.hash == BIAS.hash == replace(BIAS, kinds=("bias", "norm", "bias")).hash
    assert replace(BIAS, learning_rate=0.010000001).hash == BIAS.hash  # the same to three digits


@pytest.mark.parametrize("change", [{"method": "full"}, {"regions": ("mid",)}, {"kinds": ("self-attention",)}, {"learning_rate": 3.01e-4},
                                    {"steps": 201}, {"rank": 4}, {"rank": None}])
def test_hash_differs_with_everything_that_changes_training(change):
    assert replace(LORA, **change).hash != LORA.hash


def test_hash_is_pinned():
    """Studies in databases are keyed by it: a change of the formula makes every finished candidate look new."""
    assert (LORA.hash, BIAS.hash) == ("0954f9fc65888fc0", "3015308d290b7ab5")


@pytest.mark.parametrize("candidate", [LORA, BIAS])
def test_json_round_trip(candidate):
    back = Candidate.from_json(json.loads(json.dumps(candidate.to_json())))
    assert back == candidate and back.hash == candidate.hash and hash(back) == hash(candidate)


def test_a_candidate_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        LORA.steps = 1
