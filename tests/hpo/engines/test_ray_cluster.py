"""The Ray engine on a cluster of several nodes: real raylets and actors, all of them on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from launching import until

from hpo.engines.ray import connected, own_bell
from hpo.errors import BadSetting

TRIALS = 3
SLOW_SECONDS = 500  # at most; a tenth of it where nothing else runs
ACTOR = "ray::ResourceTrainable"


@pytest.fixture
def cluster(monkeypatch) -> Iterator:
    """A head and a second node, each with a CPU and so with room for one trial."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")  # as docs/cluster.md has it
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        made.add_node(num_cpus=1)
        yield made
    finally:
        made.shutdown()


def actors(node) -> set[int]:
    """Process ids of the trainables that this node's raylet has started."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    found = set()
    for child in raylet.children(recursive=True):
        with suppress(psutil.Error):
            if " ".join(child.cmdline()).startswith(ACTOR):
                found.add(child.pid)
    return found


def paused(pids: set[int], study: str, holders: Callable) -> set[int]:
    """Those that hold a trial, which they cannot end any more."""
    holding = pids & set(holders(study))
    for pid in holding:
        os.kill(pid, signal.SIGSTOP)
    still = holding & set(holders(study))
    for pid in holding - still:
        os.kill(pid, signal.SIGCONT)
    return still


@pytest.mark.minutes
def test_a_node_is_lost_with_its_trial_and_the_study_ends_with_exactly_n(cluster, begun: Callable, launched: Callable, states: Callable, holders: Callable,
                                                                        url: str, tmp_path: Path) -> None:
    asked = begun(engine="ray", trials=TRIALS, steps=40, workers=None, storage=url, ray_address=cluster.address)
    process: subprocess.Popen = launched(asked)
    head, (second,) = cluster.head_node, cluster.worker_nodes
    until(lambda: process.poll() is not None or (actors(head) and actors(second)), SLOW_SECONDS, "an actor on each node")
    until(lambda: process.poll() is not None or states(asked.study).get("COMPLETE", 0) >= 1, SLOW_SECONDS, "a trial is finished")
    lost = until(lambda: process.poll() is not None or paused(actors(second), asked.study, holders), SLOW_SECONDS, "the second node holds another")
    assert process.poll() is None, (tmp_path / "launch.log").read_text()
    cluster.remove_node(second, allow_graceful=False)
    for pid in lost:
        os.kill(pid, signal.SIGKILL)  # as with a machine; left alone, it would notice after a while that its node is gone
    until(lambda: not any(psutil.pid_exists(pid) for pid in lost), 60, "its actors are gone with it")
    assert process.wait(SLOW_SECONDS) == 0, (tmp_path / "launch.log").read_text()
    assert states(asked.study)["COMPLETE"] == TRIALS and not {"RUNNING", "WAITING"} & set(states(asked.study))
    said = (tmp_path / "launch.log").read_text()
    assert f"all {TRIALS} trials are finished" in said and "Traceback" not in said and "a worker died, Ray starts another" in said
    until(lambda: not actors(head), 30, "no actor outlives the launch")


@pytest.mark.minutes
def test_a_launch_ends_and_leaves_the_cluster_as_it_was(cluster, begun: Callable, launched: Callable, states: Callable, url: str, tmp_path: Path) -> None:
    asked = begun(engine="ray", trials=TRIALS, steps=40, workers=None, storage=url, ray_address=cluster.address)
    process: subprocess.Popen = launched(asked)
    until(lambda: process.poll() is not None or states(asked.study).get("RUNNING", 0) == 2, SLOW_SECONDS, "two trials run")
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 130, (tmp_path / "launch.log").read_text()
    assert "RUNNING" not in states(asked.study)
    nodes = [cluster.head_node, *cluster.worker_nodes]
    until(lambda: not any(actors(node) for node in nodes), 30, "no actor outlives the launch")
    assert len(cluster.list_all_nodes()) == 2 and all(node.live_processes() for node in nodes)


@pytest.mark.slow
def test_the_bell_is_on_the_node_of_its_launch(cluster) -> None:
    """One that takes no CPU may be put on any other, and whoever is to hear it does not once that node is lost."""
    import ray

    with connected(cluster.address):
        bells = [own_bell() for _ in range(8)]  # by chance all of them are here once in 256 times
        where = {ray.get(bell.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())) for bell in bells}
        assert where == {ray.get_runtime_context().get_node_id()} and len(ray.nodes()) == 2


@pytest.mark.slow
def test_a_cluster_of_another_version_is_refused_in_one_line(cluster, monkeypatch) -> None:
    import ray

    for name, value in (("ray.__version__", "2.0.0"), ("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "some")):
        with monkeypatch.context() as other:
            other.setattr(name, value) if name.startswith("ray.") else other.setenv(name, value)
            with pytest.raises(BadSetting) as refused, connected(cluster.address):
                pytest.fail("joined")
        said = str(refused.value)
        assert said.startswith(f"--ray-address {cluster.address}: Ray refuses to join that cluster") and "\n" not in said
        assert not name.startswith("ray.") or "started with: Ray: 2.0.0" in said and "the same Ray and Python on all machines" in said
    with pytest.raises(RuntimeError, match="^of the block"), connected(cluster.address):
        raise RuntimeError("of the block")
    assert not ray.is_initialized()
