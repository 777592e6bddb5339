"""A base model of seconds, small phantoms, and studies on the embedded server, for the tests of the outer loop."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import launching
import pytest
import sqlalchemy
from finished_study import scores, tell

from hpo.identity import identity, resolution_of
from hpo.preparation import dealt_sides
from hpo.settings import Settings
from hpo.study import Asked, Search
from storage import embedded, results
from storage.store import Store, open_store, worker_name
from trainers.data import phantoms as generator

IDENTITY = {"model": "m", "encoder": "e", "data": "d"}  # of studies whose trials are told, not run


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """Folder with base/ and clip/: the miniature after a few steps of its own pre-training."""
    from trainers.miniature.pretrain import Recipe, pretrain

    folder = tmp_path_factory.mktemp("model")
    pretrain(Recipe(pictures=96, merges=60, clip_steps=4, vae_steps=4, unet_steps=4, clip_batch=32, vae_batch=8, unet_batch=16), folder)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A small MIMIC-CXR-JPG folder of phantoms."""
    return generator.write(tmp_path_factory.mktemp("data") / "phantoms", patients=150, seed=3, resolution=64)


@pytest.fixture
def spoilt(data, tmp_path) -> Path:
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(data, tmp_path / "spoilt"))


@pytest.fixture(scope="session")
def url() -> str:
    """Of the embedded server, with all tables."""
    found = embedded.start()
    open_store(found).close()
    return found


@pytest.fixture
def settings(model, data, tmp_path) -> Callable[..., Settings]:
    """Makes settings of trials of a second, each with a study of its own unless it is named."""
    def make(**changes) -> Settings:
        small = Settings(study=f"test-{uuid.uuid4().hex[:10]}", model=str(model / "base"), encoder=str(model / "clip"), data=str(data), trials=3,
                         train_images=12, generated=20, steps=4, rungs=2, reduction=2, batch_size=8, sampling_steps=2, workers=1, device="cpu", out=str(tmp_path / "out"))
        return replace(small, **changes)

    return make


@pytest.fixture
def opened(url) -> Iterator[Callable[[], Store]]:
    """Opens the store as a worker with a name of its own."""
    stores: list[Store] = []

    def make() -> Store:
        stores.append(open_store(url, worker_name()))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def searching(opened) -> Callable[..., Search]:
    """Makes registered studies whose trials are asked and told without any training: `searching(trials=5, space="reference")`."""
    def make(settings: Settings | None = None, identity: dict = IDENTITY, **changes) -> Search:
        usual = Settings(study=f"test-{uuid.uuid4().hex[:10]}", trials=5, steps=40, rungs=3, evaluated_rungs=3, stop_confidence=0.9)
        chosen = replace(settings or usual, **changes)
        search = Search(opened(), chosen)
        search.register(chosen.trials, identity)
        results.record_references(search.store, search.id, q_base=5.0, q_real=0.0, m_base=0.0, scores={"fd": (5.0, 4.9, 5.1), "copy_excess": (0, 0, 0)})
        return search

    return make


@pytest.fixture
def finish() -> Callable[..., Asked]:
    """Asks for the next trial of a search and tells it as finished with these scores; gives what was asked."""
    def make(search: Search, fd: float = 1.0, copy_excess: float = 1.0) -> Asked:
        asked = search.ask()
        assert isinstance(asked, Asked), asked
        tell(search, asked, scores(fd, copy_excess))
        return asked

    return make


@pytest.fixture
def query(url) -> Iterator[Callable[..., list]]:
    """Runs SQL on the store; gives the rows."""
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg2://"), isolation_level="AUTOCOMMIT")

    def run(sql: str, **values) -> list:
        with engine.connect() as connection:
            found = connection.execute(sqlalchemy.text(sql), values)
            return list(found) if found.returns_rows else []

    yield run
    engine.dispose()


@pytest.fixture
def states(query) -> Callable[[str], dict[str, int]]:
    """How many trials of a study are in which of Optuna's states."""
    def count(study: str) -> dict[str, int]:
        return dict(query("SELECT t.state::text, count(*) FROM trials t JOIN studies s USING (study_id) WHERE s.study_name = :study GROUP BY 1", study=study))

    return count


@pytest.fixture
def begun(settings, opened, query) -> Callable[..., Settings]:
    """Registers a study, as launch does, whose leases are of seconds: `begun(trials=3, lease=5.0)`."""
    def make(lease: float = 5.0, **changes) -> Settings:
        chosen = settings(**changes)
        search = Search(opened(), chosen)
        search.register(chosen.trials, identity(chosen, dealt_sides(chosen, resolution_of(chosen))))
        query("UPDATE peft_pareto.studies SET lease_seconds = :l WHERE study_id = :s", l=lease, s=search.id)
        return chosen

    return make


@pytest.fixture
def holders(query) -> Callable[[str], dict[int, int]]:
    """Process ids of the workers that hold a trial of a study now, with that trial's number; a worker's name is host, process id and a random part."""
    def found(study: str) -> dict[int, int]:
        rows = query("SELECT l.worker, t.number FROM peft_pareto.leases l JOIN trials t USING (trial_id) JOIN studies s ON s.study_id = t.study_id "
                     "WHERE s.study_name = :study AND t.state = 'RUNNING' AND l.worker IS NOT NULL", study=study)
        return {int(worker.split("-")[-2]): number for worker, number in rows}

    return found


@pytest.fixture
def launched(tmp_path) -> Iterator[Callable[[Settings], subprocess.Popen]]:
    """Starts `python -m hpo.launch` as a process, which is ended after the test; its output goes to tmp_path / "launch.log"."""
    processes: list[subprocess.Popen] = []

    def start(settings: Settings) -> subprocess.Popen:
        processes.append(launching.start(settings, tmp_path / "launch.log"))
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()
