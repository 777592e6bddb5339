"""What is counted after a fault: trials, rungs, scores, tensors of the front. Reads the database and the files, changes nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import text

from hpo import keeping
from metrics.scores import SCORES
from storage import leases, results
from trainers import checkpoint
from trainers.candidate import Candidate

if TYPE_CHECKING:
    from hpo.inner_loop import InnerLoop
    from hpo.study import Search
    from metrics.scores import Scores

#: Of a score: value, ends of its interval, replicates as they are stored (float32), None where there are none.
Stored = tuple[float, float, float, np.ndarray | None]

SAME = 1e-9  # relative: the same training on the same machine gives the same weights, bit for bit, and so the same scores

#: Rungs that a finished trial must have reached, which neither it nor another trial of the same training has.
MISSING_RUNGS = """
SELECT t.number, wanted.steps FROM trials t JOIN peft_pareto.candidates c USING (trial_id) CROSS JOIN LATERAL unnest(c.rungs) AS wanted (steps)
    WHERE t.study_id = :study
      AND (t.state = 'COMPLETE' OR t.state = 'PRUNED' AND wanted.steps <= (SELECT max(steps) FROM peft_pareto.rungs r WHERE r.trial_id = t.trial_id))
      AND NOT EXISTS (SELECT FROM peft_pareto.rungs r JOIN peft_pareto.candidates o USING (trial_id)
                      WHERE r.study_id = t.study_id AND r.steps = wanted.steps AND o.root = c.root AND o.repeat = c.repeat)
UNION ALL
SELECT t.number, NULL FROM trials t WHERE t.study_id = :study AND t.state = 'PRUNED'
    AND NOT EXISTS (SELECT FROM peft_pareto.rungs r WHERE r.trial_id = t.trial_id)
"""
#: Rungs without all scores, or without the replicates of an objective's.
SHORT_RUNGS = """
SELECT r.trial_id, r.steps FROM peft_pareto.rungs r JOIN peft_pareto.studies s USING (study_id) LEFT JOIN peft_pareto.scores x USING (trial_id, steps)
    WHERE r.study_id = :study GROUP BY 1, 2
    HAVING count(x.name) <> :scores OR bool_or(x.replicates IS NULL AND CASE WHEN s.objectives = '["joint_reward"]'
        THEN x.name IN (s.quality, s.memorization) ELSE jsonb_exists(s.objectives, x.name) END)
"""
#: Complete trials whose reward, as Optuna has it, is not their last rung.
WRONG_REWARDS = """
SELECT t.number FROM trials t JOIN peft_pareto.candidates c USING (trial_id) LEFT JOIN peft_pareto.rungs r ON r.trial_id = t.trial_id AND r.steps = c.steps
    WHERE t.study_id = :study AND t.state = 'COMPLETE'
      AND r.values IS DISTINCT FROM (SELECT array_agg(v.value ORDER BY v.objective) FROM trial_values v WHERE v.trial_id = t.trial_id)
"""
FAILURES = "SELECT l.reason FROM peft_pareto.leases l JOIN trials t USING (trial_id) WHERE t.study_id = :study AND l.outcome = 'failed' ORDER BY t.number"
#: The same candidate, measured again though nobody asked for a repeat.
DOUBLED = "SELECT trial_id, steps FROM peft_pareto.rungs WHERE study_id = :study AND again"
TO_COMPARE = """
SELECT t.trial_id, t.number, c.json, c.repeat FROM trials t JOIN peft_pareto.candidates c USING (trial_id)
    WHERE t.study_id = :study AND t.state IN ('COMPLETE', 'PRUNED') ORDER BY t.number
"""
#: What each run of a point of the front measured.
FRONT_RUNGS = """
SELECT t.number, r.trial_id, r.steps, r.hash, c.repeat FROM peft_pareto.rungs r JOIN trials t USING (trial_id) JOIN peft_pareto.candidates c USING (trial_id)
    WHERE r.study_id = :study AND r.hash IN (SELECT hash FROM peft_pareto.front_of(:study) AS f (hash))
"""


@dataclass(frozen=True)
class Counts:
    """After a fault. Numbers of trials; of rungs or trials whose scores are missing, or were paid for twice; of rungs compared with an unbroken run and
    of those that differ; of the front's points and of those whose tensors are not there, do not load or do not give the stored scores. reasons: why trials
    failed."""

    asked: int
    finished: int
    running: int
    failed: int
    lost: int
    doubled: int
    compared: int
    different: int
    points: int
    bare: int
    reasons: tuple[str, ...]

    @property
    def wrong(self) -> list[str]:
        """What must not be, in words."""
        found = {f"{self.finished} finished": self.finished != self.asked, f"{self.running} left running or waiting": self.running,
                 f"{self.lost} scores lost": self.lost, f"{self.doubled} doubled": self.doubled, f"{self.different} other than unbroken": self.different,
                 "nothing compared": not self.compared, "no front": not self.points, f"{self.bare} points without usable weights": self.bare}
        return [words for words, is_wrong in found.items() if is_wrong]


def counted(search: Search, inner: InnerLoop, sample: int, broken: Collection[int] = ()) -> Counts:
    """sample: how many trials are run again, unbroken; broken: ids of those that lost a lease."""
    found = leases.counts(search.store, search.id)
    lost = sum(len(rows(search, query, scores=len(SCORES))) for query in (MISSING_RUNGS, SHORT_RUNGS, WRONG_REWARDS))
    points, bare = front(search, inner)
    compared, different = compare(search, inner, sample, broken)
    return Counts(found.trials, found.finished, found.running + found.waiting, found.failed, lost, len(rows(search, DOUBLED)), compared, different,
                  points, bare, tuple((row.reason or "no reason").partition(", at last")[0] for row in rows(search, FAILURES)))


def rows(search: Search, query: str, **given: Any) -> list[Any]:
    with leases.translated(), search.store.engine.connect() as connection:
        return list(connection.execute(text(query), {"study": search.id, **given}))


def front_hashes(search: Search) -> set[str]:
    return {row.hash for row in rows(search, "SELECT hash FROM peft_pareto.front_of(:study) AS f (hash)")}


def front_roots(search: Search) -> set[str]:
    """Roots of the candidates that have a rung on the front."""
    return {row.root for row in rows(search, "SELECT DISTINCT c.root FROM peft_pareto.rungs r JOIN peft_pareto.candidates c USING (trial_id) "
                                             "WHERE r.study_id = :study AND r.hash IN (SELECT hash FROM peft_pareto.front_of(:study) AS f (hash))")}


def pictures(search: Search) -> set[str]:
    """Ids of the artifacts that trials of any study in this database have noted."""
    return {row.id for row in rows(search, "SELECT CAST(CAST(value_json AS jsonb) #>> '{}' AS jsonb) ->> 'artifact_id' AS id "
                                           "FROM trial_system_attributes WHERE key LIKE 'artifacts:%'")}


def front(search: Search, inner: InnerLoop) -> tuple[int, int]:
    """How many points the front has, and how many of them have no tensors, or some that are of no use, whichever of its runs they are of."""
    noted = results.artifacts(search.store, search.id, keeping.WEIGHTS)
    usable: dict[str, list[bool]] = {each: [] for each in front_hashes(search)}
    for rung in rows(search, FRONT_RUNGS):
        usable[rung.hash] += [is_usable(search, inner, rung, path) for path in map(Path, noted.get(rung.number, ())) if path.stem.endswith(f"-{rung.hash}")]
    return len(usable), sum(not found or not all(found) for found in usable.values())


def is_usable(search: Search, inner: InnerLoop, rung: Any, path: Path) -> bool:
    """Whether kept tensors load, and the model that they make is measured again as the rung was."""
    try:
        candidate = checkpoint.read(path).candidate
        subset = checkpoint.load(path, inner.pipeline.unet, inner.units, inner.pipeline.hash, inner.cache)
        try:
            with subset.generating():
                measured, _ = inner.measure_all(candidate, inner.learned("train", inner.training_seed(candidate, rung.repeat)))
        finally:
            subset.restore()
        return agree(stored_form(inner.scores(measured)), stored(search, rung.trial_id)[rung.steps])
    except Exception:  # whatever it is, the point cannot be used
        return False


def compare(search: Search, inner: InnerLoop, sample: int, broken: Collection[int]) -> tuple[int, int]:
    """Rungs of a few trials, those first that lost a lease, against the same candidates in one go: how many, and how many differ."""
    chosen = chosen_of(rows(search, TO_COMPARE), sample, broken)
    verdicts = [same for trial in chosen for same in rerun(search, inner, trial)]
    return len(verdicts), verdicts.count(False)


def chosen_of(trials: list[Any], sample: int, broken: Collection[int]) -> list[Any]:
    draw = random.Random(0)
    first, others = ([each for each in trials if (each.trial_id in broken) is is_broken] for is_broken in (True, False))
    chosen = draw.sample(first, min(sample, len(first)))
    return chosen + draw.sample(others, min(sample - len(chosen), len(others)))


def rerun(search: Search, inner: InnerLoop, trial: Any) -> list[bool]:
    """Whether each stored rung of a trial is what its candidate gives when nothing interrupts it."""
    from hpo.tuning import Tuning

    with Tuning(inner, Candidate.from_json(trial.json), trial.repeat) as tuning:
        return [agree(stored_form(tuning.to(steps).scores), scores) for steps, scores in stored(search, trial.trial_id).items()]


def stored(search: Search, trial_id: int) -> dict[int, dict[str, Stored]]:
    """A trial's scores by steps, ascending."""
    found: dict[int, dict[str, Stored]] = {}
    for row in rows(search, "SELECT steps, name, value, low, high, replicates FROM peft_pareto.scores WHERE trial_id = :trial ORDER BY steps", trial=trial_id):
        found.setdefault(row.steps, {})[row.name] = row.value, row.low, row.high, None if row.replicates is None else np.array(row.replicates, np.float32)
    return found


def stored_form(scores: Scores) -> dict[str, Stored]:
    return {name: (each.value, each.low, each.high, None if each.replicates is None else np.asarray(each.replicates, np.float32))
            for name, each in scores.items()}


def agree(one: dict[str, Stored], other: dict[str, Stored]) -> bool:
    """Values and intervals within SAME, replicates bit for bit."""
    return one.keys() == other.keys() and all(
        all(math.isclose(a, b, rel_tol=SAME, abs_tol=SAME) for a, b in zip(one[name][:3], other[name][:3]))
        and (one[name][3] is None) is (other[name][3] is None) and (one[name][3] is None or np.array_equal(one[name][3], other[name][3])) for name in one)
