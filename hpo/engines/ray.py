"""The Ray engine: Ray Tune with a Searcher over the same study. Postgres is the truth; Ray only places trials."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from hpo import home
from hpo.command import one_line
from hpo.ending import Ended
from hpo.engines.base import GRAIN, STOP_SECONDS, Deaths, Engine, Watch, check_fits, cores, fitting_share, most_workers, places_on, threads_for
from hpo.engines.local import default_workers, gpus
from hpo.engines.ray_actors import Bell, StudyTrial
from hpo.errors import BadSetting, SearchError
from hpo.settings import Settings
from hpo.study import Search
from hpo.worker import own_paths
from storage import leases, results, standing
from storage.cluster import LONGEST_SOCKET
from storage.errors import StorageError
from storage.retrying import retrying

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # between looks at the study for the display, or when nothing may start
OBJECT_STORE_BYTES = 100 << 20  # what passes through it here is a few hundred bytes
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray would send statistics of use to its makers
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray is going to do some day, and announces at every start
    "RAY_worker_niceness": "0",  # Ray's 15 starves trials on a machine that does anything else
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints a table and a path whatever `verbose` says
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # four files a trial that repeat what Postgres has
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: it gives trials back
}
START_RAY = "start one with ray start --head, give launch its RAY_AUTH_MODE and token, or leave the flag out"
ANSWER_SECONDS = 5.0
MOST_IN_VAIN = 3  # Tuners that end before the study does, one after another, while no trial gets to a rung
SOCKET = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # the longest of Ray's in its temporary folder
MODE, MISMATCH = "RAY_AUTH_MODE", "Version mismatch: "  # the beginning of what Ray says where a cluster has another version of it, or of Python
MAX_PENDING = "TUNE_MAX_PENDING_TRIALS_PG"  # how many actors start at the same time; 1 if Tune is not told


@dataclass(frozen=True)
class Shares:
    """How many trials run at a time, and what each takes of the cluster."""

    most: int
    cpus: float
    gpus: float
    threads: int
    device: str


def shares_of(settings: Settings, available: dict[str, float], is_cluster: bool) -> Shares:
    """What a trial takes. available: Ray's CPUs and GPUs. Raises BadSetting where no trial would ever fit."""
    cpu_count, gpu_count = available.get("CPU", 0.0), available.get("GPU", 0.0)
    kind = settings.device
    if kind == "auto":
        kind = "cuda" if gpu_count else "cpu"
    if kind == "cpu" and settings.gpus_per_trial != 1:
        why = "--device cpu was given" if settings.device == "cpu" else "Ray has no GPU here"
        raise BadSetting(f"--gpus-per-trial {settings.gpus_per_trial:g}: trials run on the CPU, since {why}; leave the flag out")
    share = 0.0 if kind == "cpu" else settings.gpus_per_trial
    if share > gpu_count:
        raise BadSetting(f"--gpus-per-trial {share:g}: Ray has {gpu_count:g} GPUs here, so no trial could ever start; {'lower it, or ' * bool(gpu_count)}"
                         f"take --device cpu{' without it' * (settings.gpus_per_trial != 1)}")
    places, held = places_on(gpu_count, share) if share else 0, math.inf if is_cluster else most_workers()
    if share and settings.workers is not None and settings.workers > places:
        fits = fitting_share(int(gpu_count), settings.workers) if settings.workers <= held else 0
        raise BadSetting(f"--workers {settings.workers} --gpus-per-trial {share:g}: only {places} fit on {gpu_count:g} GPUs; "
                         f"{f'lower --gpus-per-trial to {fits:g}, or ' * bool(fits)}take at most {min(places, held)} workers")
    if cpu_count <= 0:
        raise BadSetting("--engine ray: Ray has no CPU here, so no trial could ever start; add a machine with CPUs to the cluster")
    if not share:
        places = int(cpu_count) if is_cluster else default_workers([])
    most = settings.workers or min(max(places, 1), settings.trials, held)
    if is_cluster:  # whose machines may be of different sizes
        return Shares(most, min(1.0, cpu_count), share, 1, kind)
    each = cpu_count / most  # Ray takes whole CPUs, or fractions of one; rounded up, the last trial would never fit
    return Shares(most, float(int(each)) if each >= 1 else math.floor(each * GRAIN) / GRAIN, share, threads_for(most), kind)


@dataclass
class Run:
    """One `Ray.run`: what its searchers and callbacks know. `problem` ends it; it is raised once all actors have stopped."""

    search: Search
    watch: Watch
    bell: Any
    most: int
    deaths: Deaths
    problem: BaseException | None = None

    def __getstate__(self) -> dict:
        """Nothing: Ray pickles its searcher for a restore of its own, which is never used."""
        return {}

    def give_up(self, problem: BaseException) -> None:
        if self.problem is None:
            self.problem = problem
            self.bell.ring.remote()


def make_searcher(run: Run):
    """A Ray Searcher that lets as many trials start as the study still needs, and ends when the study has.

    What a trial is, is asked for in the actor: the process that asks holds the lease, so a proposal never waits in Ray's
    queue with a lease that nobody extends, and an actor that dies loses nothing but its own trial.
    """
    from ray.tune.search import Searcher

    class StudySearcher(Searcher):
        def __init__(self):
            super().__init__(metric=None, mode=None)
            self.live: set[str] = set()
            self.looked = -math.inf

        def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
            if run.problem is not None:
                return Searcher.FINISHED
            if len(self.live) >= run.most or time.monotonic() - self.looked < LOOK_SECONDS:
                return None
            try:
                if run.search.state() is not None:
                    return Searcher.FINISHED
                counts = leases.counts(run.search.store, run.search.id)
            except StorageError:  # the display says so, and gives up in the end
                self.looked = time.monotonic()
                return None
            if len(self.live) >= max(counts.trials - counts.finished, 1):
                self.looked = time.monotonic()
                return None
            self.live.add(trial_id)
            return {}  # a candidate is asked for in the actor

        def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
            self.live.discard(trial_id)
            if result and result.get("refused"):
                run.give_up(SearchError(result["refused"]))

        def save(self, checkpoint_path: str) -> None:
            """Nothing: a relaunch builds a new Tuner from the study."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing: see `save`."""

        def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
            """Nothing: see `save`."""

    return StudySearcher()


def make_callback(run: Run):
    """What happens between two steps of Tune: the display, and the count of actors that died."""
    from ray import tune

    class Watching(tune.Callback):
        def __init__(self):
            self.started: dict[str, float] = {}
            self.watched = -math.inf

        def on_step_end(self, iteration, trials, **info) -> None:
            if time.monotonic() - self.watched < LOOK_SECONDS:  # a step takes a tenth of a second
                return
            self.watched = time.monotonic()
            try:
                run.watch()
            except (SearchError, StorageError) as error:
                run.give_up(error)

        def on_trial_start(self, iteration, trials, trial, **info) -> None:
            self.started[trial.trial_id] = time.monotonic()

        def on_trial_error(self, iteration, trials, trial, **info) -> None:
            lived = time.monotonic() - self.started.get(trial.trial_id, time.monotonic())
            log.warning("a worker died, Ray starts another: %s", last_line_of(trial))
            try:
                run.deaths.note(lived, last_line_of(trial))
            except SearchError as error:
                run.give_up(error)

    return Watching()


def last_line_of(trial) -> str:
    """The last line of what Ray says about a trial whose actor died."""
    said = Path(trial.error_file).read_text(errors="replace") if trial.error_file and Path(trial.error_file).exists() else ""
    return ([line.strip() for line in said.splitlines() if line.strip()] or ["Ray gives no reason"])[-1]


class Ray(Engine):
    name = "ray"

    def check(self, settings: Settings) -> None:
        if settings.ray_address is not None:
            check_address(settings.ray_address)
            check_reachable_store(settings)
            self.places(settings)
        else:
            shares_of(settings, {"CPU": float(cores()), "GPU": float(len(gpus(settings.device)))}, is_cluster=False)
            check_fits(settings.workers)

    def places(self, settings: Settings) -> int:
        if settings.ray_address is not None:
            with connected(settings.ray_address) as available:
                return shares_of(settings, available, is_cluster=True).most
        devices = gpus(settings.device)
        return settings.workers or min(places_on(len(devices), settings.gpus_per_trial) if devices else default_workers([]), settings.trials, most_workers())

    def run(self, search: Search, url: str, watch: Watch) -> Ended:
        import ray
        from ray import tune

        settings = search.settings
        folder = own_folder(home.study_folder(settings.out, settings.study).absolute())  # on a cluster, on a disk that all machines see
        with connected(settings.ray_address) as available:
            is_cluster = settings.ray_address is not None
            shares = shares_of(settings, available, is_cluster)
            if is_cluster and (said := waiting(shares, available, ray.available_resources())):
                log.warning("%s", said)
            bell = own_bell()
            run = Run(search, watch, bell, shares.most, Deaths(shares.most, partial(standing.rung_count, search.store, search.id)))
            given = {"url": url, "study": settings.study, **asdict(shares), "home": os.environ.get(home.HOME_VARIABLE), "paths": own_paths(search)}
            trainable = tune.with_resources(tune.with_parameters(StudyTrial, given=given, bell=bell), {"cpu": shares.cpus, "gpu": shares.gpus})
            os.environ[MAX_PENDING] = str(shares.most)
            try:
                return fit_until_ended(run, trainable, folder)
            finally:
                give_back(search, bell)
                shutil.rmtree(folder, ignore_errors=True)


def fit_until_ended(run: Run, trainable: Any, folder: Path) -> Ended:
    """Run Tuners until the study has ended: one does, unless another launch asks for more trials once a searcher has found the end, which ends its Tuner for good.
    Raises the run's problem."""
    from ray import tune

    rungs, in_vain = None, 0
    for number in itertools.count():
        tune.Tuner(
            trainable, tune_config=tune.TuneConfig(search_alg=make_searcher(run), num_samples=-1, reuse_actors=True),
            run_config=tune.RunConfig(name=f"tune-{number}", storage_path=str(folder), verbose=0, callbacks=[make_callback(run)],
                                      failure_config=tune.FailureConfig(max_failures=0),
                                      checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False))).fit()
        if run.problem is not None:
            raise run.problem
        if (ended := retrying(run.search.state)) is not None:
            return ended
        former, rungs = rungs, retrying(partial(standing.rung_count, run.search.store, run.search.id))
        in_vain = in_vain + 1 if rungs == former else 0
        if in_vain == MOST_IN_VAIN:
            return Ended(1, "the study has not ended, though Ray has")


def own_bell() -> Any:
    """A bell on this process's own node: one that takes no CPU would be put on any, and be lost with that."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Bell).remote()


def waiting(shares: Shares, available: dict[str, float], free: dict[str, float]) -> str | None:
    """In words that trials will wait for room on the cluster, if they will. available: what its machines have in all; free: what nobody has taken yet."""
    def room(among: dict[str, float]) -> int:
        return int(min(among.get("CPU", 0.0) / shares.cpus, places_on(among.get("GPU", 0.0), shares.gpus) if shares.gpus else math.inf))

    fit, now = room(available), room(free)
    if now >= shares.most:
        return None
    others = f", and others leave room for {now} now" if now < fit else ""
    return (f"{shares.most} trials are to run at a time, but the cluster holds {fit}{others}: the rest wait until there is room; add machines, "
            f"or give --workers {max(now, 1)}")


def own_folder(study: Path) -> Path:
    """Where Tune writes for this launch alone, since several may run one study; those of launches on this machine that were killed are deleted."""
    host = socket.gethostname()
    ours = re.compile(f"ray-{re.escape(host)}-([0-9]{{1,9}})")  # whole: where one host's name begins another's, ray-vm-2-7 is no folder of vm
    for left in study.glob("ray-*"):
        if (named := ours.fullmatch(left.name)) and not psutil.pid_exists(int(named[1])):
            shutil.rmtree(left, ignore_errors=True)
    return study / f"ray-{host}-{os.getpid()}"


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[dict[str, float]]:
    """Ray, on this machine or at that address, without a word on the screen; gives what its machines have in all."""
    import ray

    former = {name: os.environ.get(name) for name in (*ENVIRONMENT, MAX_PENDING)}
    os.environ.update(ENVIRONMENT)
    asked_to_stop = signal.getsignal(signal.SIGTERM)
    short = contextlib.ExitStack()
    try:
        own = {} if address else {"num_cpus": cores(), "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES,
                                  "_temp_dir": short.enter_context(short_folder())}
        start_or_join(address, **own)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, asked_to_stop)  # Ray's own ends this process at once, and no trial is given back
        for name in ("ray", "ray.tune"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield ray.cluster_resources()
    except ConnectionError as error:
        raise BadSetting(f"--ray-address {address}: no Ray cluster answers there ({str(error).splitlines()[0]}); {START_RAY}") from error
    except OSError as error:
        if "AF_UNIX" not in str(error):
            raise
        raise BadSetting(f"RAY_TMPDIR {os.environ.get('RAY_TMPDIR')}: the paths of Ray's sockets would be too long in it, set it to a folder with a shorter "
                         "path, such as /tmp, or unset it") from error
    finally:
        ray.shutdown()
        short.close()
        for name, value in former.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def start_or_join(address: str | None, **own: Any) -> None:
    """`ray.init`. BadSetting where a cluster that answers does not let this process in."""
    import ray

    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **own)
    except ray.exceptions.AuthenticationError as error:
        asked = f"--ray-address {address}: " * (address is not None)
        raise BadSetting(f"{asked}{MODE} is {os.environ.get(MODE, 'unset')}, and Ray has no token here ({error.message}); put the cluster's into RAY_AUTH_TOKEN or "
                         f"~/.ray/auth_token, or set {MODE}=disabled if it was started so") from error
    except (RuntimeError, ValueError) as error:
        said = one_line(error)
        if address is None or isinstance(error, RuntimeError) and not said.startswith(MISMATCH):
            raise
        way_out = "run the same Ray and Python on all machines, and start the cluster again" if said.startswith(MISMATCH) else "mend what it names"
        raise BadSetting(f"--ray-address {address}: Ray refuses to join that cluster ({said}); {way_out}") from error


@contextlib.contextmanager
def short_folder() -> Iterator[str | None]:
    """A folder for what Ray writes on this machine, removed at the end, where the path of its own is too long for its sockets; else None."""
    if "RAY_TMPDIR" in os.environ or len(os.fsencode(f"{os.environ.get('TMPDIR', '')}/{SOCKET}")) <= LONGEST_SOCKET:
        yield None
    else:
        with tempfile.TemporaryDirectory(prefix="peft-pareto-ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
            yield folder


def check_address(address: str) -> None:
    """BadSetting for an address where nobody listens: Ray itself would try for minutes, with a line a second on the screen."""
    told = os.environ.get("RAY_ADDRESS") or "auto" if address == "auto" else address
    if told == "auto":
        return
    said = f"--ray-address {address}{f', which RAY_ADDRESS says is {told}' * (told != address)}"
    host, _, port = told.rpartition(":")
    if "/" in told or not host or not port.isdecimal():
        raise BadSetting(f"{said}: run launch on a machine of the cluster and give the address of its head, such as 10.0.0.1:6379, or auto"
                         f"{' without RAY_ADDRESS' * (told != address)}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:  # the last of a host like a..b
        raise BadSetting(f"{said}: no Ray cluster answers there ({error}); {START_RAY}") from error


def check_reachable_store(settings: Settings) -> None:
    """BadSetting where actors on other machines would be sent to the embedded server, which listens on a socket of this one."""
    host = (settings.ray_address or "").rpartition(":")[0].strip("[]")
    if settings.storage is None and host not in ("", "localhost", "127.0.0.1", "::1", socket.gethostname()):
        raise BadSetting(f"--ray-address {settings.ray_address}: other machines cannot reach the embedded server, give --storage a PostgreSQL URL that all can reach")


def give_back(search: Search, bell) -> None:
    """Let the actors give their trials back; what they still hold after STOP_SECONDS expires with its lease."""
    import ray

    try:
        workers = set(ray.get(bell.ring.remote(), timeout=STOP_SECONDS))
        until = time.monotonic() + STOP_SECONDS
        while time.monotonic() < until and any(each.worker in workers for each in results.progress(search.store, search.id).running):
            time.sleep(0.2)
    except (ray.exceptions.RayError, StorageError):
        return  # Ray or the database is gone: the leases run out
