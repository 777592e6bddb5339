"""What the study optimises: objectives by score name, their directions, the hypervolume and the joint reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpo.command import items
from hpo.errors import BadSetting
from metrics.scores import SCORES
from trainers.errors import nearest

MINIMIZE, MAXIMIZE = "minimize", "maximize"
JOINT_REWARD = "joint_reward"
DEFAULT_QUALITY, DEFAULT_MEMORIZATION = "fd", "copy_excess"


@dataclass(frozen=True)
class Objective:
    """A score that is optimised. `oriented` turns its value so that smaller is better; all front code minimises."""

    name: str
    direction: str
    unit: str

    def oriented(self, value: float) -> float:
        return value if self.direction == MINIMIZE else -value


@dataclass(frozen=True)
class Objectives:
    """The study's objectives in Optuna's order, and the pair that the joint reward is made of."""

    chosen: tuple[Objective, ...]
    quality: str
    memorization: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(objective.name for objective in self.chosen)

    @property
    def directions(self) -> list[str]:
        return [objective.direction for objective in self.chosen]

    @property
    def is_joint_reward(self) -> bool:
        return self.names == (JOINT_REWARD,)


def objective(name: str) -> Objective:
    if name == JOINT_REWARD:
        return Objective(name, MAXIMIZE, "")
    return Objective(name, SCORES[name].direction, SCORES[name].unit)


def parse(text: str) -> Objectives:
    """Objectives from "fd,copy_excess" or "joint_reward". Raises BadSetting with the nearest names."""
    names = items("--objectives", text)
    known = [*SCORES, JOINT_REWARD]
    for name in names:
        if name not in known:
            raise BadSetting(f"--objectives {name!r} is unknown: take {nearest(name, known)}")
    if len(set(names)) != len(names):
        raise BadSetting(f"--objectives {text}: a score is named twice, name each once")
    if names == [JOINT_REWARD]:
        return Objectives((objective(JOINT_REWARD),), DEFAULT_QUALITY, DEFAULT_MEMORIZATION)
    if len(names) < 2 or JOINT_REWARD in names:
        raise BadSetting(f"--objectives {text}: take two or more scores, or joint_reward alone")
    first = {kind: next((name for name in names if SCORES[name].kind == kind), default)
             for kind, default in (("quality", DEFAULT_QUALITY), ("memorization", DEFAULT_MEMORIZATION))}
    return Objectives(tuple(objective(name) for name in names), first["quality"], first["memorization"])


def hypervolume(points: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """Volume that the points dominate up to the reference point, all oriented: smaller is better. Exact.

    Slices along the last objective (Fleischer's idea); fronts here have tens of points, so that is fast enough.
    """
    inside = sorted({tuple(point) for point in points if all(x < r for x, r in zip(point, reference))}, key=lambda p: p[-1])
    if not inside:
        return 0.0
    if len(reference) == 1:
        return reference[0] - min(point[0] for point in inside)
    total = 0.0
    for i, point in enumerate(inside):
        upper = inside[i + 1][-1] if i + 1 < len(inside) else reference[-1]
        if upper > point[-1]:
            total += (upper - point[-1]) * hypervolume([other[:-1] for other in inside[: i + 1]], reference[:-1])
    return total


def joint_reward(objectives: Objectives, weight: float, q: float, m: float, q_base: float, q_real: float, m_base: float,
                 m_yard: float) -> float | None:
    """w · (q_base − q) / (q_base − q_real) − (1 − w) · (m − m_base) / (m_yard − m_base); None where a denominator leaves no room.

    The same as the SQL function in storage/sql/front.sql; a test holds them together.
    """
    quality, memorization = objective(objectives.quality), objective(objectives.memorization)
    room = quality.oriented(q_base) - quality.oriented(q_real), memorization.oriented(m_yard) - memorization.oriented(m_base)
    if min(room) <= 0:
        return None
    return (weight * (quality.oriented(q_base) - quality.oriented(q)) / room[0]
            - (1 - weight) * (memorization.oriented(m) - memorization.oriented(m_base)) / room[1])
