"""Which scores there are, and the scores of one evaluated model. How they are computed is in `evaluate`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from metrics.errors import UnknownName
from metrics.estimate import Estimate

MINIMIZE, MAXIMIZE = "minimize", "maximize"


@dataclass(frozen=True)
class Score:
    """What a score's name stands for; `meaning` completes "The score is ..."."""

    name: str
    direction: Literal["minimize", "maximize"]
    kind: Literal["quality", "memorization"]
    unit: str
    meaning: str


# One line a score; the order is that of tables and of the view `pareto_front`.
SCORES: Mapping[str, Score] = MappingProxyType(
    {
        score.name: score
        for score in (
            Score("fd", MINIMIZE, "quality", "features²", "Fréchet distance of twin-caption pictures to validate"),
            Score("kid", MINIMIZE, "quality", "kernel", "kernel distance of twin-caption pictures to validate"),
            Score("loss_gap", MINIMIZE, "memorization", "loss", "how much more the loss fell on train than on twin"),
            Score("copy_excess", MINIMIZE, "memorization", "log distance", "extra nearness to the own train picture"),
            Score("copy_rate", MINIMIZE, "memorization", "share", "share of copies of train, net of that of twin"),
            Score("amd_train", MAXIMIZE, "memorization", "cosine", "mean distance to the nearest train picture"),
            Score("amd_twin", MAXIMIZE, "memorization", "cosine", "mean distance to the nearest twin picture"),
        )
    }
)


def nearest_names(name: str, known: Iterable[str] = tuple(SCORES)) -> list[str]:
    """The three (or fewer) known names that look most like `name`, the most alike first.

    >>> nearest_names("copy_exces")[0]
    'copy_excess'
    """
    return difflib.get_close_matches(name, list(known), n=3, cutoff=0.0)


def score_named(name: str) -> Score:
    """The score of that name.

    Raises:
        UnknownName: there is none; names the nearest three.
    """
    if name not in SCORES:
        raise UnknownName(
            f"score {name!r} does not exist, nearest are {', '.join(nearest_names(name))}: use one of them"
        )
    return SCORES[name]


@dataclass(frozen=True)
class Scores(Mapping[str, Estimate]):
    """A model's estimates by score name, in the order of `SCORES`; a score that was not measured is left out.

    Raises:
        UnknownName: an estimate's name is no score's.
    """

    estimates: Mapping[str, Estimate]

    def __post_init__(self) -> None:
        for name in self.estimates:
            score_named(name)
        ordered = {name: self.estimates[name] for name in SCORES if name in self.estimates}
        object.__setattr__(self, "estimates", MappingProxyType(ordered))

    def __getitem__(self, name: str) -> Estimate:
        return self.estimates[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.estimates)

    def __len__(self) -> int:
        return len(self.estimates)

    def __reduce__(self):
        # A mapping proxy cannot be pickled, and Ray sends scores between processes.
        return type(self), (dict(self.estimates),)

    def worse(self, other: Scores) -> Scores:
        """Of each score that both have the worse estimate by its direction: a model is as private as its leakiest use."""
        def pick(name: str) -> Estimate:
            first, second = self[name], other[name]
            return second if (second.value > first.value) == (SCORES[name].direction == MINIMIZE) else first

        return Scores({name: pick(name) for name in self if name in other})

    def to_json(self) -> dict[str, dict[str, float]]:
        """Plain floats by score and end, for `json.dumps`."""
        return {name: estimate.to_json() for name, estimate in self.estimates.items()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Mapping[str, float]]) -> Scores:
        """The inverse of `to_json`."""
        return cls({name: Estimate.from_json(estimate) for name, estimate in stored.items()})
