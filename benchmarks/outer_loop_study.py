"""Studies of any size for `benchmarks.outer_loop`, written in bulk as a search of ours would have left them, and one trial of them without training."""

from __future__ import annotations

import csv
import io
import json
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psycopg2
from optuna.distributions import distribution_to_json
from optuna.trial import FixedTrial
from optuna_dashboard._note import note_str_key_prefix, note_ver_key

from benchmarks.outer_loop_space import propose
from hpo import keeping
from hpo.ending import Ended
from hpo.flat import at
from hpo.inner_loop import Result
from hpo.notes import COLUMNS, ROWS
from hpo.settings import Settings
from hpo.spaces.base import Trained
from hpo.spaces.reference import BASELINES, reference_candidate
from hpo.study import Asked, Search
from hpo.trial import run_trial
from hpo.tuning import STAGES_A_TRAINING
from metrics.estimate import Estimate
from metrics.scores import SCORES, Scores
from storage import results
from storage.engine import plain
from storage.store import open_store, worker_name
from trainers.candidate import Candidate

SPACE = f"{Path(__file__).with_name('outer_loop_space.py')}:propose"
IDENTITY = {"model": "m", "encoder": "e", "data": "d"}
BASE = {name: (0.0, 0.0, 0.0) for name in SCORES} | {"fd": (9.0, 8.9, 9.1)}
REPLICATES, SPREAD = 256, 0.05
SURVIVE = 1 / 3  # of a rung's trials, those that are not stopped there
SECONDS = 30.0  # of a trial, as it is noted
HELD_OUT_EVERY = Settings.held_out_every
NOTE = json.dumps("x" * 2045)  # a piece of a trial's note, as the dashboard stores it


class Drawn(FixedTrial):
    """Answers at random, without a study."""

    def __init__(self, generator: np.random.Generator):
        super().__init__({})
        self.generator = generator

    def _suggest(self, name: str, distribution: Any) -> Any:
        self._params.setdefault(name, at(distribution, float(self.generator.random())))
        return super()._suggest(name, distribution)


def settings(name: str, trials: int, **more: Any) -> Settings:
    return Settings(study=name, trials=trials, space=SPACE, **more)


def join(url: str, chosen: Settings, trained: Trained | None = None) -> Search:
    """A worker's part in a registered study. trained: the U-Net's shapes, where a process has read them already."""
    search = Search(open_store(url, worker_name()), chosen)
    if trained is not None:
        search.trained = trained
    search.register(None, IDENTITY)
    return search


def create(url: str, chosen: Settings) -> Search:
    search = Search(open_store(url, worker_name()), chosen)
    search.register(chosen.trials, IDENTITY)
    results.record_references(search.store, search.id, q_base=9.0, q_real=0.1, m_base=0.0, scores=BASE, base=None)
    return search


def measured(generator: np.random.Generator) -> tuple[float, float]:
    """fd and copy_excess that trade off, so that the front has tens of points."""
    u = generator.random()
    return 2 + 3 * (1 - u) ** 2 + abs(generator.normal()), u**2 + 0.5 * abs(generator.normal())


def scores(generator: np.random.Generator) -> Scores:
    """As an evaluation gives them, with replicates."""
    def around(value: float) -> Estimate:
        return Estimate(value, value - 2 * SPREAD, value + 2 * SPREAD, (value + SPREAD * generator.standard_normal(REPLICATES)).astype(np.float32))

    fd, copy_excess = measured(generator)
    return Scores({name: around(0.25) for name in SCORES} | {"fd": around(fd), "copy_excess": around(copy_excess)})


@dataclass
class Timed:
    """Seconds spent in a function, of the clock and of this process, summed until they are taken."""

    call: Callable[..., Any]
    seconds: float = 0.0
    processor: float = 0.0

    def __call__(self, *given: Any, **named: Any) -> Any:
        started, used = time.perf_counter(), time.process_time()
        try:
            return self.call(*given, **named)
        finally:
            self.seconds += time.perf_counter() - started
            self.processor += time.process_time() - used

    def taken(self) -> float:
        seconds, self.seconds, self.processor = self.seconds, 0.0, 0.0
        return seconds


def one_trial(search: Search, generator: np.random.Generator, at_rung: Callable[[Asked], None] = lambda asked: None) -> Asked:
    """Ask, report each rung, tell. at_rung: called before each report, in the trial's time."""
    asked = search.ask()
    assert isinstance(asked, Asked), asked.reason if isinstance(asked, Ended) else asked
    stop = False
    for steps in asked.rungs:
        at_rung(asked)
        stop = search.report(asked, steps, scores(generator), 1234, SECONDS, None)
        if stop:
            break
    search.finish(asked, stop)
    return asked


class NothingKept:
    """In the place of hpo.inner_loop.InnerLoop: no network computes, and no training left a state."""

    def seen_working(self, sign: Callable[[], None]) -> AbstractContextManager[None]:
        return nullcontext()

    def kept_step(self, candidate: Candidate, repeat: int, state: Path) -> None:
        return None


class Untrained:
    """In the place of hpo.tuning.Tuning: says and writes all that it would, without fine-tuning, generating or measuring anything."""

    def __init__(self, inner: NothingKept, candidate: Candidate, repeat: int, on_stage: Callable[[str], None], state: Path,
                 on_loss: Callable[[int, float, float], None], on_save: Callable[[], None]):
        self.candidate, self.on_stage, self.state, self.on_loss, self.on_save = candidate, on_stage, state, on_loss, on_save
        self.generator, self.done, self.curve = np.random.default_rng(int(candidate.hash[:12], 16)), 0, {}

    def __enter__(self) -> Untrained:
        self.on_stage("applying the method")
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def carried(self, reached: int) -> float:
        return 0.0

    def to(self, steps: int) -> Result:
        for step in range(self.done + 1, steps + 1):
            if step % max(self.candidate.steps // STAGES_A_TRAINING, 1) == 0:
                self.on_stage(f"step {step} of {self.candidate.steps}")
            if step % HELD_OUT_EVERY == 0:
                self.curve[step] = (1.0, 1.0)
                self.on_loss(step, *self.curve[step])
        self.done = steps
        for stage in ("generating", "scoring"):
            self.on_stage(stage)
        pictures = self.generator.integers(0, 256, (COLUMNS * ROWS, 64, 64), np.uint8)
        return Result(scores(self.generator), steps, 1234, 0.01, 0.5, {"training": SECONDS, "total": SECONDS}, pictures, dict(self.curve))

    def keep(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def save(self) -> None:
        self.on_save()
        self.keep(self.state)


def whole_trial(search: Search) -> None:
    """Ask, and all that hpo.trial does with what is asked: rungs, curve, notes, tensors and states, telling, and deleting what need not be kept."""
    asked = search.ask()
    assert isinstance(asked, Asked), asked.reason if isinstance(asked, Ended) else asked
    with patch("hpo.trial.Tuning", Untrained):
        ending = run_trial(search, NothingKept(), asked)
        try:
            while True:
                next(ending)
        except StopIteration as ended:
            assert ended.value in ("finished", "stopped"), ended.value  # else it is something else that was timed


# Writing in bulk, without the triggers, which would refuse to let trials be written finished.


@dataclass
class Rows:
    """Rows of one table, to be copied into it."""

    table: str
    columns: tuple[str, ...]
    rows: list[tuple] = field(default_factory=list)

    def copy(self, cursor: Any) -> None:
        text = io.StringIO()
        csv.writer(text).writerows(self.rows)
        text.seek(0)
        cursor.copy_expert(f"COPY {self.table} ({', '.join(self.columns)}) FROM STDIN (FORMAT CSV)", text)


def fill(search: Search, count: int, seed: int = 0) -> None:
    """`count` finished trials, the baselines first: each stopped at a rung or not, with scores and replicates, a note, and tensors on another machine."""
    generator = np.random.default_rng(seed)
    connection = psycopg2.connect(plain(search.store.url))
    with connection, connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")
        cursor.execute("SELECT coalesce(max(trial_id), 0) FROM trials")
        first = cursor.fetchone()[0] + 1
        for rows in written(search, range(first, first + count), generator, cursor):
            rows.copy(cursor)
        cursor.execute("SELECT setval(pg_get_serial_sequence('trials', 'trial_id'), %s)", (first + count,))
        draws(search, cursor, generator)
        cursor.execute("SELECT peft_pareto.learn_points(%s, NULL)", (search.id,))
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")  # as autovacuum does while a study grows
    connection.close()


def written(search: Search, ids: range, generator: np.random.Generator, cursor: Any) -> Iterable[Rows]:
    trials = Rows("trials", ("trial_id", "number", "study_id", "state", "datetime_start", "datetime_complete"))
    values = Rows("trial_values", ("trial_id", "objective", "value", "value_type"))
    parameters = Rows("trial_params", ("trial_id", "param_name", "param_value", "distribution_json"))
    leases = Rows("peft_pareto.leases", ("trial_id", "study_id", "worker", "request", "expires_at", "outcome", "settled_at"))
    candidates = Rows("peft_pareto.candidates", ("trial_id", "study_id", "hash", "root", "repeat", "words", "method", "steps", "rungs", "json", "trainable",
                                                 "trainable_share", "baseline", "yardstick", "parameters", "distributions_id"))
    artifacts = Rows("peft_pareto.artifacts", ("trial_id", "kind", "path"))
    notes = Rows("study_system_attributes", ("study_id", "key", "value_json"))
    rungs = Rows("peft_pareto.rungs", ("trial_id", "steps", "study_id", "hash", "words", "values", "seconds"))
    known = Distributions(search.id, cursor)
    for number, trial in enumerate(ids):
        baseline = BASELINES[number] if number < len(BASELINES) else None
        asked = Drawn(generator)
        candidate = propose(asked, search.bounds) if baseline is None else reference_candidate(baseline, search.settings.steps)
        reached = list(search.rungs_of(candidate, baseline))
        kept = len(reached) if baseline else min(len(reached), generator.geometric(1 - SURVIVE))
        when = "2026-01-01 00:00:00"
        trials.rows.append((trial, number, search.id, "COMPLETE" if kept == len(reached) else "PRUNED", when, when))
        leases.rows.append((trial, search.id, "filled", str(uuid.uuid4()), when, "finished", when))
        candidates.rows.append((trial, search.id, candidate.hash, candidate.root, 0, candidate.words, candidate.method, candidate.steps,
                                array(reached), json.dumps(candidate.to_json()), 1234, 0.01, "yardstick" if number == 0 else baseline, number == 0,
                                json.dumps(dict(asked.params)), known.number_of(asked)))
        for name, value in asked.params.items():
            parameters.rows.append((trial, name, asked.distributions[name].to_internal_repr(value), known.text(asked.distributions[name])))
        for steps in reached[:kept]:
            point = measured(generator)
            rung = at_steps(candidate, steps)
            rungs.rows.append((trial, steps, search.id, rung.hash, rung.words, array(point), SECONDS))
            artifacts.rows.append((trial, keeping.WEIGHTS, f"/elsewhere/trial-{number:05d}-{search.token}-{rung.hash}.safetensors"))
        notes.rows += [(search.id, note_ver_key(trial), kept), (search.id, f"{note_str_key_prefix(trial)}0", NOTE)]
        values.rows += [(trial, objective, value, "FINITE") for objective, value in enumerate(point) if kept == len(reached)]
    return trials, values, parameters, leases, candidates, rungs, artifacts, notes


def at_steps(candidate: Candidate, steps: int) -> Candidate:
    return Candidate.from_json({**candidate.to_json(), "steps": steps})


def array(values: Iterable[Any]) -> str:
    return "{" + ",".join(map(str, values)) + "}"


class Distributions:
    """Distributions as they are stored, each set once."""

    def __init__(self, study: int, cursor: Any):
        self.study, self.cursor, self.numbers, self.texts = study, cursor, {}, {}

    def text(self, distribution: Any) -> str:
        if distribution not in self.texts:
            self.texts[distribution] = distribution_to_json(distribution)
        return self.texts[distribution]

    def number_of(self, trial: FixedTrial) -> int:
        names = tuple(trial.distributions)
        if names not in self.numbers:
            said = json.dumps({name: self.text(each) for name, each in trial.distributions.items()})
            self.cursor.execute("INSERT INTO peft_pareto.distributions (study_id, digest, json) VALUES (%s, md5(%s), %s) RETURNING distributions_id",
                                (self.study, said, said))
            self.numbers[names] = self.cursor.fetchone()[0]
        return self.numbers[names]


def draws(search: Search, cursor: Any, generator: np.random.Generator) -> None:
    """All scores of all rungs; replicates around the value of the two objectives, and as they come for the others, which nobody reads."""
    noise = (SPREAD * generator.standard_normal(REPLICATES)).tolist()
    others = [name for name in SCORES if name not in search.objectives.names]
    cursor.execute("INSERT INTO peft_pareto.scores (trial_id, steps, name, value, low, high, replicates) "
                   "SELECT r.trial_id, r.steps, o.name, o.value, o.value - 0.1, o.value + 0.1, "
                   "(SELECT array_agg((o.value + d)::real) FROM unnest(%s::real[]) AS d) "
                   "FROM peft_pareto.rungs r CROSS JOIN LATERAL unnest(%s::text[], r.values) AS o (name, value) WHERE r.study_id = %s",
                   (noise, list(search.objectives.names), search.id))
    cursor.execute("INSERT INTO peft_pareto.scores (trial_id, steps, name, value, low, high, replicates) "
                   "SELECT r.trial_id, r.steps, o.name, 0.25, 0.2, 0.3, %s::real[] FROM peft_pareto.rungs r CROSS JOIN unnest(%s::text[]) AS o (name) "
                   "WHERE r.study_id = %s", (noise, others, search.id))
