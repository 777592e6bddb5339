"""A place where faults are done, and a study there with its workers, of either engine. Nothing of it touches the user's own data folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import psycopg2
from sqlalchemy import text

from benchmarks.faults_left import mapped_memory, processes
from hpo import home
from hpo.command import ERROR, USAGE
from hpo.ending import FAILED_BEFORE
from hpo.settings import Settings
from storage import cluster, embedded, leases, system_user
from storage.embedded import HOME_VARIABLE
from storage.errors import StorageUnreachable

if TYPE_CHECKING:
    from hpo.ending import Ended
    from hpo.inner_loop import InnerLoop
    from hpo.study import Search

REPOSITORY = Path(__file__).parent.parent
TICK_SECONDS, LOOK_SECONDS = 0.1, 1.0  # between looks at the processes, and at the study
WORKER, ACTOR = "hpo.worker", "ray::ResourceTrainable"  # in the command lines of processes that train: the module, and how Ray titles its actors
TRACEBACK = "Traceback"  # how Python's own words begin with which a command may end
DIED = "a worker died"  # a launch says in its log, before it has another started
END_SECONDS = 180.0  # for workers to notice that the study has ended; one that was just started must load its libraries first
#: The smallest trial that trains: two rungs at the default reduction, and the fewest pictures that settings allow.
SMALL = {"steps": 6, "rungs": 2, "train_images": 12, "generated": 20, "sampling_steps": 2, "batch_size": 4, "baselines": False, "device": "cpu"}
#: Who runs what, by the process id in the worker's name.
HOLDERS = ("SELECT l.worker, l.trial_id FROM peft_pareto.leases l JOIN trials t USING (trial_id) "
           "WHERE l.study_id = :study AND t.state = 'RUNNING' AND l.worker IS NOT NULL ORDER BY l.worker")


class NotPossible(RuntimeError):
    """This machine or this user cannot do the fault."""


@dataclass(frozen=True)
class Load:
    """engine: whose workers suffer; workers: at a time; trials: asked for at first, more follow while a fault goes on; steps: of the longest trials; lease: seconds; pause: least and
    most seconds from one fault to the next; sample: trials that are run again, unbroken; minutes: the most that a fault may take."""

    engine: str = "local"
    workers: int = 8
    trials: int = 12
    steps: int = SMALL["steps"]
    lease: float = 15.0
    kills: int = 100
    restarts: int = 20
    pause: tuple[float, float] = (5.0, 10.0)
    sample: int = 3
    minutes: float = 60.0


class Place:
    """A temporary data folder with a server of its own, whose caches are filled; a context manager. Temporary files of workers go to `temporary`."""

    def __init__(self, load: Load):
        self.load = load
        self.home = Path(tempfile.mkdtemp(prefix="pp-faults-"))  # short, for the server's socket
        self.temporary, self.logs = self.home / "temporary", self.home / "logs"
        self.memory: set[str] = set()  # shared memory that anything of ours has had

    def __enter__(self) -> Place:
        self.temporary.mkdir()
        self.logs.mkdir()
        self.before = os.environ.get(HOME_VARIABLE)
        os.environ[HOME_VARIABLE] = str(self.home)
        _ = self.inner  # fills the caches
        return self

    def __exit__(self, *raised: object) -> None:
        embedded.stop(self.home)
        shutil.rmtree(self.home, ignore_errors=True)
        os.environ.pop(HOME_VARIABLE)
        if self.before is not None:
            os.environ[HOME_VARIABLE] = self.before

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "TMPDIR": str(self.temporary), "RAY_TMPDIR": str(self.home), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
                "PYTHONPATH": os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))}

    def settings(self, study: str, out: Path) -> Settings:
        return Settings(study=study, out=str(out), trials=self.load.trials, **{**SMALL, "steps": self.load.steps})

    @cached_property
    def inner(self) -> InnerLoop:
        """What runs trials unbroken, in this process."""
        from hpo.inner_loop import InnerLoop
        from hpo.worker import use_threads

        use_threads(1)
        return InnerLoop(self.settings("unbroken", self.home / "out"), "cpu")

    def new_database(self) -> str:
        server, name = embedded.start(self.home), f"faults_{uuid.uuid4().hex[:12]}"
        connection = psycopg2.connect(server)
        connection.autocommit = True
        connection.cursor().execute(f"CREATE DATABASE {name}")
        connection.close()
        return server.replace("/peft_pareto?", f"/{name}?")

    @property
    def socket(self) -> str:
        """The Unix socket of the server."""
        return str(cluster.socket_folder(self.data) / cluster.SOCKET)

    @property
    def data(self) -> Path:
        return (self.home / "postgres").resolve()

    def note_memory(self) -> None:
        """Remember what shared memory the server and all that was started for this place have now."""
        try:
            postmaster = [int((self.data / "postmaster.pid").read_text().splitlines()[0])]
        except (OSError, ValueError, IndexError):  # it is stopped
            postmaster = []
        self.memory |= mapped_memory([*postmaster, *(each.pid for each in processes(self.home, servers=False))])

    def restart_server(self) -> None:
        """As after a crash: all connections are broken, nothing is written down, recovery follows."""
        self.note_memory()
        done = subprocess.run([str(cluster.program("pg_ctl")), "stop", "-w", "-m", "immediate", "-D", str(self.data)], cwd="/", stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, text=True, **system_user.run_as())
        if done.returncode:
            raise NotPossible(f"pg_ctl stop -m immediate ended with {done.returncode}: {done.stderr.strip()}")
        embedded.start(self.home)


@dataclass
class WorkerProcess:
    """A process that takes part: an `hpo.worker`, or a launch with workers of its own. again: starts another in its place."""

    process: subprocess.Popen
    log: Path
    again: Callable[[], WorkerProcess]

    def lines(self) -> list[str]:
        return read_lines(self.log)

    def last_line(self) -> str:
        return (self.lines() or ["it said nothing"])[-1]

    def ended_in_one_line(self, words: str) -> bool:
        """Whether it has ended as commands do, with one line that says these words."""
        return self.process.returncode == USAGE and is_one_line(self.lines(), words)


@dataclass
class FaultyStudy:
    """A registered study and its workers, which are started again when they die: with the local engine processes of `hpo.worker`, with Ray the actors of launches.

    workers: the processes started here; killed: ids of all processes that a fault killed; killed_within: how many of them were workers of a launch; forgiven:
    words in the one line of error with which a worker may end by the fault; hands: by trial, names of the workers that were seen to hold it; deaths: how all
    others died, and what else workers did that they must not, in words; replacing: whether dead workers are started again; done: what the plan did, in words;
    more: settings of its own, set before it is registered.
    """

    place: Place
    name: str
    out: Path
    workers: list[WorkerProcess] = field(default_factory=list)
    killed: set[int] = field(default_factory=set)
    deaths: list[str] = field(default_factory=list)
    forgiven: str | None = None
    hands: dict[int, set[str]] = field(default_factory=dict)
    forgiven_deaths: int = 0
    killed_within: int = 0
    replacing: bool = True
    more: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.load, self.url = self.place.load, self.place.new_database()
        self.started, self.registered, self.done, self.trials = 0, False, "", self.load.trials

    @property
    def kind(self) -> str:
        """What trains, in words."""
        return "workers" if self.load.engine == "local" else "actors"

    @property
    def settings(self) -> Settings:
        return replace(self.place.settings(self.name, self.out), **self.more)

    @cached_property
    def search(self) -> Search:
        from hpo.study import Search
        from storage.store import open_store

        return Search(open_store(self.url), self.settings)

    def register(self, trials: int) -> None:
        """As a launch does."""
        self.search.register(trials, self.place.inner.identity)
        self.registered = True
        with self.search.store.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE peft_pareto.studies SET lease_seconds = %s WHERE study_id = %s", (self.load.lease, self.search.id))

    def ask_for(self, trials: int, counts: leases.Counts) -> None:
        """More trials, as a later launch does, but without taking any from the dead, which is for the workers to do."""
        self.trials = trials  # also where the answer is lost
        with leases.translated():
            with self.search.store.engine.begin() as connection:
                connection.exec_driver_sql("UPDATE peft_pareto.studies SET trials = %s WHERE study_id = %s", (trials, self.search.id))
            self.search.study.set_user_attr(FAILED_BEFORE, counts.failed)

    # Workers.

    def start(self, workers: int, url: str | None = None, **extra: str) -> None:
        """So many workers, with environment variables of their own; Ray's are the actors of one launch."""
        if self.load.engine == "ray":
            self.launch(workers, url, extra)
            return
        for _ in range(workers):
            self.join(url or self.url, extra)

    def join(self, url: str, extra: dict[str, str]) -> WorkerProcess:
        """A worker process. It is not told the URL in its command line, where all users could see it."""
        from hpo.worker import STORAGE_VARIABLE

        command = ["hpo.worker", f"--study={self.name}", "--device=cpu", "--threads=1", f"--wait={END_SECONDS}"]
        return self.run_module(command, {STORAGE_VARIABLE: url, **extra}, partial(self.join, url, extra))

    def launch(self, workers: int, url: str | None = None, extra: dict[str, str] | None = None) -> WorkerProcess:
        """`python -m hpo.launch` with so many workers, for as many trials as the study has now."""
        settings = replace(self.settings, trials=self.trials, workers=workers, storage=url or self.url, engine=self.load.engine)
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.to_json().items() if value is not None]
        return self.run_module(["hpo.launch", *flags], extra or {}, partial(self.launch, workers, url, extra))

    def run_module(self, command: list[str], environment: dict[str, str], again: Callable[[], WorkerProcess]) -> WorkerProcess:
        log = self.place.logs / f"{self.name}-{self.started}.log"
        self.started += 1
        with log.open("w") as stream:
            process = subprocess.Popen([sys.executable, "-m", *command], stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, cwd=self.place.home,
                                       start_new_session=True, env={**self.place.environment, **environment})
        self.workers.append(WorkerProcess(process, log, again))
        return self.workers[-1]

    def trainers(self) -> set[int]:
        """Ids of the living processes that train for this study: those of `hpo.worker`, and Ray's actors, which are descendants of their launch."""
        return {pid for worker in self.workers for pid in trainers_of(worker.process.pid)} - self.killed

    def holders(self) -> list[tuple[int, int]]:
        """Process and trial of each living worker of ours that holds one."""
        held = [(int(row.worker.rsplit("-", 2)[1]), row.trial_id) for row in self.held()]
        living = self.trainers() if held else set()
        return [(pid, trial) for pid, trial in held if pid in living]

    def held(self) -> list[Any]:
        """Worker and trial of all that are held; noted in `hands`."""
        found = self.ask(HOLDERS)
        for row in found:
            self.hands.setdefault(row.trial_id, set()).add(row.worker)
        return found

    @property
    def broken(self) -> set[int]:
        """Ids of the trials that lost a lease: more than one worker was seen to hold them."""
        return {trial for trial, workers in self.hands.items() if len(workers) > 1}

    def ask(self, query: str, **given: Any) -> list[Any]:
        """Rows for :study and what is given; none while the database is away."""
        try:
            with leases.translated(), self.search.store.engine.connect() as connection:
                return list(connection.execute(text(query), {"study": self.search.id, **given}))
        except StorageUnreachable:
            return []

    def said(self, pid: int | None = None) -> list[str]:
        """What workers have said in their logs, or one of them, without the time of day."""
        if self.load.engine == "ray":  # all actors of a machine have one log, whose lines name their process
            lines = [line.split(maxsplit=2) for log in home.logs_folder(self.out, self.name).glob("ray-*.log") for line in read_lines(log)]
            return [line[2] for line in lines if len(line) == 3 and pid in (None, int(line[1]))]
        logs = self.place.logs.glob(f"{self.name}-*.log") if pid is None else [each.log for each in self.workers if each.process.pid == pid]
        return [line.partition(" ")[2] for log in logs for line in read_lines(log)]

    def a_holder(self) -> Generator[float, None, list[tuple[int, int]]]:
        """Wait until a worker of ours holds a trial; gives (pid, trial) of all that do."""
        while not (found := self.holders()):
            yield TICK_SECONDS
        return found

    def kill(self, pid: int) -> None:
        self.expect_death(pid)
        os.kill(pid, signal.SIGKILL)

    def expect_death(self, pid: int) -> None:
        """That of a worker which the fault kills."""
        self.killed.add(pid)
        self.killed_within += pid not in {each.process.pid for each in self.workers}

    def see_to_workers(self, ended: bool = False) -> None:
        """Note who died, and start another in each one's place."""
        for worker in [each for each in self.workers if each.process.poll() is not None]:
            status = worker.process.returncode
            if status == 0:  # it has seen the study's end, which may be put off again
                if ended or not self.replacing:
                    continue
            elif worker.process.pid not in self.killed:
                if self.forgiven is not None and worker.ended_in_one_line(self.forgiven):
                    self.forgiven_deaths += 1
                else:
                    self.deaths.append(f"a worker died by itself with status {status}: {worker.last_line()}")
            self.workers.remove(worker)
            if self.replacing and not ended:
                worker.again()

    # The study.

    def run(self, plan: Iterator[float]) -> Ended:
        """Do the plan's faults, which says after each step for how many seconds it waits, and see to it that workers work, until plan and study are at
        their end; while the plan goes on, more trials are asked for. Raises TimeoutError."""
        due = looked = time.monotonic()
        until, over = due + 60 * self.load.minutes, False
        while time.monotonic() < until:
            self.see_to_workers()
            try:
                if not over and time.monotonic() >= due:
                    due = time.monotonic() + next(plan)
                if time.monotonic() >= looked + LOOK_SECONDS:
                    looked = time.monotonic()
                    if (ended := self.look(over)) is not None:
                        return ended
            except StopIteration as end:
                self.done, over = end.value, True
            except StorageUnreachable:  # as the fault has it
                pass
            time.sleep(TICK_SECONDS)
        raise TimeoutError(f"it did not end within {self.load.minutes:g} minutes: {leases.counts(self.search.store, self.search.id)}")

    def look(self, over: bool) -> Ended | None:
        """Ask for more trials, or find the end once the plan is at its own. Takes no trial from a dead worker: `Search.register` and `Search.state` would."""
        self.place.note_memory()
        if not over and not self.registered:
            return None
        self.held()
        counts = leases.counts(self.search.store, self.search.id)
        if over:
            with leases.translated():
                return None if counts.running else self.search.ending.verdict(counts)
        # Not while a launch starts: it asks for as many as there were, and would be refused.
        if counts.finished + counts.running > counts.trials - self.load.workers and self.holders():
            self.ask_for(counts.trials + self.load.workers, counts)
        return None

    def wait_for_workers(self) -> list[int]:
        """Let them end by themselves; gives the ids of those that do not, and kills them."""
        until = time.monotonic() + END_SECONDS
        while any(each.process.poll() is None for each in self.workers) and time.monotonic() < until:
            self.see_to_workers(ended=True)
            time.sleep(TICK_SECONDS)
        self.see_to_workers(ended=True)
        said = [line for log in self.place.logs.glob(f"{self.name}-*.log") for line in read_lines(log) if line.startswith(DIED)]
        self.deaths += said[self.killed_within:]
        staying = [each.process.pid for each in self.workers if each.process.poll() is None]
        self.kill_all()
        return staying

    def kill_all(self) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.kill()
            worker.process.wait()

    def close(self) -> None:
        self.kill_all()
        if "search" in self.__dict__:
            self.search.store.close()


def read_lines(log: Path) -> list[str]:
    return [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]


def is_one_line(lines: list[str], words: str) -> bool:
    """Whether the end of a log is an error in one line that says these words."""
    return bool(lines) and lines[-1].startswith(ERROR) and words in lines[-1] and not any(line.startswith((ERROR, TRACEBACK)) for line in lines[:-1])


def trainers_of(pid: int) -> list[int]:
    """Of a process and its descendants, those that train."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [each.pid for each in (process, *process.children(recursive=True)) if trains(each.pid)]
    return []


def trains(pid: int) -> bool:
    """Whether it is a worker that lives, by its command line."""
    with contextlib.suppress(psutil.Error):
        words = psutil.Process(pid).cmdline()
        return WORKER in words or " ".join(words).startswith(ACTOR)
    return False
