"""Random words in a caption, and the hooks of a training that hears other captions than are written. Used by several mitigations."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from trainers.mitigations.hooks import Learned, TrainingHooks

ENCODED_AHEAD = 64  # texts: enough to fill the text encoder's batches, few enough to be remembered until their step comes


def with_random_words(caption: str, words: int, random_word: Callable[[np.random.Generator], str], generator: np.random.Generator) -> str:
    """The caption with `words` more words, one after the other, each between any two words or at an end, all places alike.

    Source: Somepalli et al. 2023, `insert_rand_word` in their code; a word is what one random token stands for.
    """
    said = caption.split()
    for _ in range(words):
        place = int(generator.integers(len(said) + 1))
        said.insert(place, random_word(generator))
    return " ".join(said)


class ChangedCaptions(TrainingHooks):
    """say: (step, captions (b,)) → what is heard instead, the same whenever it is asked; share: of the captions, that are changed.

    Steps are looked at in blocks of about ENCODED_AHEAD changed captions, which are encoded together, so that each step finds
    its texts remembered. Blocks begin at the same steps however often the training was resumed.
    """

    def __init__(self, learned: Learned, say: Callable[[int, list[str]], list[str]], share: float):
        self.learned, self.say, self.share = learned, say, share
        self.rows: Callable[[int], np.ndarray] | None = None
        self.steps = 0
        self.ahead: dict[int, list[str] | None] = {}

    def expect(self, rows: Callable[[int], np.ndarray], steps: int) -> None:
        self.rows, self.steps, self.ahead = rows, steps, {}

    def texts(self, step: int, rows: np.ndarray) -> list[str] | None:
        if self.rows is None:
            return self.heard(step, rows)
        if step not in self.ahead:
            self.look_ahead(step, math.ceil(ENCODED_AHEAD / (len(rows) * self.share)))
        return self.ahead[step]

    def heard(self, step: int, rows: np.ndarray) -> list[str] | None:
        captions = self.learned.texts(rows)
        said = self.say(step, captions)
        return None if said == captions else said

    def look_ahead(self, step: int, block: int) -> None:
        first = (step - 1) // block * block + 1
        self.ahead = {each: self.heard(each, self.rows(each)) for each in range(first, min(first + block, self.steps + 1))}
        written = set(self.learned.captions)
        if changed := list(dict.fromkeys(text for texts in self.ahead.values() if texts for text in texts if text not in written)):
            self.learned.encode(changed)
