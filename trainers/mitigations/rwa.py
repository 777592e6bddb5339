"""Random word addition, at each access."""

from __future__ import annotations

from collections.abc import Mapping

from trainers.mitigations.base import SHARE, WEIGHTS, WORDS, Mitigation
from trainers.mitigations.hooks import Learned
from trainers.mitigations.random_words import ChangedCaptions, with_random_words

SCORED = 0  # the step of the draw that is scored: training's begin at 1


class RandomWords(Mitigation):
    """Whenever a caption is heard, with a probability some random words are inserted (RWA).

    Published: 2 words with probability 0.1 (Somepalli et al. 2023), 1 word always (Wen et al. 2024).
    """

    name, title, paper = "rwa", "random words", "Somepalli et al. 2023, arXiv 2305.20086"
    protects, changes_captions = WEIGHTS, True
    strengths = {"words": (2, 1, 4), "probability": (0.1, 0.4, 1.0)}
    limits = {"words": WORDS, "probability": SHARE}

    def hooks(self, strength: Mapping[str, float], learned: Learned) -> ChangedCaptions:
        return ChangedCaptions(learned, lambda step, captions: self.said(step, captions, strength, learned), strength["probability"])

    def as_trained(self, captions: list[str], strength: Mapping[str, float], learned: Learned) -> list[str]:
        return self.said(SCORED, captions, strength, learned)

    def said(self, step: int, captions: list[str], strength: Mapping[str, float], learned: Learned) -> list[str]:
        generator = learned.generator(self.name, step)
        return [with_random_words(caption, int(strength["words"]), learned.random_word, generator) if chance < strength["probability"] else caption
                for caption, chance in zip(captions, generator.random(len(captions)))]
