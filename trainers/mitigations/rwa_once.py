"""Random word addition, once for each caption before training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from trainers.mitigations.base import WEIGHTS, WORDS, Mitigation
from trainers.mitigations.hooks import Learned
from trainers.mitigations.random_words import ChangedCaptions, with_random_words


class RandomWordsOnce(Mitigation):
    """Every caption gets some random words before training and is heard with these ever after.

    As MemControl's code has it (arXiv 2405.19458), with 4 words: it means to add words at each access, but what it adds later
    is never tokenized. Words go by the text, so pictures that share a caption share them too.
    """

    name, title, paper = "rwa-once", "random words once a caption", "Dutt et al. 2024, arXiv 2405.19458"
    protects, changes_captions = WEIGHTS, True
    strengths = {"words": (4, 2, 8)}
    limits = {"words": WORDS}

    def hooks(self, strength: Mapping[str, float], learned: Learned) -> ChangedCaptions:
        found: dict[str, str] = {}

        def say(step: int, captions: list[str]) -> list[str]:
            for caption in set(captions) - found.keys():
                found[caption] = self.once(caption, strength, learned)
            return [found[caption] for caption in captions]

        return ChangedCaptions(learned, say, share=1.0)

    def as_trained(self, captions: list[str], strength: Mapping[str, float], learned: Learned) -> list[str]:
        return [self.once(caption, strength, learned) for caption in captions]

    def once(self, caption: str, strength: Mapping[str, float], learned: Learned) -> str:
        text = int.from_bytes(hashlib.sha256(caption.encode()).digest()[:8])
        return with_random_words(caption, int(strength["words"]), learned.random_word, learned.generator(self.name, text))
