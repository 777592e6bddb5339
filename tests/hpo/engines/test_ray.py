"""What is peculiar to the Ray engine: what a trial takes of the cluster, what is refused, and how an actor stops between two rungs."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from launching import until

from hpo.ending import Ended
from hpo.engines.ray import MOST_IN_VAIN, Ray, Shares, check_reachable_store, connected, own_bell, own_folder, shares_of, short_folder, waiting
from hpo.errors import BadSetting
from hpo.home import HOME_VARIABLE, study_folder
from hpo.identity import identity, resolution_of
from hpo.preparation import dealt_sides
from hpo.settings import Settings
from hpo.study import Search


def test_workers_share_the_cpus_of_this_machine(monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for workers, cpus in ((1, 2.0), (2, 1.0), (3, 0.6666), (7, 0.2857)):
        shares = shares_of(Settings(workers=workers), {"CPU": 2.0}, is_cluster=False)
        assert (shares.most, shares.cpus, shares.gpus, shares.device) == (workers, cpus, 0.0, "cpu")
        assert shares.most * shares.cpus <= 2.0, "else the last one would never start"


def test_fractions_of_gpus_say_how_many_trials_run_at_a_time() -> None:
    shares = shares_of(Settings(gpus_per_trial=0.25, trials=100), {"CPU": 16.0, "GPU": 2.0}, is_cluster=False)
    assert (shares.most, shares.gpus, shares.cpus, shares.device) == (8, 0.25, 2.0, "cuda")
    assert shares_of(Settings(gpus_per_trial=0.25, trials=3), {"CPU": 16.0, "GPU": 2.0}, False).most == 3, "no more than trials"
    assert shares_of(Settings(device="cpu"), {"CPU": 16.0, "GPU": 2.0}, False).gpus == 0


def test_a_cluster_gives_one_cpu_a_trial() -> None:
    shares = shares_of(Settings(trials=100), {"CPU": 24.0}, is_cluster=True)
    assert (shares.most, shares.cpus, shares.threads) == (24, 1.0, 1)


@pytest.mark.parametrize(("settings", "has", "says"), [
    (Settings(device="cuda"), {"CPU": 4.0}, "--gpus-per-trial 1: Ray has 0 GPUs here"),
    (Settings(gpus_per_trial=2), {"CPU": 4.0, "GPU": 1.0}, "--gpus-per-trial 2: Ray has 1 GPUs here"), (Settings(), {}, "Ray has no CPU here"),
    (Settings(gpus_per_trial=0.5), {"CPU": 4.0}, "--gpus-per-trial 0.5: trials run on the CPU, since Ray has no GPU here; leave the flag out"),
    (Settings(gpus_per_trial=0.5, device="cpu"), {"CPU": 4.0, "GPU": 1.0}, "on the CPU, since --device cpu was given"),
    (Settings(gpus_per_trial=2, device="cuda"), {"CPU": 4.0, "GPU": 1.0}, "take --device cpu without it$")])
def test_what_could_never_start_is_refused(settings: Settings, has: dict, says: str) -> None:
    with pytest.raises(BadSetting, match=says):
        shares_of(settings, has, is_cluster=True)


@pytest.mark.parametrize(("shares", "free", "says"), [
    (Shares(2, 1.0, 0.0, 1, "cpu"), {"CPU": 2.0}, None), (Shares(4, 1.0, 0.5, 1, "cuda"), {"CPU": 8.0, "GPU": 2.0}, None),
    (Shares(6, 1.0, 0.0, 1, "cpu"), {"CPU": 2.0}, "6 trials are to run at a time, but the cluster holds 8, and others leave room for 2 now: the rest wait .*--workers 2"),
    (Shares(2, 1.0, 0.0, 1, "cpu"), {}, "holds 8, and others leave room for 0 now: .*--workers 1"),
    (Shares(9, 1.0, 0.0, 1, "cpu"), {"CPU": 8.0}, "the cluster holds 8: the rest wait until there is room; add machines, or give --workers 8"),
    (Shares(4, 1.0, 0.5, 1, "cuda"), {"CPU": 8.0, "GPU": 1.0}, "holds 4, and others leave room for 2 now")])
def test_trials_that_find_no_room_on_a_cluster_are_said_to_wait(shares: Shares, free: dict, says: str | None) -> None:
    said = waiting(shares, {"CPU": 8.0, "GPU": 2.0}, free)
    assert said is None if says is None else re.search(says, said)


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "10.0.0.1", "10.0.0.1:x", ":6379"])
def test_an_address_of_another_form_is_refused(address: str, monkeypatch) -> None:
    with pytest.raises(BadSetting, match=f"--ray-address {address}: .* address of its head"):
        Ray().check(Settings(ray_address=address))
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(BadSetting, match=f"--ray-address auto, which RAY_ADDRESS says is {address}: .* address of its head, .*or auto without RAY_ADDRESS"):
        Ray().check(Settings(ray_address="auto"))


def test_an_address_that_is_no_name_of_a_host_is_refused() -> None:
    with pytest.raises(BadSetting, match="--ray-address a..b:6379: no Ray cluster answers there"):
        Ray().check(Settings(ray_address="a..b:6379"))


@pytest.mark.parametrize(("given", "says"), [({}, "no authentication token was found"), ({"RAY_AUTH_TOKEN_PATH": "none"}, "cannot be opened or is empty: none")])
def test_a_token_that_is_not_there_is_one_line(given: dict, says: str, tmp_path: Path, repository: Path) -> None:
    """In a process of its own: Ray reads these variables once."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        ended = subprocess.run([sys.executable, "-m", "hpo.launch", "--plan", "--engine", "ray", "--ray-address", address], capture_output=True, text=True,
                               cwd=repository, env={**os.environ, "HOME": str(tmp_path), "RAY_AUTH_MODE": "token", **given})
    assert ended.returncode == 2 and ended.stderr.startswith(f"error: --ray-address {address}: RAY_AUTH_MODE is token, and Ray has no token here (")
    assert says in ended.stderr and "RAY_AUTH_MODE=disabled" in ended.stderr and ended.stderr.count("\n") == 1


def test_the_embedded_server_is_of_no_use_to_other_machines() -> None:
    with pytest.raises(BadSetting, match="--ray-address 10.0.0.1:6379: other machines cannot reach the embedded server, give --storage"):
        check_reachable_store(Settings(engine="ray", ray_address="10.0.0.1:6379"))
    for known in (Settings(), Settings(ray_address="auto"), Settings(ray_address="127.0.0.1:6379"), Settings(ray_address="10.0.0.1:1", storage="postgresql://h/d")):
        check_reachable_store(known)


def test_an_address_without_a_cluster_is_one_line_and_soon() -> None:
    with pytest.raises(BadSetting, match="--ray-address 127.0.0.1:1: no Ray cluster answers there .*ray start --head") as refused:
        Ray().check(Settings(ray_address="127.0.0.1:1"))
    assert "\n" not in str(refused.value)


def test_a_plan_of_a_cluster_that_is_not_there_is_refused(monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(BadSetting, match="--ray-address auto: no Ray cluster answers there"):
        Ray().places(Settings(engine="ray", ray_address="auto"))


def test_ray_starts_where_the_path_of_the_temporary_folder_is_too_long_for_its_sockets(monkeypatch, tmp_path) -> None:
    long = tmp_path / ("long" * 20)
    long.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(long))
    with connected(None) as available:
        assert available["CPU"] >= 1
    with short_folder() as folder:
        assert Path(folder).is_dir()
    assert not Path(folder).exists() and not list(long.iterdir())
    monkeypatch.setenv("TMPDIR", "/tmp")
    with short_folder() as folder:
        assert folder is None, "Ray's own"
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    with pytest.raises(BadSetting, match=f"RAY_TMPDIR {long}: .*or unset it"), connected(None):
        pass


def test_on_this_machine_a_gpu_that_was_asked_for_must_be_there(monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(BadSetting, match="lists no GPU"):
        Ray().check(Settings(device="cuda"))
    Ray().check(Settings(device="auto"))


@pytest.mark.parametrize("lost", [False, True], ids=["rung", "lost"])
def test_an_actor_gives_a_result_a_rung_and_gives_its_trial_back_between_two(lost: bool, settings: Callable, opened: Callable, states: Callable, url: str) -> None:
    """Ray has the main thread then, outside Python, where no signal is handled. So where the bell is lost, since nobody could stop it any more."""
    import ray
    from ray import tune

    from hpo.engines.ray_actors import BELL_LOST, StudyTrial

    torch.set_num_threads(1)
    chosen = settings(trials=2, engine="ray")
    Search(opened(), chosen).register(2, identity(chosen, dealt_sides(chosen, resolution_of(chosen))))
    with connected(None):
        bell = own_bell()
        given = {"url": url, "study": chosen.study, "threads": 1, "device": "cpu", "home": os.environ[HOME_VARIABLE], "paths": {}}
        actor = ray.remote(num_cpus=1)(tune.with_parameters(StudyTrial, given=given, bell=bell)).remote()
        said = [{name: result.get(name) for name in ("trial", "steps", "done", "outcome", "refused")}
                for result in (ray.get(actor.train.remote(), timeout=300) for _ in range(3))]
        assert said == [dict(trial=0, steps=2, done=False, outcome=None, refused=None), dict(trial=0, steps=4, done=True, outcome="finished", refused=None),
                        dict(trial=1, steps=2, done=False, outcome=None, refused=None)]
        assert states(chosen.study) == {"COMPLETE": 1, "RUNNING": 1}
        logged = (study_folder(chosen.out, chosen.study) / "logs" / f"ray-{socket.gethostname()}.log").read_text()
        assert re.search(r"^[\d:]+ \d+ trial 0: .*\n[\d:]+ \d+ trial 0 is evaluated at 2 steps, after [\d.]+ s \(training [\d.]+, held-out loss [\d.]+, generating [\d.]+, scoring [\d.]+\)\n", logged)
        if lost:
            ray.kill(bell)
        else:
            assert len(ray.get(bell.ring.remote())) == 1
        until(lambda: states(chosen.study) == {"COMPLETE": 1, "WAITING": 1}, 30, "the trial is given back")
        after = ray.get(actor.train.remote(), timeout=30)
        assert after["done"] and after["refused"] == (BELL_LOST if lost else None), "and nothing is begun after it"
        assert states(chosen.study) == {"COMPLETE": 1, "WAITING": 1}


def test_launches_have_folders_of_their_own_and_clear_those_of_killed_ones(tmp_path) -> None:
    killed, other, running = (tmp_path / name for name in (f"ray-{socket.gethostname()}-{2**22 + 1}", "ray-elsewhere-7", f"ray-{socket.gethostname()}-{os.getppid()}"))
    for folder in (killed, other, running):
        folder.mkdir()
    own = own_folder(tmp_path)
    assert str(os.getpid()) in own.name and not killed.exists() and other.exists() and running.exists()


def test_a_folder_of_another_name_is_left_alone(tmp_path, monkeypatch) -> None:
    """The host's name may be the beginning of another's, and hold what a pattern would take for its own."""
    monkeypatch.setattr(socket, "gethostname", lambda: "vm[1]")
    names = [f"ray-vm[1]-{2**22 + 1}", f"ray-vm[1]-2-{2**22 + 1}", "ray-vm[1]-old", f"ray-vm[1]-{10**12}", f"ray-vm1-{2**22 + 1}", f"ray-vm[1]-{2**22 + 1}.kept"]
    for name in names:
        (tmp_path / name).mkdir()
    own_folder(tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(names[1:])


def test_a_launch_goes_on_where_another_asks_for_more_trials_as_the_study_ends(settings: Callable, opened: Callable, states: Callable, url: str) -> None:
    chosen = settings(trials=1, engine="ray")
    own, what = Search(opened(), chosen), identity(chosen, dealt_sides(chosen, resolution_of(chosen)))
    own.register(1, what)
    usual, ends = own.state, []

    def state():
        """The study's end, after which another launch asks for a second trial before the searcher has told Ray."""
        found = usual()
        if found is not None and not ends:
            Search(opened(), replace(chosen, trials=2)).register(2, what)
        ends.extend([found] * (found is not None))
        return found

    own.state = state
    assert Ray().run(own, url, lambda: None) == Ended(0, "all 2 trials are finished")
    assert ends[0] == Ended(0, "all 1 trials are finished") and states(chosen.study) == {"COMPLETE": 2}


def test_tuners_that_get_nowhere_are_not_begun_for_ever(settings: Callable, opened: Callable, states: Callable, url: str) -> None:
    """A searcher that finds an end which is none, as often as it is asked."""
    chosen = settings(trials=2, engine="ray")
    own = Search(opened(), chosen)
    own.register(2, identity(chosen, dealt_sides(chosen, resolution_of(chosen))))
    usual, asked = own.state, []

    def state():
        asked.append(sys._getframe(1).f_code.co_name == "suggest")
        return Ended(0, "not so") if asked[-1] else usual()

    own.state = state
    assert Ray().run(own, url, lambda: None) == Ended(1, "the study has not ended, though Ray has")
    assert asked.count(True) == asked.count(False) == MOST_IN_VAIN + 1 and states(chosen.study) == {}
