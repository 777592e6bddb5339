"""A job array without Slurm: the script of docs/cluster.md, run once a task as Slurm would, with tasks that are ended in all the ways that Slurm ends them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launching import until

from hpo.command import INTERRUPTED

TRIALS = 4
SLOW_SECONDS = 500  # at most; a tenth of it where nothing else runs


@pytest.fixture
def array(repository: Path, tmp_path: Path, url: str) -> Iterator[Callable[[str, int], subprocess.Popen]]:
    """Starts a task of the array, as the batch shell of a job: `array("study", 1)`."""
    page = (repository / "docs" / "cluster.md").read_text(encoding="utf-8")
    script = tmp_path / "workers.sbatch"
    script.write_text(re.search(r"<!-- worker job -->\n```bash\n(.*?)```", page, flags=re.DOTALL)[1])
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    tasks: list[subprocess.Popen] = []

    def start(study: str, number: int) -> subprocess.Popen:
        environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SHARED": str(tmp_path), "STUDY": study, "STORAGE": url,
                       "SLURM_ARRAY_TASK_ID": str(number), "SLURM_CPUS_PER_TASK": "1"}
        with (tmp_path / f"worker-{number}.log").open("w") as log:
            tasks.append(subprocess.Popen(["bash", str(script)], cwd=repository, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        return tasks[-1]

    yield start
    for task in tasks:
        if task.poll() is None:
            task.kill()
            task.wait()


@pytest.mark.minutes
@pytest.mark.parametrize("shared", [True, False], ids=["shared folder", "own folders"])
def test_tasks_that_are_ended_are_followed_by_others_until_all_trials_are_finished(shared: bool, array: Callable, begun: Callable, holders: Callable,
                                                                                   states: Callable, query: Callable, tmp_path: Path) -> None:
    asked = begun(trials=TRIALS, steps=40, rungs=3, checkpoints=str(tmp_path / "states"))

    def measured() -> dict[tuple[int, int], float]:
        """Trial and steps of each rung -> its fd."""
        return {(trial, steps): fd for trial, steps, fd in query("SELECT trial, steps, fd FROM rung_scores WHERE study = :s", s=asked.study)}

    def between_rungs(task: subprocess.Popen) -> tuple[int, ...]:
        """The number of the trial that it holds, if that has a rung already; else nothing."""
        assert task.poll() is None, (tmp_path / f"worker-{1 if task is limited else 2}.log").read_text()
        held = holders(asked.study).get(task.pid)
        return (held,) if any(trial == held for trial, _ in measured()) else ()

    limited, lost = array(asked.study, 1), array(asked.study, 2)
    (given_back,) = until(lambda: between_rungs(limited), SLOW_SECONDS, "the first task holds a trial with a rung")
    limited.send_signal(signal.SIGTERM)  # its time limit
    assert limited.wait(60) == INTERRUPTED
    ((state, losses),) = query("SELECT t.state::text, l.losses FROM trials t JOIN peft_pareto.leases l USING (trial_id) JOIN studies s ON s.study_id = t.study_id "
                               "WHERE s.study_name = :s AND t.number = :n", s=asked.study, n=given_back)
    assert (state, losses) == ("WAITING", 0), "given back, and not lost"
    (killed,) = until(lambda: between_rungs(lost), SLOW_SECONDS, "the second task holds a trial with a rung")
    lost.send_signal(signal.SIGKILL)  # its node is gone
    lost.wait(10)
    before = measured()
    assert list((tmp_path / "states").iterdir()), "each left the state of its training"
    if not shared:  # as other machines see it
        shutil.rmtree(tmp_path / "states")
    assert holders(asked.study).get(lost.pid) == killed, "its lease is still to run out"
    last = [array(asked.study, 3), array(asked.study, 4)]
    assert [task.wait(SLOW_SECONDS) for task in last] == [0, 0], (tmp_path / "worker-3.log").read_text()
    assert states(asked.study).get("COMPLETE", 0) + states(asked.study).get("PRUNED", 0) == TRIALS and not {"RUNNING", "WAITING"} & set(states(asked.study))
    after = measured()
    assert before and all(after[rung] == fd for rung, fd in before.items()), "no rung is measured twice"
    assert {given_back, killed} <= {trial for trial, _ in before}
    late = array(asked.study, 5)
    assert late.wait(SLOW_SECONDS) == 0 and measured() == after, "a task that begins after the end has nothing to do"
