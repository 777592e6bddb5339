"""What is peculiar to the local engine: which devices, how many workers, and when a worker's death is the end."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hpo import engines
from hpo.engines import base
from hpo.engines.base import MOST_A_CORE, MOST_DEATHS, Deaths, cores, fitting_share, most_workers, places_on, threads_for
from hpo.engines.local import Local, WorkerProcess, default_workers, gpus
from hpo.engines.ray import Ray
from hpo.errors import BadSetting, SearchError
from hpo.settings import Settings
from storage.errors import StorageUnreachable


@pytest.fixture
def nvidia(tmp_path: Path, monkeypatch) -> Callable[[int], None]:
    """Puts an nvidia-smi on the PATH that lists so many GPUs."""
    def put(count: int) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text("#!/bin/sh\n" + "\n".join(f"echo 'GPU {i}: NVIDIA H100 (UUID: GPU-{i})'" for i in range(count)) + "\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return put


@pytest.mark.parametrize(("visible", "number"), [(None, 4), ("0,1", 2), ("", 0), ("-1", 0), ("2", 1), ("0,-1,1", 1), ("0,1,2,3,4,5", 4), ("GPU-0", 1)])
def test_all_gpus_that_a_process_would_see_are_taken(visible: str | None, number: int, nvidia: Callable, monkeypatch) -> None:
    nvidia(4)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus("auto") == [f"cuda:{i}" for i in range(number)]


def test_a_named_device_is_taken_as_it_is(nvidia: Callable) -> None:
    nvidia(4)
    assert (gpus("cuda:2"), gpus("cpu"), gpus("mps"), len(gpus("cuda"))) == (["cuda:2"], [], ["mps"], 4)


def test_a_gpu_that_was_asked_for_must_be_there(nvidia: Callable) -> None:
    nvidia(0)
    assert gpus("auto") == []
    with pytest.raises(BadSetting, match="--device cuda: nvidia-smi lists no GPU"):
        gpus("cuda")


def test_one_worker_a_gpu_else_one_a_core_as_memory_allows() -> None:
    assert default_workers(["cuda:0", "cuda:1"]) == 2 and 1 <= default_workers([]) <= cores()


def test_threads_share_the_cores_unless_they_are_told(monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_for(1) == threads_for(100) == 3
    for value in ("", "auto"):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert threads_for(1) == cores() and threads_for(1000) == 1


@pytest.mark.parametrize(("count", "workers", "says"), [
    (1, 2, "--workers 2: there is 1 GPU, and each worker of the local engine takes a whole one; share them out with --engine ray --gpus-per-trial 0.5, or take at most 1"),
    (4, 6, "--workers 6: there are 4 GPUs.*--gpus-per-trial 0.5, or take at most 4"), (2, 6, "--gpus-per-trial 0.3333, or")])
def test_more_workers_than_gpus_are_told_the_fraction_that_would_fit(count: int, workers: int, says: str, nvidia: Callable) -> None:
    nvidia(count)
    with pytest.raises(BadSetting, match=says) as refused:
        Local().check(Settings(workers=workers))
    assert "\n" not in str(refused.value)
    Local().check(Settings(workers=count)), Local().check(Settings(workers=workers, device="cpu")), Local().check(Settings())
    with pytest.raises(BadSetting, match="take at most 1"):
        Local().check(Settings(workers=2, device="cuda:0"))
    shared = Settings(engine="ray", workers=workers, gpus_per_trial=fitting_share(count, workers))
    Ray().check(shared)
    assert Ray().places(shared) == workers


def test_ray_says_how_far_to_lower_the_fraction(nvidia: Callable) -> None:
    nvidia(2)
    with pytest.raises(BadSetting, match="--workers 6 --gpus-per-trial 0.4: only 4 fit on 2 GPUs; lower --gpus-per-trial to 0.3333, or take at most 4 workers"):
        Ray().check(Settings(engine="ray", workers=6, gpus_per_trial=0.4))


@pytest.mark.parametrize("given", [{"workers": 100_000, "device": "cuda"}, {"workers": 2, "device": "cuda:1"}, {"workers": 3, "device": "cuda"}, {"workers": 100_000, "device": "cpu"},
                                   {"workers": 100_000}, {"workers": 15_000, "device": "cuda", "engine": "ray", "gpus_per_trial": 0.0001},
                                   {"workers": 100_000, "engine": "ray", "gpus_per_trial": 0.0001}, {"workers": 3, "engine": "ray"},
                                   {"workers": 100_000, "device": "cpu", "engine": "ray"}, {"device": "cuda", "engine": "ray", "gpus_per_trial": 3.0}])
def test_whoever_does_what_a_refusal_says_is_not_refused_again(given: dict, nvidia: Callable) -> None:
    """Each way out that is named, taken by itself."""
    nvidia(2)
    asked = Settings(**given).check()
    with pytest.raises(BadSetting) as refused:
        engines.named(asked.engine).check(asked)
    said = str(refused.value)
    ways = [{"workers": int(most)} for most in re.findall(r"take at most (\d+)", said)]
    ways += [{"engine": "ray", "gpus_per_trial": float(share)} for share in re.findall(r"(?:--engine ray --gpus-per-trial|lower --gpus-per-trial to) ([\d.]+)", said)]
    ways += [{"workers": None}] * ("leave the flag out" in said) + [{"device": "cpu", "gpus_per_trial": 1.0}] * ("take --device cpu" in said)
    assert ways and "\n" not in said
    for way in ways:
        chosen = replace(asked, **way).check()
        engines.named(chosen.engine).check(chosen)
        assert 1 <= engines.named(chosen.engine).places(chosen) <= most_workers()


def test_a_machine_holds_so_many_workers_as_its_memory_and_cores_allow(monkeypatch) -> None:
    monkeypatch.setattr(base, "cores", lambda: 2)
    for gib, most in ((0.1, 1), (3.9, 7), (1000.0, 2 * MOST_A_CORE)):
        monkeypatch.setattr(base, "memory_gib", lambda: gib)
        assert most_workers() == most
        base.check_fits(most), base.check_fits(None)
        with pytest.raises(BadSetting, match=f"^--workers {most + 1}: this machine holds at most {most}, each takes 0.5 GiB or more of its {gib:.1f} GiB"):
            base.check_fits(most + 1)


@pytest.mark.parametrize(("gpus", "share", "places"), [(2, 0.4, 4), (2, 1.0, 2), (1, 0.1, 10), (3, 2.0, 1), (1, 2.0, 0), (2, 0.3333, 6), (1, 0.00001, 10_000)])
def test_no_fraction_is_split_between_two_gpus(gpus: int, share: float, places: int) -> None:
    assert places_on(gpus, share) == places


def test_workers_that_die_while_nothing_gets_on_are_not_started_for_ever() -> None:
    deaths = Deaths(2, lambda: 7)
    for _ in range(2 + MOST_DEATHS):
        deaths.note(1.0, "no module named x")
    with pytest.raises(SearchError, match="6 workers died while no trial got on, the last one after 1 s: no module named x"):
        deaths.note(1.0, "no module named x")


def test_deaths_between_which_trials_get_on_are_borne_however_many() -> None:
    rungs = iter(range(1000))
    deaths = Deaths(1, lambda: next(rungs))
    for _ in range(100):
        deaths.note(1.0, "killed")


def test_a_store_that_is_away_is_no_sign_of_life() -> None:
    def away() -> int:
        raise StorageUnreachable("away")

    deaths = Deaths(1, away)
    for _ in range(1 + MOST_DEATHS):
        deaths.note(1.0, "killed")
    with pytest.raises(SearchError):
        deaths.note(1.0, "killed")


def test_a_worker_whose_log_had_no_room_for_the_reason_is_no_riddle(tmp_path) -> None:
    log = tmp_path / "worker-0.log"
    worker = WorkerProcess(None, log, "cpu")
    log.write_text("12:00:00 loading the base model\nerror: --out out: no space is left\n")
    assert worker.reason() == "--out out: no space is left"
    for cut in ("12:00:00 loading the base model\nerror: --ou", "12:00:00 loading the base model\n", ""):
        log.write_text(cut)
        assert worker.reason() == f"a worker could not go on, and its log has no room for the reason ({log}): free some space there, then run the same command again"
