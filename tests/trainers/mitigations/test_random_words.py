"""Random words: as many as asked, at all places alike; and texts that are encoded before their steps come."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from trainers.mitigations.random_words import ENCODED_AHEAD, ChangedCaptions, with_random_words


def inserted(caption, words, seed=0, random_word=lambda generator: "x"):
    return with_random_words(caption, words, random_word, np.random.default_rng(seed))


def test_one_word_stands_at_each_place_alike():
    found = Counter(inserted("small left lung", 1, seed) for seed in range(2000))
    assert found.keys() == {"x small left lung", "small x left lung", "small left x lung", "small left lung x"}
    assert all(count == pytest.approx(500, abs=70) for count in found.values())


def test_later_words_may_stand_among_earlier_ones():
    """Of the 2 · 3 ways to put two words to one, where each is taken as one more word: x x a and a x x come twice as often as each of x a x."""
    found = Counter(inserted("a", 2, seed) for seed in range(3000))
    assert found.keys() == {"x x a", "x a x", "a x x"}
    assert all(count == pytest.approx(1000, abs=100) for count in found.values())


def test_the_caption_stays_in_its_order():
    said = inserted("a b c d", 7, random_word=lambda generator: f"x{generator.integers(9)}").split()
    assert len(said) == 11 and [word for word in said if word[0] != "x"] == ["a", "b", "c", "d"]


def test_an_empty_caption_gets_its_words():
    assert inserted("", 2) == "x x"


# Looking ahead -------------------------------------------------------------------------------------------------------


@pytest.fixture
def heard(learned):
    """Hooks that add the step to each caption, and what they had encoded: a list of batches."""
    batches = []

    def encode(texts):
        batches.append(texts)
        return learned.encode(texts)

    def make(share=1.0, say=lambda step, captions: [f"{caption} {step}" for caption in captions]):
        from dataclasses import replace

        return ChangedCaptions(replace(learned, encode=encode), say, share)

    return make, batches


def rows_of(step):
    return np.array([step, step + 1, step + 2, step + 3]) % 10


def test_texts_of_many_steps_are_encoded_at_once(heard, encoder):
    make, batches = heard
    hooks, steps = make(), 40
    hooks.expect(rows_of, steps)
    block = ENCODED_AHEAD // 4
    for step in range(1, steps + 1):
        texts = hooks.texts(step, rows_of(step))
        assert texts == [f"{caption} {step}" for caption in hooks.learned.texts(rows_of(step))]
        assert len(batches) == (step - 1) // block + 1
        before = encoder.encoded
        hooks.learned.encode(texts)
        batches.pop()
        assert encoder.encoded == before, "training finds its texts remembered"
    assert [len(batch) for batch in batches] == [60, 56, 28], "of 64, 64 and 32 texts, without repeats"


def test_a_resumed_training_hears_the_same_from_the_same_batches(heard):
    make, batches = heard
    hooks = make()
    hooks.expect(rows_of, 40)
    whole = [hooks.texts(step, rows_of(step)) for step in range(1, 41)]
    first = batches.copy()
    batches.clear()
    resumed = make()
    resumed.expect(rows_of, 40)
    assert [resumed.texts(step, rows_of(step)) for step in range(23, 41)] == whole[22:]
    assert batches == first[1:]


def test_without_being_told_of_later_steps_each_is_heard_alone(heard):
    make, batches = heard
    assert make().texts(7, np.array([2])) == ["left lung 7"] and batches == []


def test_a_step_that_changes_nothing_asks_for_nothing(heard):
    make, batches = heard
    hooks = make(say=lambda step, captions: captions)
    hooks.expect(rows_of, 5)
    assert hooks.texts(1, rows_of(1)) is None and batches == []


def test_captions_that_stay_are_not_encoded_again(heard):
    make, batches = heard
    hooks = make(say=lambda step, captions: [captions[0] + " x", *captions[1:]])
    hooks.expect(rows_of, 3)
    hooks.texts(1, rows_of(1))
    assert sorted(batches[0]) == sorted(f"{hooks.learned.texts(rows_of(step))[0]} x" for step in (1, 2, 3))
