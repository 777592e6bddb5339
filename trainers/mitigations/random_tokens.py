"""Random tokens in the captions at generation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trainers.mitigations.base import OUTPUTS, WORDS, Mitigation
from trainers.mitigations.hooks import GenerationHooks, Learned
from trainers.mitigations.random_words import with_random_words


class RandomTokens(Mitigation):
    """Every caption gets some random words when a picture is made from it; the model stays as it is.

    Published: 2 words (Somepalli et al. 2023), 4 (as the baseline of Wen et al. 2024).
    """

    name, title, paper = "random-tokens", "random tokens at generation", "Somepalli et al. 2023, arXiv 2305.20086"
    protects, changes_captions = OUTPUTS, True
    strengths = {"words": (2, 4, 8)}
    limits = {"words": WORDS}

    def hooks(self, strength: Mapping[str, float], learned: Learned) -> GenerationHooks:
        return InsertedTokens(int(strength["words"]), learned)


class InsertedTokens(GenerationHooks):
    def __init__(self, words: int, learned: Learned):
        self.words, self.learned = words, learned

    def texts(self, captions: list[str], pictures: np.ndarray) -> list[str]:
        return [with_random_words(caption, self.words, self.learned.random_word, self.learned.generator(RandomTokens.name, int(picture)))
                for caption, picture in zip(captions, pictures)]
