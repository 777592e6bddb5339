"""What a study takes over from another one of the same store: its results, scaled, for the sampler's eyes only, and its front to be run first."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo import objectives as objective_table
from hpo.errors import BadSetting
from hpo.proposer import Point
from hpo.spaces.function import said_of, shown, vetted
from storage import leases, results, standing
from storage.errors import UnknownStudy
from trainers.candidate import Candidate, rounded
from trainers.errors import BadSelection

if TYPE_CHECKING:
    from hpo.study import Search


WRITE = "write one a line as python -m hpo.front --format candidates does"
TOLERANCE = 1e-9  # of logarithms of steps
MARK = "warm_start"  # on the study: how much of which other study it takes over, so that a resumed study takes over the same


@dataclass(frozen=True)
class Source:
    """The study that is taken over from. yardstick: a row of the view trial_scores."""

    name: str
    id: int
    steps: int
    rate_scale: float
    known: results.References
    yardstick: Mapping[str, Any]


def unknown(name: str, own: str, known: Sequence[str]) -> BadSetting:
    """That there is no study of that name among those that are known. own: the name of the study that is to be started."""
    others = ", ".join(repr(each) for each in known if each != own)
    return BadSetting(f"--warm-start {name}: there is no such study in this store, "
                      + (f"take one of {others}, or leave the flag out" if others else "which has no other: leave the flag out"))


def source(search: Search, name: str) -> Source:
    """Raises BadSetting for one that is not there, of other objectives, without a yardstick, or the study itself."""
    if name == search.settings.study:
        raise BadSetting(f"--warm-start {name}: it is the study itself, name another one, or leave the flag out to resume it")
    try:
        id = results.study_id(search.store, name)
    except UnknownStudy as error:
        raise unknown(name, search.settings.study, error.known) from error
    stored = results.settings(search.store, id)["binding"]
    if tuple(stored["objectives"]) != search.objectives.names:
        raise BadSetting(f"--warm-start {name}: its objectives are {','.join(stored['objectives'])}, this study's are {','.join(search.objectives.names)}: "
                         "take a study with the same ones, or other --objectives")
    known, yardstick = results.references(search.store, id), standing.yardstick(search.store, name)
    if known is None or yardstick is None:
        raise BadSetting(f"--warm-start {name}: its yardstick is not finished, so nothing tells how its scores compare with this study's: finish it first")
    return Source(name, id, stored["steps"], stored["learning_rate_scale"], known, yardstick)


def settle(search: Search, launches: bool) -> None:
    """Note how far the other study is now: what it finds later is not taken over. Once for each study that a launch names; a worker that joins does so
    only where there is no note, since the launch was killed before it."""
    name = search.settings.warm_start
    if name is None:
        return
    with leases.translated():
        noted = search.study.user_attrs.get(MARK)
        if noted is None or launches and noted["study"] != name:
            recorded = standing.last_recorded(search.store, source(search, name).id)
            search.study.set_user_attr(MARK, {"study": name, "recorded": recorded})


def adapted(candidate: Candidate, source: Source, search: Search) -> Candidate:
    """The same candidate in this study: learning rates by this study's scale, steps the rung at about the same share of all."""
    scale = search.settings.learning_rate_scale / source.rate_scale
    share = candidate.steps / source.steps * search.settings.steps
    steps = min(search.settings.ladder, key=lambda rung: abs(math.log(rung / share)))
    norm_rate = None if candidate.norm_rate is None else rounded(candidate.norm_rate * scale)
    return replace(candidate, learning_rate=rounded(candidate.learning_rate * scale), norm_rate=norm_rate, steps=steps)


def front(search: Search, name: str) -> list[Candidate]:
    """The source's front as candidates of this study, the longest first of those that are one training: it passes the others. Those that this base
    model or its --protects cannot have are left out."""
    found = source(search, name)
    candidates = [adapted(Candidate.from_json(row), found, search) for row, _ in standing.front_candidates(search.store, found.id)]
    roots = list(dict.fromkeys(candidate.root for candidate in candidates))
    ordered = sorted(dict.fromkeys(candidates), key=lambda candidate: (roots.index(candidate.root), -candidate.steps))
    return [candidate for candidate in ordered if reason(candidate, search) is None]


def reason(candidate: Candidate, search: Search) -> str | None:
    """Why a candidate cannot be one of this study, if so."""
    try:
        return search.trained.reason(vetted(candidate, search.bounds))
    except BadSelection as error:
        return str(error)


def points(search: Search, yardstick: Sequence[float]) -> list[Point]:
    """The source's points as those of this study, for the sampler: each objective scaled so that the source's base and yardstick come to lie on this
    study's, a joint reward by the source's own. Numbers are negative, so that no trial of this study is meant. What this study's space cannot propose, or
    its base model cannot have, is left out, and so are rungs that are not near one of this study's. yardstick: the scores of this study's."""
    found = source(search, search.settings.warm_start)
    with leases.translated():
        recorded = search.study.user_attrs[MARK]["recorded"]
    rows, base = standing.evaluated(search.store, found.id, recorded), results.references(search.store, search.id).scores
    points: list[Point] = []
    for row in rows:
        given = Candidate.from_json(row.candidate)
        candidate = adapted(given, found, search)
        if abs(math.log(candidate.steps / (given.steps / found.steps * search.settings.steps))) > math.log(search.settings.reduction) / 2 + TOLERANCE:
            continue
        fixed, values = search.space.fixed(candidate, search.bounds, row.parameters), values_here(row.values, found, search, base, yardstick)
        trainable = search.trainable(candidate)
        if fixed is not None and values is not None and trainable is not None:
            scores = {} if search.objectives.is_joint_reward else dict(zip(search.objectives.names, values))
            violations = search.constraints.foreseen(trainable, search.trained.units.total, scores)
            points.append(Point(-1 - row.number, candidate.steps, False, dict(fixed.params), fixed.distributions, values,
                                search.constraints.shares(violations), {}))
    last = {point.number: place for place, point in enumerate(points)}
    return [replace(point, last=place == last[point.number]) for place, point in enumerate(points)]


def values_here(values: Sequence[float], source: Source, search: Search, base: Mapping[str, tuple], yardstick: Sequence[float]) -> list[float] | None:
    """A point's objectives in this study, whose base scored so; None where there is no joint reward."""
    objectives, known = search.objectives, source.known
    if objectives.is_joint_reward:
        reward = objective_table.joint_reward(objectives, search.settings.reward_weight, *values, known.q_base, known.q_real, known.m_base,
                                              source.yardstick[objectives.memorization])
        return None if reward is None else [reward]
    return [scaled(value, known.scores[name], [source.yardstick[f"{name}{end}"] for end in ("", "_low", "_high")], base[name][0], here)
            for name, value, here in zip(objectives.names, values, yardstick)]


def scaled(value: float, base: Sequence[float], yardstick: Sequence[float], new_base: float, new_yardstick: float) -> float:
    """Along the line on which base and yardstick of one study, (value, low, high), are those of the other. Shifted only where the source's intervals
    overlap, so that noise would be the scale, or where the line would turn better into worse.

    >>> scaled(3.0, base=(5.0, 4.9, 5.1), yardstick=(1.0, 0.9, 1.1), new_base=50.0, new_yardstick=10.0)
    30.0
    """
    overlap = max(base[1], yardstick[1]) <= min(base[2], yardstick[2]) or base[0] == yardstick[0]
    slope = 0.0 if overlap else (new_yardstick - new_base) / (yardstick[0] - base[0])
    return new_base + (value - base[0]) * (slope if slope > 0 else 1.0)


def enqueued(search: Search, path: str) -> list[Candidate]:
    """The candidates of --enqueue, JSON objects one a line as `Candidate.to_json` gives them. Raises BadSetting naming the line."""
    try:
        lines = [(number, line) for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1) if line.strip()]
    except (OSError, ValueError) as error:
        raise BadSetting(f"--enqueue {path}: it cannot be read ({error}), give a text file with a candidate a line") from error
    if not lines:
        raise BadSetting(f"--enqueue {path}: there is no candidate in it, {WRITE}, or leave the flag out")
    found = []
    for number, line in lines:
        try:
            candidate = Candidate.from_json(json.loads(line))
            why = reason(candidate, search)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadSetting(f"--enqueue {path}: line {number} is no candidate ({said_of(error)}): {shown(line)}, {WRITE}") from error
        if why is not None:
            raise BadSetting(f"--enqueue {path}: line {number}: {why}")
        found.append(vetted(candidate, search.bounds))
    return found
