"""The suite that every engine must pass, with real workers, real training and the real store."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import hanging
import psutil
import pytest
from launching import until
from rich.console import Console

from hpo import engines
from hpo.engines import CLASSES
from hpo.errors import SearchError
from hpo.home import HOME_VARIABLE
from hpo.identity import identity, resolution_of
from hpo.launch import search
from hpo.preparation import dealt_sides
from hpo.settings import Settings
from hpo.study import Search

Made = Callable[..., Settings]


@pytest.fixture(params=CLASSES)
def engine(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def nothing_left_running(tmp_path) -> None:
    """Whatever a test does, no worker and no process of Ray outlives it."""
    before = set(psutil.pids())
    yield
    until(lambda: not left(before), 20, f"processes ended, left are {left(before)}")


def left(before: set[int]) -> list[str]:
    """Command lines of workers and of Ray's processes that were not there before; others on this machine are not ours."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "environ"]):
        words = " ".join(process.info["cmdline"] or [])
        ours = (process.info["environ"] or {}).get(HOME_VARIABLE) == os.environ[HOME_VARIABLE]
        if ours and process.info["pid"] not in before and ("hpo.worker" in words or "raylet" in words or words.startswith("ray::") or "gcs_server" in words):
            found.append(words[:80])
    return found


def quiet(path: Path) -> Console:
    return Console(file=path.open("w"), width=80)


def test_exactly_as_many_trials_finish_as_were_asked_for_and_more_on_the_next_launch(engine: str, settings: Made, states: Callable, tmp_path, capfd) -> None:
    asked = settings(engine=engine, trials=2, workers=2, keep="all", pruner="none")
    found = search(asked, quiet(tmp_path / "said"))
    assert found.status == 0 and states(asked.study) == {"COMPLETE": 2} and len(found.rows) >= 1
    assert len(list((Path(asked.out) / asked.study / "weights").iterdir())) == 4, "two rungs of each"
    again = search(settings(**{**asked.to_json(), "trials": 3}), quiet(tmp_path / "said again"))
    assert again.status == 0 and states(asked.study) == {"COMPLETE": 3}
    said = (tmp_path / "said").read_text()
    assert "(new): 2 trials" in said and "all 2 trials are finished" in said and "resumed with 2 finished" in (tmp_path / "said again").read_text()
    shown = capfd.readouterr()
    assert shown.err == "", "an engine prints nothing of its own"
    assert shown.out.startswith("Pareto front")


def test_workers_use_the_paths_of_their_own_launch(engine: str, settings: Made, opened: Callable, url: str, query: Callable, states: Callable) -> None:
    """Those in the study are of the last launch, here from a machine with other folders."""
    chosen = settings(engine=engine, trials=1)
    own = Search(opened(), chosen)
    own.register(1, identity(chosen, dealt_sides(chosen, resolution_of(chosen))))
    others = '{"data": "/proc/none", "model": "/proc/none", "encoder": "/proc/none", "out": "/proc/none", "checkpoints": "/proc/none"}'
    query("UPDATE peft_pareto.studies SET settings = jsonb_set(settings, '{free}', settings -> 'free' || CAST(:o AS jsonb)) WHERE study_id = :s",
          o=others, s=own.id)
    assert engines.named(engine).run(own, url, lambda: None).status == 0 and states(chosen.study) == {"COMPLETE": 1}


def test_a_trial_that_raises_is_stored_with_its_reason_and_replaced(engine: str, settings: Made, query: Callable, states: Callable, tmp_path) -> None:
    # At these rates full fine-tuning, the first trial, loses its numbers at once; attention tuning, the next baseline, does not.
    asked = settings(engine=engine, trials=1, space="reference", learning_rate_scale=1e5)
    assert search(asked, quiet(tmp_path / "said")).status == 0
    assert states(asked.study) == {"COMPLETE": 1, "FAIL": 1}
    rows = query("SELECT method, state, outcome, reason, baseline FROM trial_scores WHERE study = :s ORDER BY trial", s=asked.study)
    assert rows[0][:3] == ("full", "FAIL", "failed") and rows[0][3].startswith("TrainingDiverged: loss is nan at step")
    assert rows[1] == ("attention", "COMPLETE", "finished", None, "yardstick")


def test_a_stopped_trial_is_pruned_and_counts(engine: str, settings: Made, states: Callable, query: Callable, tmp_path) -> None:
    asked = settings(engine=engine, trials=5, stop_confidence=0.0, baselines=False, sampler="tpe")  # the default's first trials end at the first rung
    assert search(asked, quiet(tmp_path / "said")).status == 0
    counts = states(asked.study)
    assert counts["PRUNED"] >= 1 and counts["COMPLETE"] + counts["PRUNED"] == 5
    stopped = query("SELECT count(*), max(r.steps) FROM rung_scores r WHERE r.study = :s AND r.state = 'PRUNED'", s=asked.study)
    assert stopped == [(counts["PRUNED"], 2)], "each was evaluated at the first rung only"
    assert not list((Path(asked.out) / asked.study).glob("ray*")), "Ray leaves nothing behind"


@pytest.mark.slow
def test_a_worker_that_hangs_in_native_code_ends_and_its_trial_goes_on(engine: str, begun: Made, settings: Made, states: Callable, query: Callable, tmp_path,
                                                                        monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr("hpo.settings.LEAST_STALLED", 0.0)
    asked = begun(engine=engine, trials=1, space=hanging.space(tmp_path), stalled_after=0.05)
    (tmp_path / hanging.IN_TRAINING).touch()
    assert search(asked, quiet(tmp_path / "said")).status == 0 and states(asked.study) == {"COMPLETE": 1}
    assert not (tmp_path / hanging.IN_TRAINING).exists() and "a worker died" in caplog.text
    if engine == "local":
        assert "a worker died (it hung)" in caplog.text
        assert "this worker ends itself, another goes on" in (Path(asked.out) / asked.study / "logs" / "worker-0.log").read_text()


def test_what_only_a_worker_can_notice_is_one_line_and_the_end(engine: str, settings: Made, model: Path, states: Callable, tmp_path) -> None:
    broken = Path(shutil.copytree(model / "base", tmp_path / "broken"))
    config = broken / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("v_prediction", "sample"))  # launch loads no model
    asked = settings(engine=engine, model=str(broken))
    with pytest.raises(SearchError, match="prediction_type 'sample' is not trained here") as refused:
        search(asked, quiet(tmp_path / "said"))
    assert str(broken) in str(refused.value) and "\n" not in str(refused.value) and states(asked.study) == {}


def test_interrupted_it_gives_running_trials_back(engine: str, settings: Made, states: Callable, query: Callable, launched: Callable, tmp_path) -> None:
    asked = settings(engine=engine, trials=500, workers=2, steps=40, pruner="none")
    process: subprocess.Popen = launched(asked)
    # Two, since one may end meanwhile.
    until(lambda: states(asked.study).get("COMPLETE", 0) >= 1 and states(asked.study).get("RUNNING", 0) == 2, 400, "a trial is finished and two run")
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(120) == 130
    counts = states(asked.study)
    assert "RUNNING" not in counts and counts["COMPLETE"] >= 1
    assert 1 <= counts["WAITING"] <= 2 and not counts.get("FAIL"), "each is gone on with"
    assert query("SELECT sum(losses) FROM peft_pareto.leases l JOIN studies s USING (study_id) WHERE s.study_name = :s", s=asked.study) == [(0,)]
    said = (tmp_path / "launch.log").read_text()
    assert "interrupted: running trials were given back, run the same" in said and "Pareto front" in said and "Traceback" not in said
