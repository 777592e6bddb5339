"""How a study stands, as the outer loop asks before it decides what comes next. Reading only; the queries are in sql/standing.sql."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text

from storage import leases
from storage.errors import RungLost
from storage.store import Store

LONGEST_WRITE = 60.0  # seconds, from when a trial's end is dated to when others see it: far more than the one statement takes


@dataclass(frozen=True)
class Baseline:
    """A trial that was run as a baseline: "yardstick", or a method's name. state: Optuna's."""

    trial_id: int
    number: int
    method: str
    baseline: str
    state: str
    reason: str | None


@dataclass(frozen=True)
class Evaluated:
    """A rung. number: its trial's; candidate: JSON, with the steps of the rung; values: raw scores of the objectives, [q, m] in a joint_reward study;
    parameters: the answers that gave the trial's candidate, None where there were none."""

    number: int
    candidate: Mapping[str, Any]
    values: tuple[float, ...]
    parameters: Mapping[str, Any] | None


@dataclass(frozen=True)
class Moment:
    """A study's newest rung, and a time of the server (UTC) before which all that has ended by then is known to have ended."""

    recorded: int
    ended: datetime


def baselines(store: Store, study_id: int) -> list[Baseline]:
    """By trial number."""
    return [Baseline(**row) for row in _rows(store, "SELECT * FROM peft_pareto.baselines(:study)", study=study_id)]


def yardstick(store: Store, study_name: str) -> dict[str, Any] | None:
    """The finished yardstick's row of the view trial_scores, None until there is one."""
    query = ("SELECT * FROM trial_scores WHERE study = :name AND trial = (SELECT min(b.number) FROM studies o "
             "CROSS JOIN LATERAL peft_pareto.baselines(o.study_id) b WHERE o.study_name = :name AND b.baseline = 'yardstick' AND b.state = 'COMPLETE')")
    found = _rows(store, query, name=study_name)
    return dict(found[0]) if found else None


def yardstick_values(store: Store, study_id: int) -> list[float] | None:
    """The finished yardstick's objectives at its own last rung, in order, [q, m] in a joint_reward study; None until there is one."""
    query = ("SELECT r.values FROM peft_pareto.yardsticks y JOIN peft_pareto.candidates c USING (trial_id) "
             "JOIN peft_pareto.rungs r ON r.trial_id = c.trial_id AND r.steps = c.steps WHERE y.study_id = :study")
    found = _rows(store, query, study=study_id)
    return list(found[0]["values"]) if found else None


def front_values(store: Store, study_id: int) -> list[list[float]]:
    """The objectives of each point of the front, means over its repeats, in order; [q, m] in a joint_reward study."""
    query = ("SELECT array_agg(o.mean ORDER BY o.place) AS values FROM (SELECT f.hash, given.place, avg(given.value) AS mean "
             "FROM peft_pareto.front_of(:study) AS f (hash) JOIN peft_pareto.rungs r ON r.study_id = :study AND r.hash = f.hash AND NOT r.again "
             "CROSS JOIN LATERAL unnest(r.values) WITH ORDINALITY AS given (value, place) GROUP BY f.hash, given.place) AS o GROUP BY o.hash")
    return [list(row["values"]) for row in _rows(store, query, study=study_id)]


def front_candidates(store: Store, study_id: int) -> list[tuple[dict[str, Any], int]]:
    """Of each point of the front: the candidate's JSON, with the steps of its rung, and how often it was run."""
    return [(row["candidate"], row["repeats"]) for row in _rows(store, "SELECT * FROM peft_pareto.front_candidates(:study)", study=study_id)]


def is_contender(store: Store, trial_id: int) -> bool:
    """Whether any of the trial's rungs is on the front, or may come to be: the means of those that dominate it are not final, or rewards not defined."""
    return _rows(store, "SELECT peft_pareto.is_contender(:trial) AS found", trial=trial_id)[0]["found"]


def is_begun(store: Store, study_id: int, hash: str) -> bool:
    """Whether any trial had this very candidate, however it ended."""
    query = "SELECT EXISTS (SELECT FROM peft_pareto.candidates WHERE study_id = :study AND hash = :hash) AS found"
    return _rows(store, query, study=study_id, hash=hash)[0]["found"]


def under_way(store: Store, study_id: int, root: str, repeat: int) -> int | None:
    """Number of a trial of this root and repeat that runs, or was left and waits to be taken up; None if there is none."""
    query = "SELECT peft_pareto.under_way(:study, :root, :repeat) AS found"
    return _rows(store, query, study=study_id, root=root, repeat=repeat)[0]["found"]


def last_recorded(store: Store, study_id: int) -> int:
    """The place of the study's newest rung in the order in which rungs were written; 0 if there is none."""
    return _rows(store, "SELECT coalesce(max(recorded), 0) AS found FROM peft_pareto.rungs WHERE study_id = :study", study=study_id)[0]["found"]


def evaluated(store: Store, study_id: int, until: int) -> list[Evaluated]:
    """All points in the order in which they were written, up to that place."""
    return [Evaluated(row["number"], row["candidate"], tuple(row["values"]), row["parameters"])
            for row in _rows(store, "SELECT * FROM peft_pareto.evaluated(:study, :until)", study=study_id, until=until)]


def system_attributes(store: Store, trial_ids: Collection[int]) -> dict[int, dict[str, Any]]:
    """What Optuna or a sampler of its has noted with these trials, by trial."""
    query = "SELECT trial_id, key, value_json FROM trial_system_attributes WHERE trial_id = ANY (CAST(:trials AS integer[]))"
    found: dict[int, dict[str, Any]] = {}
    for row in _rows(store, query, trials=list(trial_ids)):
        found.setdefault(row["trial_id"], {})[row["key"]] = json.loads(row["value_json"])
    return found


def repeats(store: Store, study_id: int) -> int:
    """How many trials were begun as another run of a candidate."""
    return _rows(store, "SELECT count(*) AS found FROM peft_pareto.candidates WHERE study_id = :study AND repeat > 0", study=study_id)[0]["found"]


def has_worked(store: Store, study_id: int) -> bool:
    """Whether anything but baselines was evaluated."""
    query = "SELECT EXISTS (SELECT FROM peft_pareto.rungs JOIN peft_pareto.candidates USING (trial_id) WHERE rungs.study_id = :study AND baseline IS NULL) AS found"
    return _rows(store, query, study=study_id)[0]["found"]


def rung_count(store: Store, study_id: int) -> int:
    """How many rungs were evaluated, of whatever trials: it grows as long as anybody gets anywhere."""
    return _rows(store, "SELECT count(*) AS found FROM peft_pareto.rungs WHERE study_id = :study", study=study_id)[0]["found"]


def values_at(store: Store, trial_id: int, steps: int) -> list[float]:
    """The objectives' scores of an evaluated rung, in order; [q, m] in a joint_reward study. Raises RungLost."""
    rows = _rows(store, "SELECT values FROM peft_pareto.rungs WHERE trial_id = :trial AND steps = :steps", trial=trial_id, steps=steps)
    if not rows:
        raise RungLost(trial_id, steps)
    return list(rows[0]["values"])


def evaluated_at(store: Store, trial_id: int) -> set[int]:
    """Steps of the trial's rungs so far."""
    return {row["steps"] for row in _rows(store, "SELECT steps FROM peft_pareto.rungs WHERE trial_id = :trial", trial=trial_id)}


def hypervolumes(store: Store, study_id: int) -> list[float]:
    """As trials were finished, from the first that was finished with or after the yardstick on. Where a worker ended before it had measured, it
    is that of before: a front shrinks only where a repeat lowers the mean of one of its points."""
    query = ("SELECT h.hypervolume FROM trials t JOIN peft_pareto.leases l USING (trial_id) LEFT JOIN peft_pareto.hypervolumes h USING (trial_id) "
             "WHERE t.study_id = :study AND t.state IN ('COMPLETE', 'PRUNED') ORDER BY l.settled_at, t.number")
    found: list[float] = []
    for row in _rows(store, query, study=study_id):
        if row["hypervolume"] is not None or found:
            found.append(found[-1] if row["hypervolume"] is None else row["hypervolume"])
    return found


def moment(store: Store, study_id: int) -> Moment:
    """Now. What is written later has a later one; what is being written may be counted as earlier and as later."""
    query = ("SELECT coalesce(max(recorded), 0) AS recorded, timezone('UTC', clock_timestamp()) - make_interval(secs => :longest) AS ended "
             "FROM peft_pareto.rungs WHERE study_id = :study")
    return Moment(**_rows(store, query, study=study_id, longest=LONGEST_WRITE)[0])


def droppable(store: Store, study_id: int, weights: str, state: str, kept: str, since: Moment | None = None) -> list[str]:
    """Paths of files that need not stay, as it came to be since then: see sql/standing.sql.

    weights, state: kinds of artifacts; kept: "front", "all" or "none"."""
    query = "SELECT path FROM peft_pareto.droppable(:study, :weights, :state, :kept, :recorded, CAST(:ended AS timestamp))"
    recorded, ended = (0, "-infinity") if since is None else (since.recorded, since.ended)
    return [row["path"] for row in _rows(store, query, study=study_id, weights=weights, state=state, kept=kept, recorded=recorded, ended=ended)]


def _rows(store: Store, query: str, **given: Any) -> list[Mapping[str, Any]]:
    with leases.translated(), store.at_once.connect() as connection:
        return list(connection.execute(text(query), given).mappings())


