"""The hypervolume of a study's front: which reference point it is measured to, and what it is now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpo import objectives as objective_table
from hpo.objectives import Objectives
from storage import results, standing
from storage.store import Store


def reference_point(objectives: Objectives, base: Mapping[str, tuple], yardstick: Mapping[str, Any]) -> list[float] | None:
    """In each objective the worse of base's and yardstick's, oriented so that smaller is better; None if one is not known."""
    point = []
    for objective in objectives.chosen:
        values = [v for v in ((base.get(objective.name) or (None,))[0], yardstick.get(objective.name)) if v is not None]
        if len(values) < 2:
            return None
        point.append(max(objective.oriented(value) for value in values))
    return point


def hypervolume(store: Store, study: str, study_id: int, objectives: Objectives) -> float | None:
    """Of the front, up to the study's reference point; None until base and yardstick are measured.

    Of the joint reward, how far the best is above the worse of the base's, which is 0, and the yardstick's.
    """
    known, yardstick = results.references(store, study_id), standing.yardstick(store, study)
    if known is None or yardstick is None:
        return None
    front = results.front(store, study)
    if objectives.is_joint_reward:
        if yardstick["joint_reward"] is None or not front:
            return None
        return max(row["joint_reward"] for row in front) - min(0.0, yardstick["joint_reward"])
    reference = reference_point(objectives, dict(known.scores), yardstick)
    if reference is None:
        return None
    return objective_table.hypervolume([[each.oriented(row[each.name]) for each in objectives.chosen] for row in front], reference)
