"""A small version of each fault, for real; and that what counts them would see what it is there to see."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import finished_study
import psycopg2
import pytest
from launching import until

from benchmarks import faults_counts, faults_left
from benchmarks.faults import HEADER, failed, main, report, row_name, suffer
from benchmarks.faults_plans import compiled_clock
from benchmarks.faults_proxy import Proxy
from benchmarks.faults_study import Load, Place, trainers_of, trains
from hpo import keeping, notes
from metrics.scores import SCORES
from storage import embedded, results

FEW = Load(workers=2, trials=3, kills=2, restarts=1, lease=10.0, pause=(1.0, 2.0), sample=1, minutes=15.0)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with Place(FEW) as made:
        yield made
    assert not made.home.exists() and not faults_left.processes(made.home, servers=True)


@pytest.mark.minutes
@pytest.mark.parametrize("engine, fault", [("local", "kills"), ("local", "restarts"), ("local", "launches"), ("ray", "kills"), ("ray", "restarts"),
                                           ("ray", "driver")])  # the others take minutes each: `python -m benchmarks.faults`
def test_a_study_survives(engine: str, fault: str, place: Place) -> None:
    place.load = replace(FEW, engine=engine)
    row = suffer(fault, place)
    assert row.fault == row_name(fault, engine) and ("actors" in row.done) is (engine == "ray")
    assert row.wrong == (), row.cells()
    assert row.counts.finished == row.counts.asked >= FEW.trials and row.counts.compared


@pytest.fixture
def study() -> Iterator[faults_counts.Search]:
    """Three finished trials without training."""
    search = finished_study.begin(finished_study.new_database(), "counted", 3)
    finished_study.finish(search, [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)])
    yield search
    search.store.close()


def spoil(search, statement: str) -> None:
    """Change what the database's own rules would protect."""
    connection = psycopg2.connect(search.store.url.replace("+psycopg2", ""))
    with connection, connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")
        cursor.execute(statement)
    connection.close()


@pytest.mark.parametrize("query, spoiling", [
    ("MISSING_RUNGS", "DELETE FROM peft_pareto.rungs WHERE trial_id = (SELECT min(trial_id) FROM trials)"),
    ("MISSING_RUNGS", "DELETE FROM peft_pareto.rungs WHERE trial_id = (SELECT min(trial_id) FROM trials);"
                      "UPDATE trials SET state = 'PRUNED' WHERE trial_id = (SELECT min(trial_id) FROM trials)"),
    ("SHORT_RUNGS", "DELETE FROM peft_pareto.scores WHERE name = 'kid' AND trial_id = (SELECT min(trial_id) FROM trials)"),
    ("WRONG_REWARDS", "UPDATE trial_values SET value = value + 1 WHERE objective = 1 AND trial_id = (SELECT min(trial_id) FROM trials)"),
    ("DOUBLED", "UPDATE peft_pareto.rungs SET again = true WHERE trial_id = (SELECT min(trial_id) FROM trials)")])
def test_what_is_wrong_in_the_database_is_seen(study, query: str, spoiling: str) -> None:
    def found() -> int:
        return len(faults_counts.rows(study, getattr(faults_counts, query), scores=len(SCORES)))

    assert found() == (6 if query == "MISSING_RUNGS" else 0)  # these trials were told at their last rung only
    spoil(study, spoiling)
    assert found() == (7 if query == "MISSING_RUNGS" and "PRUNED" not in spoiling else 5 if query == "MISSING_RUNGS" else 1)


def test_a_point_without_its_tensors_is_seen(study) -> None:
    from benchmarks.faults_counts import front, front_hashes

    assert len(front_hashes(study)) == 3
    assert front(study, None) == (3, 3)
    assert not list(keeping.folder(study).glob(f"trial-*-{min(front_hashes(study))}.safetensors"))
    assert results.artifacts(study.store, study.id, keeping.WEIGHTS) == {}


def test_counts_say_what_is_wrong() -> None:
    good = faults_counts.Counts(asked=5, finished=5, running=0, failed=0, lost=0, doubled=0, compared=2, different=0, points=3, bare=0, reasons=())
    assert good.wrong == []
    for change in ({"finished": 6}, {"running": 1}, {"lost": 1}, {"doubled": 1}, {"different": 1}, {"compared": 0}, {"points": 0}, {"bare": 1}):
        assert len(replace(good, **change).wrong) == 1, change


def test_failed_trials_have_their_reasons() -> None:
    good = faults_counts.Counts(asked=5, finished=5, running=0, failed=0, lost=0, doubled=0, compared=2, different=0, points=3, bare=0, reasons=())
    assert failed(good) == "0"
    assert failed(replace(good, failed=3, reasons=("a | b", "c", "a | b"))) == "3 (2 × a   b; 1 × c)"


def test_a_picture_that_no_trial_notes_is_found(study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(embedded.HOME_VARIABLE, str(tmp_path))
    study.register(4, {"model": "m", "encoder": "e", "data": "d"})
    notes.write(study, finished_study.ask(study), finished_study.result(1.0, 1.0))
    (picture,) = notes.artifact_folder().iterdir()
    assert faults_counts.pictures(study) == {picture.name}
    assert faults_left.stray_pictures(notes.artifact_folder(), {picture.name}) == []
    half = picture.with_name(f"{picture.name}.unfinished")
    half.touch()
    assert faults_left.stray_pictures(notes.artifact_folder(), {picture.name}) == [half.name]


def test_scores_agree_only_if_all_do() -> None:
    one = {"fd": (1.0, 0.5, 1.5), "kid": (2.0, 1.0, 3.0)}
    assert faults_counts.agree(one, dict(one))
    assert not faults_counts.agree(one, {"fd": (1.0, 0.5, 1.5)})
    assert not faults_counts.agree(one, one | {"kid": (2.0, 1.0, 3.0001)})


def test_shared_memory_of_a_killed_process_is_found() -> None:
    code = ("from multiprocessing import resource_tracker, shared_memory; m = shared_memory.SharedMemory(create=True, size=4096);"
            "resource_tracker.unregister(m._name, 'shared_memory'); print(m.name, flush=True); import time; time.sleep(60)")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    name = process.stdout.readline().strip()
    try:
        assert faults_left.mapped_memory([process.pid]) == {name}
        assert name not in faults_left.mapped_memory([os.getpid()])
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert name in faults_left.shared_memory()
    finally:
        process.kill()
        (faults_left.SHARED_MEMORY / name).unlink()


def test_processes_of_a_data_folder_are_found(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"], stdout=subprocess.PIPE,
                               env={**os.environ, embedded.HOME_VARIABLE: str(tmp_path)})
    process.stdout.readline()
    try:
        assert [each.pid for each in faults_left.processes(tmp_path, servers=True)] == [process.pid]
    finally:
        process.kill()
        process.wait()
    assert faults_left.processes(tmp_path, servers=True) == []


def test_rays_actors_are_found_under_their_launch() -> None:
    script = "(exec -a 'ray::ResourceTrainable.train' sleep 60) & echo $!; (exec -a ray::IDLE sleep 60) & echo $!; wait"
    launch = subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, text=True)
    actor, idle = (int(launch.stdout.readline()) for _ in range(2))
    try:
        until(lambda: trains(actor), 30, "it has its name")
        assert trainers_of(launch.pid) == [actor] and not trains(idle) and not trains(launch.pid)
        os.kill(actor, signal.SIGKILL)
        until(lambda: not trains(actor), 30, "it is gone, or a zombie")
        assert trainers_of(launch.pid) == []
    finally:
        for pid in (idle, launch.pid):
            os.kill(pid, signal.SIGKILL)
        launch.wait()
    assert trainers_of(launch.pid) == [] and trainers_of(os.getpid()) == []


def test_a_worker_process_is_a_trainer_itself() -> None:
    worker = subprocess.Popen([sys.executable, "-m", "hpo.worker", "--study=none", "--wait=60", "--storage=postgresql://127.0.0.1:1/none"], stderr=subprocess.DEVNULL)
    try:
        until(lambda: trainers_of(worker.pid) == [worker.pid], 30, "it has its command line")
    finally:
        worker.kill()
        worker.wait()
    assert trainers_of(worker.pid) == []


def test_an_engine_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--engine", "slurm"])
    assert "'local', 'ray'" in capsys.readouterr().err


def test_files_that_belong_to_no_point_are_found(tmp_path: Path) -> None:
    for name in ("weights/trial-00000-6f-aa.safetensors", "weights/trial-00001-6f-bb.safetensors", "weights/trial-00000-6f-aa.safetensors.0f.unfinished",
                 "states/trial-00000-6f-rr-0.safetensors", "states/trial-00001-6f-ss-0.safetensors", "logs/worker-0.log"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert faults_left.stray_files(tmp_path, {"aa"}, {"rr"}) == ["trial-00000-6f-aa.safetensors.0f.unfinished", "trial-00001-6f-bb.safetensors",
                                                                          "trial-00001-6f-ss-0.safetensors"]


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[str]:
    """A Unix socket whose server says everything back."""
    path = str(tmp_path / "echo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def serve(client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := client.recv(1024):
                client.sendall(piece)

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield path
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_the_network_passes_refuses_goes_mute_and_cuts(echo: str) -> None:
    def connected() -> socket.socket:
        client = socket.create_connection(("127.0.0.1", proxy.port), timeout=5)
        client.settimeout(60)
        return client

    with Proxy(echo) as proxy:
        client = connected()
        client.sendall(b"one")
        assert client.recv(10) == b"one"
        proxy.set("silence")
        client.sendall(b"two")
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.recv(10)
        client.settimeout(60)
        proxy.set("pass")
        with pytest.raises(ConnectionResetError):
            client.recv(10)
        proxy.set("refuse")
        with pytest.raises(ConnectionRefusedError):
            connected()
        proxy.set("pass")
        client = connected()
        proxy.to_cut = 1
        client.sendall(b"a statement")
        with pytest.raises(ConnectionResetError):
            while client.recv(10):
                pass
            raise AssertionError("it was closed in good order")
        assert proxy.cuts == 1


def test_the_clock_is_wrong_where_it_shall_be(tmp_path: Path) -> None:
    assert compiled_clock(tmp_path).exists()  # it tries the clock itself, and raises


def test_a_report_keeps_the_rows_of_other_faults() -> None:
    def row(name: str, filled: str) -> dict[str, list[str]]:
        return {name: [name, *[filled] * (len(HEADER) - 1)]}

    former = report(row("network", "1") | row("kills, ray", "1") | row("kills", "1"), "")
    later = report(row("kills", "3"), report(row(row_name("kills", "ray"), "2"), former))
    rows = [line.split(" | ")[:2] for line in later.splitlines() if line.startswith(("| kills", "| network"))]
    assert rows == [["| kills", "3"], ["| network", "1"], ["| kills, ray", "2"]]
