"""`python -m hpo.worker --study S --storage URL` joins a study from anywhere and takes trials until it is finished."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo import code, keeping, stopping
from hpo.command import INTERRUPTED, Parser, decimal, leave, one_line_errors, store_url, whole
from hpo.engines.base import MOST_THREADS, STOP_SECONDS
from hpo.errors import BadSetting
from hpo.settings import Settings, check_device, check_named
from hpo.stopping import Stopped
from storage import leases, results
from storage.errors import LeaseLost, SchemaError, StorageUnreachable, UnknownStudy
from storage.retrying import PATIENCE_SECONDS, retrying
from storage.store import Store, open_store, worker_name

if TYPE_CHECKING:
    from hpo.ending import Ended
    from hpo.study import Asked, Search

log = logging.getLogger("hpo.worker")

PATHS = ("model", "encoder", "data", "out", "checkpoints")
OWN_PATHS = (*PATHS, "space")  # what a worker may have elsewhere; a user's space is told by its content, as the others are
CLOCK = "%H:%M:%S"
WAIT_SECONDS = 1.0  # between looks while others run the last trials
STORAGE_VARIABLE = "PEFT_PARETO_WORKER_STORAGE"  # from launch to its own workers: a URL on the command line shows its password to all users


def stored_settings(store: Store, study: str) -> Settings:
    """The settings that a study was made and last run with. Raises UnknownStudy."""
    return settings_of(results.settings(store, results.study_id(store, study)))


def settings_of(stored: Mapping[str, Any]) -> Settings:
    """As `results.settings` gives them."""
    known = {**stored["free"], **stored["binding"]}
    known["objectives"] = ",".join(known["objectives"])
    paths = {name: stored["free"].get(name) for name in PATHS}  # in `binding` these names are content hashes
    fields = Settings().to_json()
    return Settings.from_json({name: value for name, value in {**known, **paths}.items() if name in fields and value is not None})


def own_paths(search: Search) -> dict[str, str]:
    """The paths that a launch hands on to its workers: those in the study are of whoever launched it last, maybe on a machine with other folders."""
    given = search.free()
    return {name: given[name] for name in OWN_PATHS if given[name] is not None} | {"checkpoints": given["checkpoints"] or given["out"]}


def opened(url: str) -> Store:
    """The store, under a name that no other process has had. Raises BadStorageUrl, StorageUnreachable, SchemaError."""
    with leases.translated():  # a server that goes away while the tables are looked at
        return open_store(url, worker_name())


@dataclass(frozen=True)
class Rung:
    """A trial was evaluated at these steps, and goes on."""

    trial: int
    steps: int


@dataclass(frozen=True)
class Over:
    """A trial has ended, or was given to others. outcome: as `run_trial` gives it; steps: its last evaluated rung, 0 if there is none."""

    trial: int
    steps: int
    outcome: str


class Worker:
    """One process's part in a study: the loaded base model and one trial after the other. Every engine runs this."""

    def __init__(self, url: str, study: str, device: str = "auto", paths: dict[str, str] | None = None, patience: float = PATIENCE_SECONDS):
        """Join a registered study. patience: seconds that the store may take to answer first; once it has, a restart of it is borne as in a trial.

        Raises UnknownStudy, OtherCode, SettingsDiffer where this machine's contents are others, BadData, BadModel, BadSetting for a
        device that is not there.
        """
        from hpo.inner_loop import LOADING, InnerLoop, check_usable, memory_named, pick_device
        from hpo.study import Search

        store = retrying(lambda: opened(url), patience)
        stored = retrying(lambda: results.settings(store, results.study_id(store, study)))
        code.check(study, stored["free"].get("code"))
        settings = replace(settings_of(stored), study=study, **(paths or {}))
        chosen = pick_device(device)
        check_usable(chosen)
        self.search = retrying(lambda: Search(store, settings))
        keeping.check_writable(settings)
        with memory_named(LOADING, settings):
            self.inner = InnerLoop(settings, chosen, lambda stage: log.info("%s", stage),
                                   accept=lambda identity: retrying(lambda: self.search.register(None, identity)))
        retrying(self.record_references)
        self.away_since: float | None = None
        self.running: Generator[int, None, str] | None = None  # a trial between two rungs
        self.asked: Asked | None = None  # that trial
        self.reached = 0  # its last evaluated rung, in steps

    def record_references(self) -> None:
        """What the joint reward and the hypervolume are measured against; the first worker's stay."""
        from hpo.study import plain

        base, real = self.inner.base_scores(), self.inner.real_scores()
        quality, memorization = self.search.objectives.quality, self.search.objectives.memorization
        results.record_references(self.search.store, self.search.id, q_base=base[quality].value, q_real=real[quality].value,
                                  m_base=base[memorization].value, scores=plain(base),
                                  base={"real": plain(real), "parameters": self.inner.units.total})

    def step(self) -> Ended | Rung | Over | None:
        """Run a trial to its next rung, or to its end, or wait a moment if there is none to run now; the end of the study once it has come.

        A database that is away is asked again for PATIENCE_SECONDS, then StorageUnreachable is raised.
        """
        from hpo.ending import Ended
        from hpo.study import Asked
        from hpo.trial import run_trial

        try:
            if self.running is None:
                asked = self.search.ask()
                self.away_since = None
                if isinstance(asked, Ended):
                    log.info("%s", asked.reason)
                    return asked
                if isinstance(asked, Asked):
                    log.info("trial %d: %s", asked.number, asked.candidate.words)
                    self.running, self.asked = run_trial(self.search, self.inner, asked), asked
                    self.reached = max(asked.known or (), default=0)
            if self.running is not None:
                return self.advance(self.running, self.asked)
        except LeaseLost as error:  # while it was proposed: this process slept for longer than a lease
            log.warning("a trial was lost before it began: %s", error)
        except StorageUnreachable as error:
            self.away_since = self.away_since or time.monotonic()
            if time.monotonic() - self.away_since > PATIENCE_SECONDS:
                raise
            log.warning("the database is away, trying again: %s", error)
        with stopping.interruptible():
            time.sleep(WAIT_SECONDS)
        return None

    def advance(self, running: Generator[int, None, str], asked: Asked) -> Rung | Over:
        """On to the trial's next rung, or to its end."""
        try:
            self.reached = next(running)
        except StopIteration as end:
            self.running = None
            log.info("trial %d %s", asked.number, end.value)
            if end.value in ("finished", "stopped"):  # at its next rung
                self.reached = next((steps for steps in asked.rungs if steps > self.reached), self.reached)
            return Over(asked.number, self.reached, end.value)
        except BaseException:
            self.running = None
            raise
        return Rung(asked.number, self.reached)

    def turn(self) -> Ended | Rung | Over:
        """Run a trial to its next rung or end, waiting until there is one to run; or the study's end. Raises Stopped."""
        while True:
            try:
                with stopping.interruptible():
                    pass  # a request to stop that came while a rung was written leaves here
            except Stopped:
                self.give_back()
                raise
            done = self.step()
            if done is not None:
                return done

    def give_back(self) -> None:
        """Let others go on with a trial that is between two rungs."""
        if self.running is not None:
            self.running.close()
            self.running = None

    def work(self) -> int:
        """Take trials until the study has ended; gives its exit status."""
        from hpo.ending import Ended

        while not isinstance(done := self.turn(), Ended):
            pass
        return done.status


def die_with_parent() -> None:
    """End when whoever started us is gone: its end of our standard input closes, also after kill -9. Like a launch's own workers when it stops them, this one
    has STOP_SECONDS to give its trial back."""
    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(STOP_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)  # it hangs in what no signal handler of Python's interrupts, such as a driver

    threading.Thread(target=watch, name="parent", daemon=True).start()


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m hpo.worker", description=__doc__.splitlines()[0])
    parser.add_argument("--study", required=True, help="name of the study to join")
    parser.add_argument("--storage", default=None, help="postgresql:// URL of its store (default: the embedded server)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:0, … (default: a GPU if there is one)")
    parser.add_argument("--threads", type=whole, default=1, help="CPU threads of the arithmetic (default: 1)")
    for name in OWN_PATHS:
        parser.add_argument(f"--{name}", default=None, help=f"where the study's {name} is on this machine, if not where the study says")
    parser.add_argument("--wait", type=decimal, default=0.0, metavar="SECONDS",
                        help="how long the store may take to answer and the study to be started (default: 0)")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input closes, as launch's own workers do")
    given = parser.parse_args(arguments)
    check_device(given.device)
    if not 1 <= given.threads <= MOST_THREADS:
        raise BadSetting(f"--threads {given.threads}: it must be from 1 to {MOST_THREADS}, give such a number or leave the flag out")
    if not given.wait >= 0:
        raise BadSetting(f"--wait {given.wait:g}: it is a number of seconds from 0 on, give such a number or leave the flag out")
    for name in OWN_PATHS:
        check_named(name, getattr(given, name))
    stopping.on_signals(signal.SIGTERM, signal.SIGINT)
    if given.with_parent:
        die_with_parent()
    log_to_stderr()
    url = store_url(given.storage if given.storage is not None else os.environ.get(STORAGE_VARIABLE))
    paths = {name: getattr(given, name) for name in OWN_PATHS if getattr(given, name) is not None}
    try:
        with stopping.interruptible():
            wait_for_study(url, given.study, given.wait)
            use_threads(given.threads)
            worker = Worker(url, given.study, given.device, paths, patience=given.wait)
        status = worker.work()
        worker.search.store.close()
        return status
    except Stopped:
        return INTERRUPTED


def wait_for_study(url: str, study: str, seconds: float) -> None:
    """Return once the study is registered, or when the time is over: then joining it says what is wrong."""
    until, waits = time.monotonic() + seconds, False
    while time.monotonic() < until:
        try:
            store = open_store(url)
            try:
                results.study_id(store, study)
            finally:
                store.close()
            return
        except (StorageUnreachable, UnknownStudy, SchemaError) as error:
            if not waits:
                log.info("waiting: %s", error)
            waits = True
        time.sleep(WAIT_SECONDS)


def log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt=CLOCK, stream=sys.stderr)


def log_to_file(file: Path) -> None:
    """Also into a file that other processes write to: each line names its process. Where it cannot be written, it is said in the log that there is."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(file)
    except OSError as error:
        log.warning("%s: the log cannot be written there (%s)", file, error.strerror)
        return
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(message)s", CLOCK))
    logging.getLogger().addHandler(handler)


def use_threads(count: int) -> None:
    """Load torch with that many threads, and no progress bars and advice from the model libraries."""
    os.environ.setdefault("OMP_NUM_THREADS", str(count))
    import torch

    torch.set_num_threads(count)
    quiet_libraries()


def quiet_libraries() -> None:
    """No progress bars and advice from the model libraries in a worker's log."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


if __name__ == "__main__":
    leave(one_line_errors(main))
