"""What a study takes over from another one of the same store: its results, scaled, for the sampler's eyes only, and its front to be run first."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hpo.errors import BadSetting
from hpo.proposer import Point
from storage import results, standing, trials
from trainers.candidate import Candidate, rounded

if TYPE_CHECKING:
    from hpo.study import Search


@dataclass(frozen=True)
class Source:
    """The study that is taken over from. ladder ends with `steps`; base and yardstick: its objectives' values."""

    name: str
    id: int
    steps: int
    rate_scale: float
    base: tuple[float, ...]
    yardstick: tuple[float, ...]


def source(search: Search, name: str) -> Source:
    """Raises UnknownStudy; BadSetting for one of other objectives, without a yardstick, or the study itself."""
    if name == search.settings.study:
        raise BadSetting(f"--warm-start {name}: it is the study itself, name another one, or leave the flag out to resume it")
    id = results.study_id(search.store, name)
    stored = results.settings(search.store, id)["binding"]
    if tuple(stored["objectives"]) != search.objectives.names:
        raise BadSetting(f"--warm-start {name}: its objectives are {','.join(stored['objectives'])}, this study's are {','.join(search.objectives.names)}: "
                         "take a study with the same ones, or other --objectives")
    known, yardstick = results.references(search.store, id), standing.yardstick(search.store, name)
    if known is None or yardstick is None:
        raise BadSetting(f"--warm-start {name}: its yardstick is not finished, so nothing tells how its scores compare with this study's: finish it first")
    names = [] if search.objectives.is_joint_reward else search.objectives.names
    return Source(name, id, stored["steps"], stored["learning_rate_scale"], tuple(known.scores[each][0] for each in names), tuple(yardstick[each] for each in names))


def adapted(candidate: Candidate, source: Source, search: Search) -> Candidate:
    """The same candidate in this study: learning rates by this study's scale, steps the rung at about the same share of all."""
    scale = search.settings.learning_rate_scale / source.rate_scale
    share = candidate.steps / source.steps * search.settings.steps
    steps = min(search.settings.ladder, key=lambda rung: abs(math.log(rung / share)))
    norm_rate = None if candidate.norm_rate is None else rounded(candidate.norm_rate * scale)
    return replace(candidate, learning_rate=rounded(candidate.learning_rate * scale), norm_rate=norm_rate, steps=steps)


def front(search: Search, name: str) -> list[Candidate]:
    """The source's front as candidates of this study; those that this base model cannot have are left out."""
    found = source(search, name)
    candidates = [adapted(Candidate.from_json(row), found, search) for row, _ in standing.front_candidates(search.store, found.id)]
    return [candidate for candidate in dict.fromkeys(candidates) if search.trained.reason(candidate) is None]


def points(search: Search, name: str, base: tuple[float, ...], yardstick: tuple[float, ...]) -> Iterator[Point]:
    """The source's rungs as points of this study, for the sampler: each objective scaled so that the source's base and yardstick come to lie on this
    study's, whose values are given. Numbers are negative, so that no trial of this study is meant. What this study's space cannot propose is left out."""
    found = source(search, name)
    for row in trials.rungs_since(search.store, found.id, 0, replicates=False):
        candidate = adapted(replace(Candidate.from_json(row.json), steps=row.steps), found, search)
        fixed = search.space.fixed(candidate, search.bounds)
        if fixed is None:
            continue
        values = row.values if search.objectives.is_joint_reward else [scaled(*each) for each in zip(row.values, found.base, found.yardstick, base, yardstick)]
        yield Point(-1 - row.number, candidate.steps, True, dict(fixed.params), fixed.distributions, list(values), [], {})


def scaled(value: float, base: float, yardstick: float, new_base: float, new_yardstick: float) -> float:
    """Along the line on which base and yardstick of one study are those of the other; shifted only where the source's are the same.

    >>> scaled(3.0, base=5.0, yardstick=1.0, new_base=50.0, new_yardstick=10.0)
    30.0
    """
    slope = (new_yardstick - new_base) / (yardstick - base) if yardstick != base else 1.0
    return new_base + (value - base) * slope


def enqueued(search: Search, path: str) -> list[Candidate]:
    """The candidates of --enqueue, JSON objects one a line as `Candidate.to_json` gives them. Raises BadSetting naming the line."""
    try:
        lines = [(number, line) for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadSetting(f"--enqueue {path}: it cannot be read ({error}), give a text file with a candidate a line") from error
    found = []
    for number, line in lines:
        try:
            candidate = Candidate.from_json(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadSetting(f"--enqueue {path}: line {number} is no candidate ({type(error).__name__}: {error}), write one as "
                             "python -m hpo.front --format candidates does") from error
        if not 1 <= candidate.steps <= search.settings.steps:
            raise BadSetting(f"--enqueue {path}: line {number} has {candidate.steps} steps, this study's trials have 1 to {search.settings.steps}")
        if (why := search.trained.reason(candidate)) is not None:
            raise BadSetting(f"--enqueue {path}: line {number}: {why}")
        found.append(candidate)
    return found
