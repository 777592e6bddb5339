"""What is counted after a fault: trials, rungs, scores, tensors of the front. Reads the database and the files, changes nothing."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from hpo import keeping
from metrics.scores import SCORES
from storage import leases, results
from trainers import checkpoint
from trainers.candidate import Candidate

if TYPE_CHECKING:
    from hpo.inner_loop import InnerLoop
    from hpo.study import Search

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
SHORT_RUNGS = """
SELECT r.trial_id, r.steps FROM peft_pareto.rungs r LEFT JOIN peft_pareto.scores x USING (trial_id, steps)
    WHERE r.study_id = :study GROUP BY 1, 2 HAVING count(x.name) <> :scores
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
#: The trials that lost a lease first: they are what an unbroken run is compared with.
TO_COMPARE = """
SELECT t.trial_id, t.number, c.json, c.repeat FROM trials t JOIN peft_pareto.candidates c USING (trial_id) JOIN peft_pareto.leases l USING (trial_id)
    WHERE t.study_id = :study AND t.state IN ('COMPLETE', 'PRUNED') AND (l.reason IS NOT NULL) = :broken ORDER BY t.number
"""


@dataclass(frozen=True)
class Counts:
    """After a fault. Numbers of trials; of rungs or trials whose scores are missing, or were paid for twice; of rungs compared with an unbroken run and
    of those that differ; of the front's points and of those whose tensors are not there or do not load. reasons: why trials failed."""

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
                 "nothing compared": not self.compared, "no front": not self.points, f"{self.bare} points without weights": self.bare}
        return [words for words, is_wrong in found.items() if is_wrong]


def counted(search: Search, inner: InnerLoop, sample: int) -> Counts:
    """sample: how many trials are run again, unbroken."""
    found = leases.counts(search.store, search.id)
    lost = sum(len(rows(search, query, scores=len(SCORES))) for query in (MISSING_RUNGS, SHORT_RUNGS, WRONG_REWARDS))
    broken = rows(search, TO_COMPARE, broken=True)
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
    """How many points the front has, and how many of them have no tensors that load."""
    noted = [Path(path) for paths in results.artifacts(search.store, search.id, keeping.WEIGHTS).values() for path in paths]
    hashes = front_hashes(search)
    return len(hashes), sum(not any(path.stem.endswith(f"-{each}") and loads(path, inner) for path in noted) for each in hashes)


def loads(path: Path, inner: InnerLoop) -> bool:
    try:
        checkpoint.load(path, inner.pipeline.unet, inner.units, inner.pipeline.hash, inner.cache).restore()
    except Exception:  # whatever it is, the point cannot be used
        return False
    return True


def compare(search: Search, inner: InnerLoop, sample: int, broken: list[Any]) -> tuple[int, int]:
    """Rungs of a few trials, those first that lost a lease, against the same candidates in one go: how many, and how many differ."""
    draw = random.Random(0)
    others = rows(search, TO_COMPARE, broken=False)
    chosen = draw.sample(broken, min(sample, len(broken)))
    chosen += draw.sample(others, min(sample - len(chosen), len(others)))
    verdicts = [same for trial in chosen for same in rerun(search, inner, trial)]
    return len(verdicts), verdicts.count(False)


def rerun(search: Search, inner: InnerLoop, trial: Any) -> list[bool]:
    """Whether each stored rung of a trial is what its candidate gives when nothing interrupts it."""
    from hpo.study import plain
    from hpo.tuning import Tuning

    stored: dict[int, dict[str, tuple[float, float, float]]] = {}
    for row in rows(search, "SELECT steps, name, value, low, high FROM peft_pareto.scores WHERE trial_id = :trial ORDER BY steps", trial=trial.trial_id):
        stored.setdefault(row.steps, {})[row.name] = (row.value, row.low, row.high)
    with Tuning(inner, Candidate.from_json(trial.json), trial.repeat) as tuning:
        return [agree(plain(tuning.to(steps).scores), scores) for steps, scores in stored.items()]


def agree(one: dict[str, tuple[float, ...]], other: dict[str, tuple[float, ...]]) -> bool:
    return one.keys() == other.keys() and all(math.isclose(a, b, rel_tol=SAME, abs_tol=SAME) for name in one for a, b in zip(one[name], other[name]))
