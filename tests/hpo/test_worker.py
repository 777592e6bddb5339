"""A worker as a process and as a value: joining, waiting, repeating itself, being told to stop, killed and put to sleep."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import hanging
import pytest
import told
import torch
from launching import until

from hpo import code
from hpo import worker as module
from hpo.code import OtherCode
from hpo.command import HUNG, one_line_errors
from hpo.ending import Ended, most_failures
from hpo.errors import BadSetting
from hpo.identity import identity, resolution_of
from hpo.inner_loop import check_usable
from hpo.preparation import dealt_sides
from hpo.settings import Settings
from hpo.study import Search
from hpo.worker import OWN_PATHS, STORAGE_VARIABLE, Over, Rung, Worker, stored_settings
from metrics.encoders import PIXELS
from storage import results
from storage.errors import SettingsDiffer, UnknownStudy
from trainers.candidate import Candidate

Made = Callable[..., Settings]


@pytest.fixture
def registered(settings: Made, opened: Callable) -> Callable[..., Search]:
    """Registers a study as launch does, for workers that join it."""
    def make(**changes) -> Search:
        chosen = settings(**changes)
        search = Search(opened(), chosen)
        search.register(chosen.trials, identity(chosen, dealt_sides(chosen, resolution_of(chosen))))
        return search

    torch.set_num_threads(1)
    return make


def said(rows: list[dict]) -> list[dict]:
    """What a repetition must repeat: everything but names and seconds."""
    return [{name: value for name, value in row.items() if name not in ("study", "seconds")} for row in rows]


def test_the_same_seed_gives_the_same_candidates_and_scores_and_another_seed_others(registered: Callable, url: str) -> None:
    first, again, other = [], [], []
    for rows, seed in ((first, 0), (again, 0), (other, 1)):
        search = registered(trials=3, seed=seed, baselines=False)
        assert Worker(url, search.settings.study).work() == 0
        rows += said(results.trials(search.store, search.settings.study))
    assert [row["state"] for row in first] == ["COMPLETE"] * 3 and len({row["candidate"] for row in first}) == 3
    assert first == again, "to the last digit"
    assert first[0]["candidate"] == other[0]["candidate"], "the yardstick"
    assert first[0]["fd"] != other[0]["fd"] and first[1]["candidate"] != other[1]["candidate"]


def test_a_worker_runs_what_was_stored_and_leaves_it_alone(registered: Callable, url: str, model: Path, data: Path) -> None:
    search = registered(trials=1, data=os.path.relpath(data), out="out", objectives="kid,loss_gap", keep="none")
    before = results.settings(search.store, search.id)
    joined = Worker(url, search.settings.study, paths={"encoder": str(model / "base" / ".." / "clip")})
    stored = joined.search.settings
    assert (stored.steps, stored.objectives, stored.keep) == (4, "kid,loss_gap", "none") and os.path.isabs(stored.data) and os.path.samefile(stored.data, data)
    assert stored.out == os.path.abspath("out"), "a worker may be started in another folder"
    assert results.settings(search.store, search.id) == before
    assert stored.resolution == 64, "the model's own, said aloud"
    assert replace(stored_settings(search.store, search.settings.study), data=search.settings.data, out="out", resolution=None) == search.settings
    known = results.references(search.store, search.id)
    assert known.m_base == pytest.approx(0, abs=1e-9) and known.q_base > known.q_real and set(known.scores) >= {"fd", "copy_excess"}


def test_a_user_s_space_may_lie_elsewhere_if_it_is_the_same(registered: Callable, url: str, tmp_path: Path) -> None:
    written = "steps = [2]\n[methods.bias]\n"
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.toml").write_text(written)
    search = registered(trials=1, space=str(tmp_path / "first" / "mine.toml"))
    (tmp_path / "first" / "mine.toml").unlink()
    with pytest.raises(BadSetting, match="first/mine.toml"):
        Worker(url, search.settings.study)
    assert Worker(url, search.settings.study, paths={"space": str(tmp_path / "second" / "mine.toml")}).work() == 0
    (tmp_path / "second" / "mine.toml").write_text(written.replace("bias", "norm"))
    with pytest.raises(SettingsDiffer, match="space"):
        Worker(url, search.settings.study, paths={"space": str(tmp_path / "second" / "mine.toml")})


def test_trials_that_diverge_end_neither_the_worker_nor_the_launch_as_a_mistake_of_the_user_does(registered: Callable, url: str, states: Callable) -> None:
    """Status 2 would have a launch take the whole search for refused; here the study cannot go on, and says why."""
    search = registered(trials=1, held_out_every=1, learning_rate_scale=2e9)
    assert Worker(url, search.settings.study).work() == 1
    assert states(search.settings.study) == {"FAIL": most_failures(1) + 1}
    assert "TrainingDiverged: loss is nan at step 1" in search.state().reason


def test_one_with_other_contents_may_not_join(registered: Callable, url: str, spoilt: Path, caplog) -> None:
    """Nor does it measure anything before."""
    search = registered(trials=1)
    caplog.set_level("INFO")
    with pytest.raises(SettingsDiffer, match="'encoder'"):
        Worker(url, search.settings.study, paths={"encoder": PIXELS})
    assert "filling the caches" in caplog.text and "measuring" not in caplog.text
    picture = sorted(spoilt.rglob("*.jpg"))
    for file, other in zip(picture, reversed(picture)):
        file.write_bytes(other.read_bytes())
    with pytest.raises(SettingsDiffer, match="'data'"):
        Worker(url, search.settings.study, paths={"data": str(spoilt)})


@pytest.mark.parametrize(("words", "says"), [(["--study", "nowhere"], "'nowhere' is not in this store"), (["--study", "s", "--threads", "0"], "from 1 to 1024, give such"),
                                             (["--study", "s", "--threads", "3000000000"], "from 1 to 1024"), (["--study", "s", "--wait", "nan"], "--wait nan: it is"),
                                             *((["--study", "s", f"--{name}="], f"--{name} '': it is empty") for name in OWN_PATHS),
                                             (["--study", "s", "--device", "gpu"], "--device 'gpu' is unknown"), ([], "--study"),
                                             (["--study", "s", "--stroage", "x"], "take --storage")])
def test_what_is_wrong_is_one_line(words: list[str], says: str, url: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)  # pytest's own handlers stay
    monkeypatch.setenv(STORAGE_VARIABLE, url)
    assert one_line_errors(lambda: module.main(words)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and says in said and said.count("\n") == 1


def test_a_folder_for_tensors_that_cannot_be_written_is_noticed_before_any_training(registered: Callable, url: str, tmp_path: Path) -> None:
    search = registered(trials=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadSetting, match=f"--out {tmp_path / 'file'}: kept tensors cannot be written there"):
        Worker(url, search.settings.study, paths={"out": str(tmp_path / "file")})
    with pytest.raises(BadSetting, match=f"--checkpoints {tmp_path / 'file'}: training states cannot be written there"):
        Worker(url, search.settings.study, paths={"checkpoints": str(tmp_path / "file")})
    assert Worker(url, search.settings.study, paths={"out": str(tmp_path / "here")}).work() == 0
    assert list((tmp_path / "here").rglob("*.safetensors")), "not where launch would have them"


def test_a_device_that_is_not_there_is_refused() -> None:
    check_usable("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(BadSetting, match="--device cuda:0: this machine cannot compute on it"):
            check_usable("cuda:0")


def test_an_unknown_study_is_no_value(url: str) -> None:
    with pytest.raises(UnknownStudy):
        Worker(url, "nowhere")


@pytest.fixture
def process(url: str, repository: Path, tmp_path: Path):
    """Starts a worker as launch does: its standard input is a pipe from us, its store comes from the environment."""
    started: list[subprocess.Popen] = []

    def start(study: str, *more: str) -> subprocess.Popen:
        with (tmp_path / "worker.log").open("ab") as log:
            started.append(subprocess.Popen([sys.executable, "-m", "hpo.worker", f"--study={study}", *more], stdin=subprocess.PIPE, stderr=log, stdout=log,
                                            cwd=repository, env={**os.environ, STORAGE_VARIABLE: url}))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.wait()


def test_it_takes_trials_until_the_study_is_finished_and_says_so_without_noise(registered: Callable, process: Callable, states: Callable, tmp_path) -> None:
    search = registered(trials=1, study=f"a 'b' \"c\" 🩻 {time.time_ns()}")
    assert process(search.settings.study).wait(300) == 0
    assert states(search.settings.study) == {"COMPLETE": 1}
    log = (tmp_path / "worker.log").read_text()
    assert "trial 0 finished" in log and "all 1 trials are finished" in log
    assert "ExperimentalWarning" not in log and "Traceback" not in log and "it/s]" not in log


HANGING = """
import ctypes
from hpo import stopping, worker
worker.STOP_SECONDS = 0.5
stopping.on_signals(worker.signal.SIGTERM)
worker.die_with_parent()
lock = ctypes.create_string_buffer(64)
print("hangs", flush=True)
for _ in range(2):
    ctypes.CDLL(None).pthread_mutex_lock(lock)  # the second time for ever, outside Python: its own signal handlers are not run
"""


def test_one_that_hangs_in_native_code_does_not_outlive_its_launch(repository: Path) -> None:
    hanging = subprocess.Popen([sys.executable, "-c", HANGING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=repository)
    try:
        assert hanging.stdout.readline() == "hangs\n"
        hanging.stdin.close()
        assert hanging.wait(120) == -signal.SIGKILL
    finally:
        hanging.kill()
        hanging.wait()


@pytest.mark.slow
def test_one_that_hangs_in_its_turn_ends_and_another_has_it(registered: Callable, process: Callable, query: Callable, states: Callable, tmp_path: Path) -> None:
    search = registered(trials=2, baselines=False, space=hanging.space(tmp_path), stalled_after=0.02)
    told.run(search, lambda asked, steps: (1.0, 1.0))  # the yardstick, which nobody proposes
    (tmp_path / hanging.IN_TURN).touch()
    hung = process(search.settings.study)
    assert hung.wait(300) == HUNG
    log = (tmp_path / "worker.log").read_text()
    assert "in hang\n" in log and re.search(r"the turn to propose a trial: no sign of life for \d+ s; this worker ends itself, another goes on\n\Z", log)
    assert process(search.settings.study).wait(300) == 0 and states(search.settings.study) == {"COMPLETE": 2}


def trains(query: Callable, search: Search) -> list:
    return query("SELECT 1 FROM peft_pareto.leases WHERE study_id = :s AND stage LIKE 'step%'", s=search.id)


def shorten_leases(query: Callable, search: Search, seconds: float) -> None:
    query("UPDATE peft_pareto.studies SET lease_seconds = :l WHERE study_id = :s", l=seconds, s=search.id)


def rungs(search: Search, trial: int = 0) -> dict[int, tuple[float, float]]:
    return {row["steps"]: (row["fd"], row["copy_excess"]) for row in results.rungs(search.store, search.settings.study) if row["trial"] == trial}


def unbroken(worker: Worker, number: int = 0) -> dict[int, tuple[float, float]]:
    """A trial's rungs by trainings that nobody disturbs."""
    trial_id = next(trial._trial_id for trial in worker.search.study.trials if trial.number == number)
    candidate = Candidate.from_json(results.candidate(worker.search.store, trial_id))
    found = {steps: worker.inner.evaluate(replace(candidate, steps=steps)).scores for steps in worker.search.rungs_of(candidate)}
    return {steps: (float(scores["fd"].value), float(scores["copy_excess"].value)) for steps, scores in found.items()}


@pytest.mark.parametrize("after", [0, 20])
def test_a_killed_worker_s_trial_goes_on_elsewhere_to_the_same_scores(after: int, registered: Callable, process: Callable, url: str, states: Callable,
                                                                    query: Callable) -> None:
    """kill -9 before the first rung and between two: one Optuna trial, to the last digit."""
    search = registered(trials=1, steps=40)
    shorten_leases(query, search, 3.0)
    killed = process(search.settings.study)
    until(lambda: trains(query, search) and (not after or rungs(search)), 300, "it trains")
    killed.kill(), killed.wait()
    assert list(rungs(search)) == [20][:bool(after)] and states(search.settings.study) == {"RUNNING": 1}
    worker = Worker(url, search.settings.study)
    assert worker.work() == 0 and states(search.settings.study) == {"COMPLETE": 1}
    assert rungs(search) == unbroken(worker)


def test_a_worker_that_slept_for_longer_than_its_lease_writes_nothing_and_goes_on_with_another_trial(
        registered: Callable, process: Callable, url: str, states: Callable, query: Callable, tmp_path) -> None:
    search = registered(trials=2, steps=40, keep="all")
    shorten_leases(query, search, 3.0)
    sleeper = process(search.settings.study)
    # Not while it writes the state: a file that it had begun would be put there, the same in content, when it wakes.
    until(lambda: rungs(search) and list(Path(search.settings.out).rglob("states/trial-00000-*.safetensors")), 300, "a rung is evaluated, and its state written")
    sleeper.send_signal(signal.SIGSTOP)
    held = "SELECT count(*) FROM peft_pareto.leases WHERE study_id = :s AND expires_at > clock_timestamp()"
    until(lambda: query(held, s=search.id) == [(0,)], 60, "its lease runs out")
    worker = Worker(url, search.settings.study)
    while not isinstance(done := worker.turn(), Over):
        pass
    assert (done.trial, done.outcome, done.steps) == (0, "finished", 40)
    before, written = rungs(search), {path: path.stat().st_mtime_ns for path in Path(search.settings.out).rglob("trial-00000-*")}
    assert before == unbroken(worker) and len(written) == 3
    worker.search.store.close()
    sleeper.send_signal(signal.SIGCONT)
    assert sleeper.wait(300) == 0 and states(search.settings.study) == {"COMPLETE": 2}
    assert rungs(search) == before and {path: path.stat().st_mtime_ns for path in Path(search.settings.out).rglob("trial-00000-*")} == written
    log = (tmp_path / "worker.log").read_text()
    assert "trial 0 was lost" in log and "trial 1 finished" in log and "Traceback" not in log


def test_other_code_may_not_join_and_a_launch_makes_its_own_the_study_s(registered: Callable, url: str, query: Callable) -> None:
    search = registered(trials=1)
    query("UPDATE peft_pareto.studies SET settings = jsonb_set(settings, '{free,code}', '\"older\"') WHERE study_id = :s", s=search.id)
    with pytest.raises(OtherCode, match=f"is run with code older, this worker has {code.content_hash()}: install the version of the launch here") as refused:
        Worker(url, search.settings.study)
    assert "\n" not in str(refused.value)
    registered(study=search.settings.study, trials=1)
    assert Worker(url, search.settings.study).work() == 0


def test_between_two_rungs_it_says_which_and_gives_the_trial_back(registered: Callable, url: str, states: Callable) -> None:
    search = registered(trials=1)
    worker = Worker(url, search.settings.study)
    assert worker.turn() == Rung(0, 2)
    worker.give_back(), worker.give_back()
    assert states(search.settings.study) == {"WAITING": 1}
    assert worker.turn() == Over(0, 4, "finished") and isinstance(worker.turn(), Ended)


@pytest.mark.parametrize("how", ["SIGTERM", "the end of its parent"])
def test_a_stopped_worker_gives_its_trial_back(how: str, registered: Callable, process: Callable, states: Callable, query: Callable) -> None:
    search = registered(trials=9, steps=400)
    running = process(search.settings.study, "--with-parent")
    until(lambda: trains(query, search), 300, "it trains")
    if how.startswith("SIG"):
        running.send_signal(getattr(signal, how))
    else:
        running.stdin.close()
    assert running.wait(30) == 130
    assert states(search.settings.study) == {"WAITING": 1}
    assert query("SELECT losses, outcome FROM peft_pareto.leases WHERE study_id = :s", s=search.id) == [(0, None)]


def test_a_finished_study_is_its_end_at_once(searching: Callable, finish: Callable) -> None:
    search = searching(trials=1)
    finish(search)
    assert search.ask() == Ended(0, "all 1 trials are finished")
