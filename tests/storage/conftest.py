"""One real embedded server for all tests of the store, and a database or a registered study for each that asks."""

from __future__ import annotations

import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
import psycopg2
import pytest
from optuna.distributions import FloatDistribution, distribution_to_json
from sqlalchemy import text

import storage
from storage import embedded, results, trials
from storage.store import Store, worker_name
from storage.trials import Started

SCORES = ("fd", "kid", "loss_gap", "copy_excess", "copy_rate", "amd_train", "amd_twin")
X = distribution_to_json(FloatDistribution(0, 1))
DIRECTIONS = {name: "maximize" if name.startswith("amd") else "minimize" for name in SCORES}


@pytest.fixture(scope="session")
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for a socket's name; pytest's own are too deep for some."""
    folder = Path(tempfile.mkdtemp(prefix="pp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server(short_folder: Path) -> Iterator[str]:
    """URL of the running embedded server; it is never crashed, so that it need not wait for the disk."""
    url = embedded.start(short_folder)
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("ALTER SYSTEM SET fsync = off")
        cursor.execute("SELECT pg_reload_conf()")
    connection.close()
    yield url
    embedded.stop(short_folder)


@pytest.fixture
def database(server: str) -> str:
    """URL of an empty database."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    connection = psycopg2.connect(server)
    connection.autocommit = True
    connection.cursor().execute(f"CREATE DATABASE {name}")
    connection.close()
    return server.replace("/peft_pareto?", f"/{name}?")


@pytest.fixture
def opened(server: str) -> Iterator[Callable[..., Store]]:
    """Opens stores, each with a worker's name of its own unless told otherwise, and closes them."""
    stores: list[Store] = []

    def open_one(worker: str | None = "", url: str = server) -> Store:
        stores.append(storage.open(url, worker_name() if worker == "" else worker))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def store(opened: Callable[..., Store]) -> Store:
    return opened()


@dataclass(frozen=True)
class Made:
    """A registered study, as one worker sees it."""

    store: Store
    study: optuna.Study
    id: int

    def seen_by(self, store: Store) -> Made:
        study = optuna.load_study(study_name=self.study.study_name, storage=store.optuna)
        return Made(store, study, self.id)

    @staticmethod
    def described(hash: str, **fields: object) -> trials.CandidateRow:
        """A candidate's row with rungs at 10 and 30 steps, unless told otherwise; its root is its hash."""
        steps = fields.get("steps", 30)
        rungs = [one for one in (10, 30) if one < steps] + [steps]
        given = {"root": hash, "repeat": 0, "words": "a candidate", "method": "full", "steps": steps, "rungs": rungs, "json": {"method": "full"}}
        return trials.CandidateRow(hash=hash, **{**given, **fields})

    def start(self, hash: str | None = None, x: float = 0.5, request: str | None = None, outcome: str | None = None,
              reason: str | None = None, **candidate: object) -> Started:
        """A trial of a new candidate with two rungs, 10 and 30 steps, unless told otherwise."""
        row = self.described(hash or uuid.uuid4().hex, **candidate)
        return trials.start(self.store, self.id, request=request or uuid.uuid4().hex, candidate=row, parameters={"x": x},
                            distributions={"x": X}, internal={"x": x}, outcome=outcome, reason=reason)

    def take(self) -> trials.Taken | None:
        return trials.take(self.store, self.id, uuid.uuid4().hex)

    def rung(self, trial: Started | trials.Taken, *values: float, steps: int = 10, hash: str | None = None, **more: object) -> None:
        """A rung whose scores are the values, [fd, copy_excess] if there are two."""
        given = values or (1.0,) * len(self.study.directions)
        scores = {name: (value, value - 0.5, value + 0.5) for name, value in zip(SCORES[::3], given, strict=False)}
        trials.record_rung(self.store, trial.trial_id, steps, hash or f"{trial.trial_id} at {steps}", "a rung", given,
                           **{"scores": scores, "seconds": 1.0, **more})

    def finish(self, trial: Started | trials.Taken, *values: float, state: str = "COMPLETE", **rung: object) -> None:
        given = list(values) or [1.0] * len(self.study.directions)
        self.rung(trial, *given, **{"steps": 30, **rung})
        trials.tell(self.store, trial.trial_id, "finished", state=state, values=given if state == "COMPLETE" else None)

    def fail(self, trial: Started | trials.Taken, outcome: str = "failed", own_cause: bool = False) -> None:
        trials.tell(self.store, trial.trial_id, outcome, state="FAIL", reason="a reason", own_cause=own_cause)

    def state(self, trial: Started | trials.Taken) -> str:
        return self.study.get_trials(deepcopy=False)[trial.number].state.name

    def run_out(self, trial: Started | trials.Taken) -> None:
        """Lets the trial's lease run out, as if its worker had slept; the guard is put aside for that."""
        with self.store.engine.begin() as connection:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            query = "UPDATE peft_pareto.leases SET expires_at = clock_timestamp() - interval '1 second' WHERE trial_id = :t"
            connection.execute(text(query), {"t": trial.trial_id})

    def fill(self, count: int, parameters: int = 30, draws: bool = False) -> None:
        """So many finished trials with two rungs each, written past the guards; scores of seven kinds."""
        given = {"s": self.id, "n": count, "p": parameters, "names": list(SCORES)}
        with self.store.engine.begin() as connection:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            for statement in (
                "INSERT INTO trials (study_id, number, state) SELECT :s, i, 'COMPLETE' FROM generate_series(0, :n - 1) i",
                "INSERT INTO peft_pareto.distributions (study_id, digest, json) SELECT :s, 'd', CAST(json_object_agg('parameter_' || i, "
                "'{\"name\": \"FloatDistribution\", \"attributes\": {\"step\": null, \"low\": 0, \"high\": 1, \"log\": false}}') AS text) "
                "FROM generate_series(1, :p) i",
                "INSERT INTO peft_pareto.candidates (trial_id, study_id, hash, root, words, method, steps, rungs, json, parameters, distributions_id) "
                "SELECT trial_id, :s, 'hash ' || number, 'root ' || number, 'words', 'full', 30, '{10,30}', '{}', "
                "(SELECT jsonb_object_agg('parameter_' || i, random()) FROM generate_series(1, :p) i WHERE number IS NOT NULL), "
                "(SELECT distributions_id FROM peft_pareto.distributions WHERE study_id = :s) FROM trials WHERE study_id = :s",
                "INSERT INTO peft_pareto.leases (trial_id, study_id, worker, expires_at, outcome, settled_at) "
                "SELECT trial_id, :s, 'w', now(), 'finished', now() FROM trials WHERE study_id = :s",
                "INSERT INTO peft_pareto.rungs (trial_id, steps, study_id, hash, words, values, seconds) SELECT trial_id, steps, :s, "
                "md5(trial_id || ' ' || steps), 'words', ARRAY[random(), random()], 1 FROM trials, unnest(ARRAY[10, 30]) steps WHERE study_id = :s",
                "INSERT INTO peft_pareto.scores (trial_id, steps, name, value, low, high) SELECT trial_id, steps, name, random(), 0, 1 "
                "FROM peft_pareto.rungs, unnest(CAST(:names AS text[])) name WHERE study_id = :s",
            ):
                connection.execute(text(statement), given)
            connection.execute(text("SELECT peft_pareto.learn_points(:s, NULL)"), given)
            if draws:
                connection.execute(text(
                    "UPDATE peft_pareto.scores SET replicates = (SELECT array_agg(random()) FROM generate_series(1, 256)) "
                    "WHERE name IN ('fd', 'copy_excess') AND trial_id IN (SELECT trial_id FROM trials WHERE study_id = :s)"), given)  # fmt: skip
        with self.store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("ANALYZE"))


@pytest.fixture
def together() -> Callable[..., list[object]]:
    """Runs the calls at once, each in a thread; what each gave, or the exception that it raised."""

    def run_all(*calls: Callable[[], object]) -> list[object]:
        answers: list[object] = [None] * len(calls)

        def run(place: int) -> None:
            try:
                answers[place] = calls[place]()
            except Exception as error:  # handed to the test's own thread
                answers[place] = error

        threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers

    return run_all


@pytest.fixture
def study(store: Store) -> Callable[..., Made]:
    """Makes registered studies: `study(5, directions=…, name=…, lease_seconds=…, repeats=…)`."""

    def make(
        number: int = 5,
        directions: tuple[str, ...] = ("minimize", "minimize"),
        name: str | None = None,
        lease_seconds: float = 60,
        repeats: int = 1,
        **settings: object,
    ) -> Made:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        name = name or uuid.uuid4().hex
        sampler = optuna.samplers.RandomSampler(seed=0)
        made = optuna.create_study(storage=store.optuna, study_name=name, directions=directions, sampler=sampler)
        kinds = {
            "objectives": ("fd", "copy_excess"),
            "directions": DIRECTIONS,
            "quality": "fd",
            "memorization": "copy_excess",
            **settings,
        }
        results.register(store, made._study_id, number, {"data": "phantoms"} | ({"repeats": repeats} if repeats > 1 else {}), {"workers": 1},
                         lease_seconds=lease_seconds, **kinds)  # fmt: skip
        return Made(store, made, made._study_id)

    return make
