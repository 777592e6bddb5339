"""Random word addition at each access: its share of captions, its words, and the same ones whenever they are asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trainers.mitigations import MITIGATIONS

RWA = MITIGATIONS["rwa"]
ROWS = np.arange(10)


def heard(learned, step=1, rows=ROWS, **strength):
    return RWA.hooks({"words": 2, "probability": 1.0, **strength}, learned).texts(step, rows)


def test_by_hand_one_word_into_a_caption_of_two(learned_x):
    """"left lung" can become three texts, and over many accesses becomes each as often as it should."""
    captions = RWA.said(1, ["left lung"] * 3000, {"words": 1, "probability": 0.5}, learned_x)
    counts = {text: captions.count(text) for text in set(captions)}
    assert counts.keys() == {"left lung", "x left lung", "left x lung", "left lung x"}
    assert counts.pop("left lung") == pytest.approx(1500, abs=150)
    assert all(count == pytest.approx(500, abs=100) for count in counts.values())


@pytest.mark.parametrize("probability", [0.1, 0.4])
def test_a_caption_is_changed_with_its_probability_and_else_is_as_written(learned, probability):
    captions = ["left lung"] * 3000
    said = RWA.said(1, captions, {"words": 2, "probability": probability}, learned)
    changed = [text for text in said if text != "left lung"]
    assert len(changed) / 3000 == pytest.approx(probability, abs=0.03)
    assert len(set(changed)) > 0.8 * len(changed), "each access draws words of its own"


def test_draws_are_those_of_seed_and_step(learned):
    first = heard(learned)
    assert first == heard(learned) and all(len(text.split()) >= 2 for text in first)
    assert first != heard(learned, step=2) and first != heard(replace(learned, seed=4))


def test_looking_ahead_changes_no_text(learned):
    hooks = RWA.hooks({"words": 2, "probability": 0.4}, learned)
    hooks.expect(lambda step: (ROWS + step) % 10, 12)
    for step in range(1, 13):
        assert hooks.texts(step, (ROWS + step) % 10) == heard(learned, step, (ROWS + step) % 10, probability=0.4)


def test_as_trained_is_a_draw_as_at_an_access_and_the_same_each_time(learned):
    captions, strength = ["left lung"] * 500, {"words": 2, "probability": 0.4}
    said = RWA.as_trained(captions, strength, learned)
    assert said == RWA.as_trained(captions, strength, learned)
    assert sum(text != "left lung" for text in said) / 500 == pytest.approx(0.4, abs=0.07)
    assert said != RWA.said(1, captions, strength, learned), "a draw of its own, not that of a step"
