"""Random tokens at generation: as many as asked, and the same for a picture in any batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from trainers.mitigations import MITIGATIONS

TOKENS = MITIGATIONS["random-tokens"]


def said(learned, captions, pictures, words=2):
    return TOKENS.hooks({"words": words}, learned).texts(captions, np.array(pictures))


def test_by_hand(learned_x):
    found = set(said(learned_x, ["left lung"] * 100, range(100), words=1))
    assert found == {"x left lung", "left x lung", "left lung x"}
    assert set(said(learned_x, [""], [0], words=3)) == {"x x x"}


def test_each_picture_has_words_of_its_own_in_any_batch(learned):
    captions = ["left lung"] * 6
    whole = said(learned, captions, range(6))
    assert len(set(whole)) == 6
    assert said(learned, captions[:2], [0, 1]) + said(learned, captions[:4], [2, 3, 4, 5]) == whole
    assert said(learned, captions, range(5, -1, -1)) == whole[::-1]
    assert said(replace(learned, seed=4), captions, range(6)) != whole
