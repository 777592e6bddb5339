"""One real embedded server for all tests of the store, and a database or a registered study for each that asks."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
import psycopg2
import pytest

import storage
from storage import embedded, leases, results
from storage.store import Store, worker_name

SCORES = ("fd", "kid", "loss_gap", "copy_excess", "copy_rate", "amd_train", "amd_twin")
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

    def ask(self, **candidate: object) -> optuna.Trial:
        with leases.translated():
            trial = self.study.ask()
            trial.suggest_float("x", 0, 1)
        if candidate:
            fields = {"words": "a candidate", "method": "full", "steps": 10, "json": {}, "hash": "h", **candidate}
            results.record_candidate(self.store, trial._trial_id, **fields)
        return trial

    def finish(self, trial: optuna.Trial, *values: float) -> None:
        with leases.translated():
            leases.settle(self.store, trial._trial_id, "finished")
            self.study.tell(trial, list(values) or [1.0] * len(self.study.directions))

    def fail(self, trial: optuna.Trial, outcome: str = "failed", **more: object) -> None:
        with leases.translated():
            leases.settle(self.store, trial._trial_id, outcome, "a reason", **more)
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)


@pytest.fixture
def study(store: Store) -> Callable[..., Made]:
    """Makes registered studies: `study(trials=5, directions=…, name=…, lease_seconds=…)`."""

    def make(
        trials: int = 5,
        directions: tuple[str, ...] = ("minimize", "minimize"),
        name: str | None = None,
        lease_seconds: float = 60,
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
        results.register(store, made._study_id, trials, {"data": "phantoms"}, {"workers": 1},
                         lease_seconds=lease_seconds, **kinds)  # fmt: skip
        return Made(store, made, made._study_id)

    return make
