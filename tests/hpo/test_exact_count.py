"""kill -9 in the middle: whoever dies, the study ends with exactly as many finished trials as were asked for, and nothing running."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

import psutil
import pytest
from launching import until

from hpo.engines import CLASSES
from hpo.identity import identity, resolution_of
from hpo.preparation import dealt_sides
from hpo.settings import Settings
from hpo.study import Search

TRIALS = "SELECT trial, candidate FROM trial_scores WHERE study = :s ORDER BY trial"
LEASE_SECONDS = 10.0  # a minute otherwise, which a test would have to wait for


@pytest.fixture
def begun(settings: Callable[..., Settings], opened: Callable, query: Callable) -> Callable[..., Settings]:
    """A study of three trials whose leases are short."""
    def make(**changes) -> Settings:
        chosen = settings(trials=3, steps=40, pruner="none", **changes)
        search = Search(opened(), chosen)
        search.register(chosen.trials, identity(chosen, dealt_sides(chosen, resolution_of(chosen))))
        query("UPDATE peft_pareto.studies SET lease_seconds = :l WHERE study_id = :s", l=LEASE_SECONDS, s=search.id)
        return chosen

    return make


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes that train for this launch, whatever engine it has."""
    return [each for each in psutil.Process(process.pid).children(recursive=True)
            if any(mark in " ".join(each.cmdline()) for mark in ("hpo.worker", "ray::ResourceTrainable"))]


def one_of_two(states: Callable, study: str) -> bool:
    return states(study).get("COMPLETE", 0) >= 1 and states(study).get("RUNNING", 0) >= 1


@pytest.mark.parametrize("engine", CLASSES)
def test_launch_is_killed_and_the_next_one_finishes(engine: str, begun: Callable, launched: Callable, states: Callable, query: Callable, tmp_path) -> None:
    settings = begun(engine=engine)
    process = launched(settings)
    until(lambda: one_of_two(states, settings.study), 400, "one trial is finished and another runs")
    workers = workers_of(process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    psutil.wait_procs(workers, timeout=30)
    assert not [each for each in workers if each.is_running()], "no worker outlives its launch"
    finished, begun_then = states(settings.study)["COMPLETE"], query(TRIALS, s=settings.study)
    assert finished < 3
    assert launched(settings).wait(500) == 0
    counts = states(settings.study)
    assert counts == {"COMPLETE": 3} and query(TRIALS, s=settings.study)[: len(begun_then)] == begun_then, "the same trials went on"
    said = (tmp_path / "launch.log").read_text()
    assert f"resumed with {finished} finished" in said and "Traceback" not in said


@pytest.mark.parametrize("engine", CLASSES)
def test_a_worker_is_killed_and_its_launch_finishes(engine: str, begun: Callable, launched: Callable, states: Callable, query: Callable, tmp_path) -> None:
    settings = begun(engine=engine)
    process = launched(settings)
    until(lambda: one_of_two(states, settings.study), 400, "one trial is finished and another runs")
    killed = workers_of(process)
    assert killed
    for worker in killed:
        worker.kill()
    assert process.wait(500) == 0
    counts = states(settings.study)
    assert counts == {"COMPLETE": 3}, "also the one that lost its worker"
    said = (tmp_path / "launch.log").read_text()
    assert "Traceback" not in said and "a worker died" in said and "starting another" in said.replace("starts", "starting")
