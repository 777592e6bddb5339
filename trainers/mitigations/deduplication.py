"""Deduplication of what is learned from, by likeness of features."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trainers.errors import BadSelection
from trainers.mitigations.base import INSIDE, WEIGHTS, Mitigation
from trainers.mitigations.hooks import Learned, TrainingHooks

FEWEST = 8  # pictures left: the same few, seen again and again, would be learned by heart rather than protected
COMPARED = 1024  # pictures at a time, which bounds the memory


class Deduplication(Mitigation):
    """Of pictures that are connected by a cosine similarity of their features above a threshold, the first is kept.

    Connected: a like b and b like c makes one group of the three, whatever a and c are. What a similarity means is a matter of
    the encoder; none is published for those used here. With the bundled one, of 60 phantoms (60 chest radiographs) 0.98 leaves
    54 (59), 0.97 leaves 50 (58) and 0.95 leaves 27 (43).
    """

    name, title, paper = "deduplication", "deduplication", "Carlini et al. 2023, arXiv 2301.13188"
    protects = WEIGHTS
    strengths = {"similarity": (0.97, 0.95, 0.98)}
    limits = {"similarity": INSIDE}

    def hooks(self, strength: Mapping[str, float], learned: Learned) -> TrainingHooks:
        return WithoutDuplicates(strength["similarity"], learned)


class WithoutDuplicates(TrainingHooks):
    def __init__(self, similarity: float, learned: Learned):
        self.similarity, self.learned = similarity, learned

    def kept(self) -> np.ndarray:
        """Raises BadSelection where fewer than FEWEST pictures are left."""
        features = self.learned.features()
        rows = first_of_groups(features, self.similarity)
        if len(rows) < FEWEST:
            raise BadSelection(f"mitigation {Deduplication.name}: similarity {self.similarity:g} leaves {len(rows)} of {len(features)} pictures and at least "
                               f"{FEWEST} must stay: take a higher one")
        return rows


def first_of_groups(features: np.ndarray, similarity: float) -> np.ndarray:
    """Rows, (k,) int64 in rising order, of the first member of each group of rows of `features` (n, d) that are connected by
    cosine similarities above `similarity`. A row of zeros is like no other."""
    features = np.asarray(features, np.float64)
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    waiting = np.arange(len(unit))
    first = []
    while len(waiting):
        first.append(waiting[0])
        reached, waiting = waiting[:1], waiting[1:]
        while len(reached) and len(waiting):
            compared, later = reached[:COMPARED], reached[COMPARED:]
            alike = (unit[waiting] @ unit[compared].T > similarity).any(axis=1)
            reached, waiting = np.concatenate([later, waiting[alike]]), waiting[~alike]
    return np.array(first, np.int64)
