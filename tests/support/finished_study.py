"""A study in the store whose trials are finished without training: real candidates, real leases, scores that a test chooses."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import numpy as np
import psycopg2

from hpo.inner_loop import Result
from hpo.settings import Settings
from hpo.study import Asked, Search
from metrics.estimate import Estimate
from metrics.scores import SCORES, Scores
from storage import embedded, results
from storage.store import open_store, worker_name

BASE = {name: (0.0, 0.0, 0.0) for name in SCORES} | {"fd": (9.0, 8.0, 10.0)}


def new_database() -> str:
    """URL of an empty database on the tests' embedded server."""
    server, name = embedded.start(), f"test_{uuid.uuid4().hex[:12]}"
    connection = psycopg2.connect(server)
    connection.autocommit = True
    connection.cursor().execute(f"CREATE DATABASE {name}")
    connection.close()
    return server.replace("/peft_pareto?", f"/{name}?")


def scores(fd: float, copy_excess: float) -> Scores:
    def around(value: float) -> Estimate:
        return Estimate(value, value - 0.1, value + 0.1)

    return Scores({name: around(0.25) for name in SCORES} | {"fd": around(fd), "copy_excess": around(copy_excess)})


def result(fd: float, copy_excess: float) -> Result:
    """As if a candidate had been fine-tuned; its pictures are ramps."""
    pictures = np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (24, 64, 1))
    return Result(scores(fd, copy_excess), 40, 1234, 0.05, 0.5, {"training": 1.0, "total": 2.5}, pictures)


def begin(url: str, name: str, trials: int) -> Search:
    """A registered study with its references, and no trial yet."""
    search = Search(open_store(url, worker_name()), Settings(study=name, steps=40, rungs=3, sampler="random"))
    search.register(trials, {"model": "m", "encoder": "e", "data": "d"})
    results.record_references(search.store, search.id, q_base=9.0, q_real=0.1, m_base=0.0, scores=BASE, base=None)
    return search


def ask(search: Search) -> Asked:
    asked = search.ask()
    assert isinstance(asked, Asked)
    return asked


def finish(search: Search, points: Sequence[tuple[float, float]]) -> list[Asked]:
    """Finish one trial for each (fd, copy_excess)."""
    done = []
    for point in points:
        done.append(ask(search))
        measured = result(*point)
        tell(search, done[-1], measured.scores, measured.seconds["total"])
    return done


def tell(search: Search, asked: Asked, measured: Scores, seconds: float = 1.0) -> str:
    """As if a trial had been evaluated at its last rung, and nowhere before."""
    search.report(asked, asked.candidate.steps, measured, 1234, seconds, None)
    return search.finish(asked)
