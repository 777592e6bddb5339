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
import numpy as np
import psycopg2
import pytest
from launching import until
from safetensors.torch import load_file, safe_open, save_file

from benchmarks import faults_counts, faults_left
from benchmarks.faults import HEADER, failed, main, report, row_name, suffer
from benchmarks.faults_plans import compiled_clock, first_said, times_lost
from benchmarks.faults_proxy import Proxy
from benchmarks.faults_study import FaultyStudy, Load, Place, WorkerProcess, is_one_line, trainers_of, trains
from hpo import home, keeping, notes
from hpo.study import Search
from hpo.trial import run_trial
from metrics.scores import SCORES, Scores
from storage import embedded, leases, results
from storage.store import open_store, worker_name

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
    for point in [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]:
        finished_study.tell(search, finished_study.ask(search), scored(*point))
    yield search
    search.store.close()


def scored(fd: float, copy_excess: float) -> Scores:
    return Scores({name: replace(each, replicates=np.linspace(0, 1, 256)) for name, each in finished_study.scores(fd, copy_excess).items()})


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
    ("SHORT_RUNGS", "UPDATE peft_pareto.scores SET replicates = NULL WHERE name = 'fd' AND trial_id = (SELECT min(trial_id) FROM trials)"),
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


@pytest.fixture
def faulty(place: Place, tmp_path: Path) -> Iterator[FaultyStudy]:
    """One that is registered for two trials, and nobody works on it."""
    place.load = FEW
    study = FaultyStudy(place, tmp_path.name, tmp_path)
    study.register(2)
    yield study
    study.close()


@contextlib.contextmanager
def joined(study: FaultyStudy) -> Iterator[Search]:
    """As a worker sees it that runs in this process."""
    search = Search(open_store(study.url, worker_name()), study.settings)
    yield search
    search.store.close()


@pytest.mark.slow
def test_weights_and_scores_are_measured_again(faulty: FaultyStudy) -> None:
    with joined(faulty) as search:
        asked, inner = finished_study.ask(search), faulty.place.inner
        assert len(list(run_trial(search, inner, asked))) == 1  # between its two rungs
        points, bare = faults_counts.front(search, inner)
        assert points and bare == 0
        assert faults_counts.compare(search, inner, 1, ()) == (2, 0)

        (trial,) = faults_counts.rows(search, faults_counts.TO_COMPARE)
        spoil(search, "UPDATE peft_pareto.scores SET replicates[7] = replicates[7] * 1.000001 + 1e-6 WHERE name = 'fd'")
        assert faults_counts.rerun(search, inner, trial) == [False, False]
        spoil(search, "UPDATE peft_pareto.scores SET replicates = NULL")
        assert faults_counts.rerun(search, inner, trial) == [False, False]


@pytest.mark.slow
def test_weights_of_another_model_are_of_no_use(faulty: FaultyStudy) -> None:
    with joined(faulty) as search:
        for _ in run_trial(search, faulty.place.inner, finished_study.ask(search)):
            pass
        points, _ = faults_counts.front(search, faulty.place.inner)
        for path in keeping.folder(search).iterdir():
            with safe_open(path, "pt") as file:
                header = file.metadata()
            save_file({name: 0 * tensor for name, tensor in load_file(path).items()}, path, metadata=header)
        assert faults_counts.front(search, faulty.place.inner) == (points, points)


def test_the_harness_frees_no_trial_and_sees_which_changed_hands(faulty: FaultyStudy) -> None:
    with joined(faulty) as dead, joined(faulty) as living:
        asked = finished_study.ask(dead)
        spoil(dead, "UPDATE peft_pareto.leases SET expires_at = now() - interval '1 hour'")
        before = leases.read(dead.store, asked.id).worker
        assert faulty.look(over=False) is None and faulty.look(over=True) is None
        faulty.ask_for(3, leases.counts(dead.store, dead.id))
        counts = leases.counts(dead.store, dead.id)
        assert (counts.trials, counts.running, counts.waiting) == (3, 1, 0)
        assert leases.read(dead.store, asked.id).worker == before and faulty.broken == set()

        taken = finished_study.ask(living)
        assert taken.id == asked.id
        faulty.look(over=False)
        assert faulty.broken == {asked.id}
        faulty.ask_for(1, counts)
        finished_study.tell(living, taken, scored(1.0, 1.0))
        assert faulty.look(over=True).status == 0


def test_trials_that_lost_a_lease_are_compared_first(study) -> None:
    trials = faults_counts.rows(study, faults_counts.TO_COMPARE)
    for trial in trials:
        assert faults_counts.chosen_of(trials, 1, {trial.trial_id}) == [trial]
        first, second = faults_counts.chosen_of(trials, 2, {trial.trial_id})
        assert first == trial != second
    assert len(faults_counts.chosen_of(trials, 5, set())) == 3


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_what_a_worker_says_of_a_trial_that_was_taken_from_it(engine: str, faulty: FaultyStudy) -> None:
    faulty.load = replace(FEW, engine=engine)
    process = subprocess.Popen(["true"])
    process.wait()
    log = faulty.place.logs / f"{faulty.name}-0.log"
    if engine == "ray":
        log = home.logs_folder(faulty.out, faulty.name) / "ray-host.log"
        log.parent.mkdir(parents=True)
    who = f"{process.pid} " if engine == "ray" else ""
    faulty.workers = [WorkerProcess(process, log, lambda: None)]

    def said(*lines: str) -> str:
        log.write_text("".join(f"12:00:00 {who}{line}\n" for line in ("trial 1 was lost: before", *lines)))
        return first_said(faulty, process.pid, 1, 1, [2])

    assert said() == said("trial 1 is evaluated at 2 steps, after 1 s", "trial 11 finished", "trial 2 was lost: it") == ""
    assert said("trial 1 is evaluated at 2 steps, after 1 s", "trial 1 was lost: its lease") == "trial 1 was lost: its lease"
    assert times_lost(faulty) == 2
    assert said("trial 1 is evaluated at 6 steps, after 1 s", "trial 1 was lost: its lease").startswith("trial 1 is evaluated at 6")
    assert said("trial 1 finished") == "trial 1 finished"


@pytest.mark.parametrize("status, lines, is_good", [
    (2, ["12:00:00 trial 1", "error: the disk is full"], True), (1, ["error: the disk is full"], False), (2, ["error: it is cold"], False),
    (2, ["Traceback (most recent call last):", "  raise", "OSError: the disk is full"], False), (2, ["Traceback (most", "error: the disk is full"], False),
    (2, ["error: the disk is full", "error: the disk is full"], False), (2, ["error: the disk is full", "and more"], False), (2, [], False)])
def test_an_end_in_one_line_is_one(status: int, lines: list[str], is_good: bool, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({status})"])
    process.wait()
    log = tmp_path / "log"
    log.write_text("\n".join(lines))
    assert WorkerProcess(process, log, lambda: None).ended_in_one_line("the disk is full") is is_good
    assert is_one_line(lines, "the disk is full") is (is_good or status == 1)


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
    drawn = np.linspace(0, 1, 256, dtype=np.float32)
    one = {"fd": (1.0, 0.5, 1.5, drawn), "kid": (2.0, 1.0, 3.0, None)}
    assert faults_counts.agree(one, one | {"fd": (1.0, 0.5, 1.5, drawn.copy())})
    for other in ({"fd": one["fd"]}, one | {"kid": (2.0, 1.0, 3.0001, None)}, one | {"kid": (2.0, 1.0, 3.0, drawn)}, one | {"fd": (1.0, 0.5, 1.5, None)},
                  one | {"fd": (1.0, 0.5, 1.5, np.nextafter(drawn, 2))}):
        assert not faults_counts.agree(one, other) and not faults_counts.agree(other, one)


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
def heard() -> list[bytes]:
    """What came to the server of `echo`."""
    return []


@pytest.fixture
def echo(tmp_path: Path, heard: list[bytes]) -> Iterator[str]:
    """A Unix socket whose server says everything back."""
    path = str(tmp_path / "echo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def serve(client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := client.recv(1024):
                heard.append(piece)
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


def test_an_answer_is_lost_after_its_statement_came_through(echo: str, heard: list[bytes]) -> None:
    with Proxy(echo) as proxy:
        proxy.to_lose.update({"COMMIT": 1, "tell": 1})
        for statement in (b"SELECT peft_pareto.tell(1, 'finished')", b"Q\0\0\0\x0bCOMMIT\0"):
            client = socket.create_connection(("127.0.0.1", proxy.port), timeout=60)
            client.sendall(b"SELECT 1")
            assert client.recv(100) == b"SELECT 1"
            client.sendall(statement)
            with pytest.raises(ConnectionResetError):
                assert client.recv(100), "it was closed in good order"
            assert heard[-1] == statement
        assert proxy.lost == {"COMMIT": 1, "tell": 1} and proxy.lost.total() == 2
        client = socket.create_connection(("127.0.0.1", proxy.port), timeout=60)
        client.sendall(statement)
        assert client.recv(100) == statement


def test_the_clock_is_wrong_where_it_shall_be(tmp_path: Path) -> None:
    assert compiled_clock(tmp_path).exists()  # it tries the clock itself, and raises


def test_a_report_keeps_the_rows_of_other_faults() -> None:
    def row(name: str, filled: str) -> dict[str, list[str]]:
        return {name: [name, *[filled] * (len(HEADER) - 1)]}

    former = report(row("network", "1") | row("kills, ray", "1") | row("kills", "1"), "")
    later = report(row("kills", "3"), report(row(row_name("kills", "ray"), "2"), former))
    rows = [line.split(" | ")[:2] for line in later.splitlines() if line.startswith(("| kills", "| network"))]
    assert rows == [["| kills", "3"], ["| network", "1"], ["| kills, ray", "2"]]
