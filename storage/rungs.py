"""Evaluated rungs: recording one, what is known of a candidate, reading all that are new, and replicates. Part of `storage.trials`."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import text

from storage import leases
from storage.errors import BadValue
from storage.plain import dumped, number, optional
from storage.store import Store

#: Bootstrap draws of patients with every score.
REPLICATES = 256

# COPY … (FORMAT BINARY): a fixed header, then rows of (recorded bigint, objectives integer, replicates real[256]), all of
# the same size since the table lets in no other number of replicates and no NULL (PostgreSQL manual, COPY; array_send).
COPY_HEADER = 19
COPY_TRAILER = 2
CELL = np.dtype([("size", ">i4"), ("value", ">f4")])
ROW = np.dtype([("fields", ">i2"), ("size_0", ">i4"), ("recorded", ">i8"), ("size_1", ">i4"), ("objectives", ">i4"), ("size_2", ">i4"),
                ("array_header", ">i4", 5), ("cells", CELL, REPLICATES)])  # fmt: skip


# In the order of RungRow, with a set's distributions by number; violations NULL if there are none, as usual. A trial's
# parameters are sent once, however many rungs are new.
NEW_RUNGS = """
SELECT r.recorded, r.trial_id, t.number, r.steps, r.hash, c.root, c.repeat, c.method, r.values, r.seconds, r.feasible,
       CAST(nullif(r.violations, '{}') AS text), c.distributions_id, c.baseline, c.yardstick, c.steps, r.again
    FROM peft_pareto.rungs r JOIN trials t USING (trial_id) JOIN peft_pareto.candidates c USING (trial_id)
    WHERE r.study_id = %(study)s AND r.recorded > %(recorded)s ORDER BY r.recorded
"""
# By ids and not by a join: of a study that grew since the server last counted its rows it expects none, and would compare each with each.
NEW_PARAMETERS = "SELECT trial_id, CAST(parameters AS text) FROM peft_pareto.candidates WHERE trial_id = ANY (%s) AND parameters IS NOT NULL"


@dataclass(frozen=True)
class KnownRung:
    """What was evaluated of a root at some steps. `scores`: name -> (value, low, high, replicates (256,) float32 or None)."""

    trial_id: int
    number: int
    steps: int
    hash: str
    words: str
    values: tuple[float, ...]
    seconds: float
    memory: int | None
    violations: Mapping[str, float]
    scores: Mapping[str, tuple[float, float | None, float | None, np.ndarray | None]]


class RungRow(NamedTuple):
    """An evaluated rung with what a sampler or a stopping rule needs of it.

    values: raw scores of the study's objectives, in order; of a joint_reward study (q, m). `steps` is the rung's,
    `own_steps` the candidate's last. parameters: external values by name, distributions: JSON object, name -> Optuna's
    distribution_to_json, both None in studies of before; equal texts are one object. again: another trial had evaluated
    this very rung.
    """

    recorded: int
    trial_id: int
    number: int
    steps: int
    hash: str
    root: str
    repeat: int
    method: str
    values: tuple[float, ...]
    seconds: float
    feasible: bool
    violations: Mapping[str, float]
    parameters: Mapping[str, Any] | None
    distributions: str | None
    baseline: str | None
    yardstick: bool
    own_steps: int
    again: bool


def record_rung(
    store: Store,
    trial_id: int,
    steps: int,
    hash: str,
    words: str,
    values: Sequence[float],
    scores: Mapping[str, tuple],
    seconds: float,
    memory: int | None = None,
    violations: Mapping[str, float] | None = None,
) -> None:
    """An evaluated rung of a trial that this worker holds; again, it replaces, and keeps its place in the order.

    steps: one of the candidate's rungs; hash, words: of the candidate that stops there. values: the objectives' scores in
    order, raw ([q, m] in a joint_reward study). scores: name -> (value, low, high, replicates), the last may be left out or
    None, else (256,) floats, the same draws in every trial. seconds: busy seconds of the trial until these scores, over all
    its workers; memory: peak bytes; violations: constraint -> number, > 0 = violated, so that the point is on no front.
    A new rung resets the trial's losses. Raises LeaseLost, BadValue (NaN or infinite, no rung of this trial, wrong arity).
    """
    rows = {name: (*score, None)[:4] if len(score) < 4 else tuple(score) for name, score in scores.items()}
    given = {
        "trial": trial_id, "steps": int(steps), "hash": hash, "words": words, "seconds": number("seconds", seconds),
        "values": [number(f"objective {place}", value) for place, value in enumerate(values)],
        "memory": None if memory is None else int(memory),
        "violations": dumped({name: number(f"violation of {name}", value) for name, value in (violations or {}).items()}),
        "names": list(rows), "scores": [number(name, row[0]) for name, row in rows.items()],
        "lows": [optional(f"bound of {name}", row[1]) for name, row in rows.items()],
        "highs": [optional(f"bound of {name}", row[2]) for name, row in rows.items()],
        "draws": [_literal(name, row[3]) for name, row in rows.items()],
    }  # fmt: skip
    query = (
        "SELECT peft_pareto.record_rung(:trial, :steps, :hash, :words, CAST(:values AS double precision[]), "
        "CAST(:seconds AS double precision), CAST(:memory AS bigint), CAST(:violations AS jsonb), CAST(:names AS text[]), "
        "CAST(:scores AS double precision[]), CAST(:lows AS double precision[]), CAST(:highs AS double precision[]), CAST(:draws AS text[]))"
    )
    with leases.translated(), store.at_once.connect() as connection:
        connection.execute(text(query), given)


def known_rungs(store: Store, study_id: int, root: str, repeat: int = 0) -> dict[int, KnownRung]:
    """What was evaluated of this root and repeat by whatever trial, by steps: a longer training need not pay for it again."""
    query = "SELECT * FROM peft_pareto.known_rungs(:study, :root, :repeat)"
    found = {}
    with leases.translated(), store.at_once.connect() as connection:
        for row in connection.execute(text(query), {"study": study_id, "root": root, "repeat": int(repeat)}).mappings():
            scores = {name: (*score[:3], None if score[3] is None else np.array(score[3], np.float32))
                      for name, score in (row["scores"] or {}).items()}  # fmt: skip
            found[row["steps"]] = KnownRung(**{**row, "values": tuple(row["values"]), "scores": scores})
    return found


def rungs_since(store: Store, study_id: int, recorded: int = 0, texts: dict[int, str] | None = None) -> list[RungRow]:
    """Evaluated rungs of the study with a larger `recorded` than given, in that order, whatever became of their trials.

    Nothing is missed by asking next time from the last one's number: numbers ascend in the order of commits. texts: of
    distributions that were read before, by their id, and are not read again; what is new is added.
    """
    given = {"study": study_id, "recorded": int(recorded)}
    kinds = {} if texts is None else texts
    with leases.translated(), store.at_once.connect() as connection, connection.connection.cursor() as cursor:
        # The driver's own cursor: SQLAlchemy's rows would double the time of ten thousand trials.
        cursor.execute(NEW_RUNGS, given)
        found = cursor.fetchall()
        if not found:
            return []
        cursor.execute(NEW_PARAMETERS, (list({row[1] for row in found}),))
        rows = cursor.fetchall()
        missing = {row[12] for row in found} - kinds.keys() - {None}
        if missing:
            cursor.execute("SELECT distributions_id, json FROM peft_pareto.distributions WHERE distributions_id = ANY (%s)", (list(missing),))
            kinds.update(cursor.fetchall())
    # In one go, so that the names of parameters are made once.
    proposed = dict(zip((trial for trial, _ in rows), json.loads(f"[{','.join(said for _, said in rows)}]"), strict=True))
    return [
        RungRow(*row[:8], tuple(row[8]), *row[9:11], json.loads(row[11]) if row[11] else {}, proposed.get(row[1]), kinds.get(row[12]),
                *row[13:]) for row in found
    ]  # fmt: skip


def replicates_of(store: Store, study_id: int, recorded: Collection[int]) -> dict[int, np.ndarray]:
    """Bootstrap replicates of the objectives of these rungs, by `recorded`: (objectives, 256) float32 in the order of the rung's
    values. A rung is left out where not every objective has them. Binary, since text takes ten times as long."""
    if not recorded:
        return {}
    query = (
        "COPY (SELECT r.recorded, cardinality(r.values), x.replicates FROM peft_pareto.studies s "
        "CROSS JOIN LATERAL jsonb_array_elements_text(CASE WHEN s.objectives = '[\"joint_reward\"]' "
        "THEN jsonb_build_array(s.quality, s.memorization) ELSE s.objectives END) WITH ORDINALITY AS o (name, place) "
        "JOIN peft_pareto.rungs r ON r.study_id = s.study_id "
        "JOIN peft_pareto.scores x ON x.trial_id = r.trial_id AND x.steps = r.steps AND x.name = o.name "
        f"WHERE s.study_id = {int(study_id)} AND r.recorded IN ({', '.join(str(int(each)) for each in recorded)}) "
        "AND x.replicates IS NOT NULL ORDER BY r.recorded, o.place) TO STDOUT (FORMAT BINARY)"
    )
    stream = io.BytesIO()
    with leases.translated(), store.at_once.connect() as connection, connection.connection.cursor() as cursor:
        cursor.copy_expert(query, stream)
    rows = np.frombuffer(stream.getbuffer()[COPY_HEADER:-COPY_TRAILER], ROW)
    drawn = rows["cells"]["value"].astype(np.float32)
    numbers, first, count = np.unique(rows["recorded"], return_index=True, return_counts=True)
    return {int(one): drawn[at : at + n] for one, at, n in zip(numbers, first, count, strict=True) if n == rows["objectives"][at]}


def _literal(name: str, draws: Any) -> str | None:
    """Replicates as PostgreSQL's array literal."""
    if draws is None:
        return None
    given = np.asarray(draws, np.float32)
    if given.shape != (REPLICATES,) or not np.isfinite(given).all():
        raise BadValue(f"replicates of {name} must be {REPLICATES} finite numbers, got shape {given.shape} with {int((~np.isfinite(given)).sum())} others")
    return "{" + ",".join(map(repr, given.tolist())) + "}"
