"""The hypervolume of a study's front: which reference point it is measured to, and what it is now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hpo import objectives as objective_table
from hpo.dominance import dominated
from hpo.objectives import Objectives
from storage import results, standing
from storage.rungs import RungRow
from storage.store import Store

FEWEST_ROWS = 256  # that memory is taken for at once


def reference_point(objectives: Objectives, base: Mapping[str, tuple], yardstick: Mapping[str, Any]) -> list[float] | None:
    """In each objective the worse of base's and yardstick's, oriented so that smaller is better; None if one is not known."""
    point = []
    for objective in objectives.chosen:
        values = [v for v in ((base.get(objective.name) or (None,))[0], yardstick.get(objective.name)) if v is not None]
        if len(values) < 2:
            return None
        point.append(max(objective.oriented(value) for value in values))
    return point


class Points:
    """A study's points as its rungs are learnt, in the order in which they were recorded: what was run again is one point, at the mean, and infeasible
    in all if it once was. The same as `front_of` in storage/sql/front.sql, without reading 10,000 rungs for each that is new."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}  # of a hash
        self.sums = np.zeros((0, 1))  # with rows to spare
        self.counts = np.zeros(0)  # of repeats; infinite where the point is infeasible

    def learn(self, row: RungRow) -> None:
        if row.again:
            return
        place = self.places.setdefault(row.hash, len(self.places))
        if place == len(self.counts):
            spare = max(FEWEST_ROWS, place)
            self.sums = np.concatenate([self.sums.reshape(place, len(row.values)), np.zeros((spare, len(row.values)))])
            self.counts = np.concatenate([self.counts, np.zeros(spare)])
        self.sums[place] += row.values
        self.counts[place] += 1 if row.feasible else np.inf

    def means(self) -> np.ndarray:
        """Raw values of the feasible points, (n, m); of a joint reward (q, m)."""
        counts = self.counts[:len(self.places)]
        feasible = np.isfinite(counts)
        return self.sums[:len(counts)][feasible] / counts[feasible, None]


def undominated(points: np.ndarray) -> np.ndarray:
    """Those of the points, (n, m), oriented, that no other dominates, each once."""
    return np.unique(points[~dominated(points)], axis=0)


def of_points(objectives: Objectives, weight: float, means: np.ndarray, known: results.References | None, yardstick: Sequence[float] | None) -> float | None:
    """The hypervolume of these points, (n, m) raw, up to the study's reference point; None until base (known) and yardstick are measured.

    Of the joint reward, how far the best is above the worse of the base's, which is 0, and the yardstick's.
    """
    if known is None or yardstick is None:
        return None
    if objectives.is_joint_reward:
        def reward(q: Any, m: Any) -> Any:
            return objective_table.joint_reward(objectives, weight, q, m, known.q_base, known.q_real, known.m_base, yardstick[1])

        own = reward(*yardstick)
        return None if own is None or not len(means) else float(reward(means[:, 0], means[:, 1]).max() - min(0.0, own))
    reference = reference_point(objectives, dict(known.scores), dict(zip(objectives.names, yardstick)))
    if reference is None:
        return None
    signs = np.array([each.oriented(1.0) for each in objectives.chosen])
    inside = signs * means if len(means) else np.empty((0, len(signs)))
    inside = inside[(inside < reference).all(axis=1)]
    return objective_table.hypervolume(undominated(inside).tolist(), reference)


def hypervolume(store: Store, study_id: int, objectives: Objectives) -> float | None:
    """The same of the study's front as it stands in the store."""
    weight = results.settings(store, study_id)["binding"]["reward_weight"]
    means = np.array(standing.front_values(store, study_id), dtype=float)
    return of_points(objectives, weight, means, results.references(store, study_id), standing.yardstick_values(store, study_id))
