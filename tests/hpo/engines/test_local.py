"""What is peculiar to the local engine: which devices, how many workers, and when a worker's death is the end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hpo.engines.base import MOST_QUICK_DEATHS, QUICK_SECONDS, Deaths, cores, threads_for
from hpo.engines.local import default_workers, gpus
from hpo.errors import BadSetting, SearchError


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


def test_workers_that_die_at_once_are_not_started_for_ever() -> None:
    deaths = Deaths(most=10)
    for _ in range(MOST_QUICK_DEATHS):
        deaths.note(1.0, "no module named x")
    with pytest.raises(SearchError, match="4 workers died, the last one after 1 s: no module named x"):
        deaths.note(1.0, "no module named x")


def test_rare_deaths_are_borne_up_to_a_number() -> None:
    deaths = Deaths(most=10)
    for _ in range(10):
        deaths.note(QUICK_SECONDS + 1, "killed")
    with pytest.raises(SearchError, match="11 workers died"):
        deaths.note(QUICK_SECONDS + 1, "killed")
