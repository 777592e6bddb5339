"""Random words once a caption: fixed, all captions, whoever asks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from trainers.mitigations import MITIGATIONS

ONCE = MITIGATIONS["rwa-once"]
ROWS = np.arange(10)


def test_by_hand_a_word_has_nowhere_else_to_go(learned_x):
    assert ONCE.as_trained([""], {"words": 2}, learned_x) == ["x x"]
    (said,) = ONCE.as_trained(["left lung"], {"words": 1}, learned_x)
    assert said in {"x left lung", "left x lung", "left lung x"}


def test_every_caption_is_changed_the_same_way_at_every_step(learned):
    hooks = ONCE.hooks({"words": 4}, learned)
    hooks.expect(lambda step: ROWS, 30)
    first = hooks.texts(1, ROWS)
    assert all(hooks.texts(step, ROWS) == first for step in range(2, 31))
    assert len(set(first)) == 4, "as many as there are captions: pictures that share one share its words"
    assert not set(first) & set(learned.captions)
    assert ONCE.hooks({"words": 4}, learned).texts(30, ROWS[::-1]) == first[::-1]
    assert ONCE.hooks({"words": 4}, replace(learned, seed=4)).texts(1, ROWS) != first


def test_as_trained_captions_are_what_training_heard(learned):
    said = ONCE.as_trained(learned.captions, {"words": 4}, learned)
    assert ONCE.hooks({"words": 4}, learned).texts(1, np.arange(4)) == said
    assert ONCE.as_trained(learned.captions[::-1], {"words": 4}, learned) == said[::-1]


def test_captions_are_encoded_once_and_no_more(learned, encoder):
    hooks = ONCE.hooks({"words": 4}, learned)
    hooks.expect(lambda step: ROWS, 30)
    for step in range(1, 31):
        encoder.encode(hooks.texts(step, ROWS))
    assert encoder.encoded == 4
