"""The contract of a mitigation: a published counter-measure against copying, used on top of any method."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trainers.candidate import short
from trainers.errors import BadSelection, nearest

if TYPE_CHECKING:
    import torch

    from trainers.mitigations.hooks import GenerationHooks, Learned, TrainingHooks

WEIGHTS, OUTPUTS = "weights", "outputs"


@dataclass(frozen=True)
class Limit:
    """What a number of a mitigation must be. rule: in words, after "must be"."""

    rule: str
    holds: Callable[[float], bool]


POSITIVE = Limit("above 0", lambda value: value > 0)
SHARE = Limit("above 0 and at most 1", lambda value: 0 < value <= 1)
INSIDE = Limit("between 0 and 1 and neither of them", lambda value: 0 < value < 1)
STEPS = Limit("a whole number from 1 to 1000", lambda value: 1 <= value <= 1000 and value == int(value))
WORDS = Limit("a whole number from 1 to 77, the window of CLIP", lambda value: 1 <= value <= 77 and value == int(value))


class Mitigation(ABC):
    """One file a mitigation, one line in `MITIGATIONS`. Stateless; what it does is in the hooks that `hooks` gives.

    protects: "weights", a counter-measure at training time, or "outputs", one at generation time, which does nothing for
    weights that are released. The two never stand on one front.
    strengths: for each number that it takes, the choices that the search offers; the first is the published one.
    limits: for each number, what it must be.
    changes_captions: whether captions reach the model otherwise than they are written. One that does so in training is scored
    with the original and with the as-trained captions, and the worse counts; one at generation is part of what is scored.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]  # "Somepalli et al. 2023, arXiv 2305.20086"
    protects: ClassVar[str]
    changes_captions: ClassVar[bool] = False
    strengths: ClassVar[dict[str, tuple[float, ...]]] = {}
    limits: ClassVar[dict[str, Limit]] = {}

    @abstractmethod
    def hooks(self, strength: Mapping[str, float], learned: Learned) -> TrainingHooks | GenerationHooks:
        """The mitigation at work, of a strength that passes `check`: hooks of training if it protects weights, else of generation."""

    def as_trained(self, captions: list[str], strength: Mapping[str, float], learned: Learned) -> list[str]:
        """(k,) captions of any side as a training with these hooks hears them: one draw of what is drawn at each access.

        The same for the same captions and `learned.seed`; the two sides of a comparison are asked with the same one, so that
        they differ by no luck in words. As they are, unless training changes texts: so also for what works at generation.
        """
        return captions

    def as_trained_states(self, states: torch.Tensor, strength: Mapping[str, float], learned: Learned) -> torch.Tensor:
        """The same for a mitigation that changes not texts but their states (k, tokens, width)."""
        return states

    def words(self, strength: Mapping[str, float]) -> str:
        """One phrase: "random words (words 4, probability 1e-1)"."""
        numbers = ", ".join(f"{name} {value:g}" if value >= 1e-2 or value == 0 else f"{name} {short(value)}" for name, value in strength.items())
        return f"{self.title} ({numbers})" if numbers else self.title

    def check(self, strength: Mapping[str, float]) -> None:
        """Raises BadSelection for a number that it does not take, that is missing, or that is not what it must be."""
        for name in strength:
            if name not in self.strengths:
                raise BadSelection(f"mitigation {self.name}: it has no number {name!r}, take {nearest(name, self.strengths)}")
        for name, choices in self.strengths.items():
            if name not in strength:
                raise BadSelection(f"mitigation {self.name}: its number {name!r} is missing, give one such as {choices[0]:g}")
            value = strength[name]
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not self.limits[name].holds(value):
                raise BadSelection(f"mitigation {self.name}: {name} is {value!r} and must be {self.limits[name].rule}, take one such as {choices[0]:g}")
