"""The faults: each starts a study's workers, does its harm step by step, and says in the end what it did and how often.

Each is a generator that gives, after a step, the seconds to wait until its next; it bears a database that is away.
"""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.faults_proxy import COMMITS, Proxy
from benchmarks.faults_study import TICK_SECONDS, FaultyStudy, NotPossible, trains
from storage.engine import LOCK_SPACE

Plan = Generator[float, None, str]
Wait = Iterator[float]

FEW = 4  # workers, where their number is not the point
HOURS = (5, -7)  # that the clocks of every second worker are wrong by
DISK_BYTES = 256 << 20
NETWORK_SPELL = 8.0  # seconds of a delay, or of refused connections
GAVE_UP = "workers died while no trial got on"  # a launch says, and ends: hpo.engines.base.Deaths
DRIVERS = 3  # launches that are killed
CUTS = 5  # statements that are cut in two
LOST_ANSWERS = 2  # to each kind of statement that commits
LOST = re.compile(r"trial (\d+) was lost: ")  # a worker says
SETTLE_SECONDS = 1.0  # in which the server has done what a worker had asked it for
SILENT_LEASES = 1.5  # how long nothing comes through
STALLED_MINUTES = 1.0  # the least that a launch takes
PATIENT_LEASES = 6  # how long others may take to get on without a worker that is paused
HOLDS_TURN = f"""
SELECT l.pid FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.granted AND l.classid = {LOCK_SPACE} AND l.objid = :study AND l.objsubid = 2
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def pause_of(study: FaultyStudy) -> float:
    return random.uniform(*study.load.pause)


def begin(study: FaultyStudy, workers: int, url: str | None = None) -> None:
    study.register(study.load.trials)
    study.start(workers, url)


def until(condition: Callable[[], object], seconds: float = float("inf")) -> Generator[float, None, bool]:
    """Wait for it; whether it came in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        yield TICK_SECONDS
    return True


def kills(study: FaultyStudy, stack: ExitStack) -> Plan:
    study.forgiven = GAVE_UP
    begin(study, study.load.workers)
    for _ in range(study.load.kills):
        yield from until(study.holders)
        yield pause_of(study)
        holders = yield from study.a_holder()
        study.kill(random.choice(holders)[0])
    again = f"; its launch gave up {study.forgiven_deaths} × and was started again" if study.forgiven_deaths else ""
    return f"{study.load.kills} × kill -9 of one of {study.load.workers} {study.kind} while it held a trial{again}"


def restarts(study: FaultyStudy, stack: ExitStack) -> Plan:
    begin(study, FEW)
    for _ in range(study.load.restarts):
        yield from until(study.holders)
        yield pause_of(study)
        yield from study.a_holder()
        study.place.restart_server()
    return f"{study.load.restarts} × PostgreSQL stopped with -m immediate and started, under {FEW} {study.kind}"


def full_disk(study: FaultyStudy, stack: ExitStack) -> Plan:
    """The file system of --out, where tensors and training states go, is full in the middle of the study; workers, and with Ray the launch, end, and are started
    when there is space."""
    mount(study.out, stack)
    begin(study, FEW)
    yield from until(lambda: study.ask("SELECT number FROM trials WHERE study_id = :study AND state = 'COMPLETE'"))
    study.replacing, study.forgiven = False, os.strerror(errno.ENOSPC)
    ballast, all_of_them = study.out / "ballast", len(study.workers)
    if not (yield from until(lambda: fill(ballast) and all(each.process.poll() is not None for each in study.workers), 60 * study.load.minutes / 2)):
        study.deaths.append("a worker went on though the disk is full")
    study.see_to_workers()
    ballast.unlink()
    study.replacing, died = True, study.forgiven_deaths
    study.start(FEW)
    which = f"{died} of {FEW} workers" if study.load.engine == "local" else f"{died} of {all_of_them} launches, of {FEW} actors,"
    return f"the disk of --out filled to the last byte: {which} ended in one line; as many others began when there was space"


def mount(folder: Path, stack: ExitStack) -> None:
    """A file system of its own there. Raises NotPossible where this user may not."""
    folder.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise NotPossible(f"a file system of its own cannot be mounted, which takes root: {done.stderr.strip()}")
    stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> bool:
    """To the last page, again and again: what is tidied away makes space. True, when it is full."""
    for size in (1 << 20, 1 << 12):
        try:
            with path.open("ab", buffering=0) as stream:
                while stream.write(bytes(size)):
                    pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    return True


def network(study: FaultyStudy, stack: ExitStack) -> Plan:
    proxy = stack.enter_context(Proxy(study.place.socket))
    database = study.url.partition("?")[0].rpartition("/")[2]
    begin(study, FEW, f"postgresql://postgres@127.0.0.1:{proxy.port}/{database}?sslmode=disable")
    silence = SILENT_LEASES * study.load.lease
    for mode, seconds in (("delay", NETWORK_SPELL), ("refuse", NETWORK_SPELL), ("silence", silence)):
        yield from until(study.holders)
        yield pause_of(study)
        proxy.set(mode)
        yield seconds
        proxy.set("pass")
    yield from until(study.holders)
    proxy.to_cut = CUTS
    yield from until(lambda: proxy.cuts >= CUTS)
    yield 2 * study.load.lease  # what was lost in the silence has been said by then
    yield from lose_answers(study, proxy)
    lost = ", ".join(f"{count} × {name}" for name, count in proxy.lost.items())
    return (f"{NETWORK_SPELL:g} s of delay, {NETWORK_SPELL:g} s of refused connections, {silence:g} s of silence ({SILENT_LEASES:g} leases), "
            f"{proxy.cuts} statements cut in two by RST, {proxy.lost.total()} answers lost after their commit ({lost}), for all {FEW} {study.kind}")


def lose_answers(study: FaultyStudy, proxy: Proxy) -> Wait:
    """A worker that asks again finds what was done: no trial is lost by it, to nobody and to no other worker."""
    broken, said = study.broken, times_lost(study)
    proxy.to_lose.update(dict.fromkeys(COMMITS, LOST_ANSWERS))
    yield from until(lambda: all(proxy.lost[name] >= LOST_ANSWERS for name in COMMITS))
    yield from until(lambda: study.holders() and study.broken > broken, 2 * study.load.lease)
    if study.broken > broken or times_lost(study) > said:
        study.deaths.append(f"a worker lost its trial with the answer to a statement ({len(study.broken - broken)} changed hands, "
                            f"{times_lost(study) - said} × a worker said so)")


def times_lost(study: FaultyStudy) -> int:
    return sum(LOST.match(line) is not None for line in study.said())


def paused(study: FaultyStudy, stack: ExitStack) -> Plan:
    begin(study, FEW)
    for _ in range(2):
        pid, trial = yield from stopped_holder(study, stack)
        (found,) = study.ask("SELECT number, ARRAY(SELECT steps FROM peft_pareto.rungs WHERE trial_id = :trial) AS rungs FROM trials WHERE trial_id = :trial",
                             trial=trial)
        before = len(study.said(pid))
        if not (yield from until(partial(has_lost, study, pid, trial), PATIENT_LEASES * study.load.lease)):
            study.deaths.append(f"trial {found.number} stayed with a worker that was paused")
        proceed(pid)
        said = partial(first_said, study, pid, before, found.number, found.rungs)
        yield from until(said, PATIENT_LEASES * study.load.lease)
        if LOST.match(said()) is None:
            words = said().partition(",")[0] or "it said nothing of it"
            study.deaths.append(f"a worker that was paused did not give up trial {found.number}, which another had: {words}")
        yield study.load.lease / 2
    yield from paused_in_turn(study, stack)
    return f"SIGSTOP of one of {FEW} {study.kind} until another had its trial: 2 × in the middle of a trial, 1 × while it had the turn to propose"


def hung(study: FaultyStudy, stack: ExitStack) -> Plan:
    """The thread that works hangs in native code, while those live that speak for it to the database."""
    folder = study.place.home / "hang"
    folder.mkdir()
    study.more = {"space": f"{Path(__file__).with_name('faults_space.py')}:propose", "stalled_after": STALLED_MINUTES}
    study.register(study.load.trials)
    study.start(FEW, FAULTS_HANG=str(folder))
    for _ in range(2):
        holders = yield from study.a_holder()
        yield from hang(study, folder, f"training-{random.choice(holders)[0]}")
    yield from hang(study, folder, "turn")
    return (f"one of {FEW} {study.kind} hung in native code until it had ended itself (--stalled-after {STALLED_MINUTES:g}): 2 × in the middle of a trial, "
            "1 × while it had the turn to propose")


def hang(study: FaultyStudy, folder: Path, where: str) -> Wait:
    """Have a worker hang there; it must end itself."""
    (folder / where).touch()
    yield from until(lambda: list(folder.glob("hung-*")))
    (found,) = folder.glob("hung-*")
    pid = int(found.name.rpartition("-")[2])
    study.expect_death(pid)
    found.unlink()
    if not (yield from until(partial(have_ended, {pid}), 60 * STALLED_MINUTES + PATIENT_LEASES * study.load.lease)):
        study.deaths.append(f"a worker that hung did not end: {where}")


def stopped_holder(study: FaultyStudy, stack: ExitStack) -> Generator[float, None, tuple[int, int]]:
    """Pause a worker in the middle of a trial, which it still holds when the server has done what it had sent; gives process and trial."""
    while True:
        holders = yield from study.a_holder()
        pid, trial = random.choice(holders)
        os.kill(pid, signal.SIGSTOP)
        stack.callback(proceed, pid)
        yield SETTLE_SECONDS
        if (pid, trial) in study.holders():
            return pid, trial
        proceed(pid)


def first_said(study: FaultyStudy, pid: int, before: int, number: int, rungs: list[int]) -> str:
    """What a worker says first of a trial after so many lines: that it has lost it, or how it has got on with it; "" if it says neither. rungs: steps of
    those that were stored already."""
    words = re.compile(rf"trial {number} (was lost: |finished$|stopped$|is evaluated at (?!({'|'.join(map(str, rungs))}) steps)\d+ steps)")
    return next(filter(words.match, study.said(pid)[before:]), "")


def has_lost(study: FaultyStudy, pid: int, trial: int) -> bool:
    return bool(study.ask("SELECT 1")) and (pid, trial) not in study.holders()


def paused_in_turn(study: FaultyStudy, stack: ExitStack) -> Wait:
    """Others must get on while the worker that had the turn to ask for a trial is paused: it is among those that hold none, so all these are."""
    while True:
        turn = study.ask(HOLDS_TURN)
        holders = {pid for pid, _ in study.holders()}
        asking = study.trainers() - holders if turn and holders else set()
        for pid in asking:
            os.kill(pid, signal.SIGSTOP)
            stack.callback(proceed, pid)
        yield float(bool(asking))
        if asking and turn == study.ask(HOLDS_TURN):
            break
        for pid in asking:
            proceed(pid)
    if not (yield from until(lambda: turn != study.ask(HOLDS_TURN), PATIENT_LEASES * study.load.lease)):
        study.deaths.append("nobody could ask while the worker whose turn it was to ask was paused")
    yield study.load.lease / 2
    for pid in asking:
        proceed(pid)


def proceed(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        pass


def clocks(study: FaultyStudy, stack: ExitStack) -> Plan:
    """The wall clocks of every second worker, or of the processes of each of two launches with Ray, are hours ahead or behind; one worker is killed, so that a
    lease is taken by the server's clock."""
    library = compiled_clock(study.place.home)
    study.register(study.load.trials)
    skews = (0, HOURS[0], 0, HOURS[1]) if study.load.engine == "local" else HOURS
    for hours in skews:
        study.start(FEW // len(skews), **({"LD_PRELOAD": str(library), "FAULTS_SKEW": str(3600 * hours)} if hours else {}))
    yield from until(lambda: len(study.holders()) == FEW)
    wrong = sum(str(library) in Path(f"/proc/{pid}/maps").read_text() for pid in study.trainers())  # Ray could have started its actors without it
    holders = yield from study.a_holder()
    study.kill(random.choice(holders)[0])
    yield study.load.lease
    return f"clocks of {wrong} of {FEW} {study.kind} wrong by {HOURS[0]:+} and {HOURS[1]:+} hours, and 1 × kill -9"


def compiled_clock(folder: Path) -> Path:
    """The library that skews clocks, tried. Raises NotPossible without a C compiler, or where the loader takes no such library."""
    library = folder / "faults_clock.so"
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(Path(__file__).with_suffix("").with_name("faults_clock.c")), "-ldl"],
                       check=True, capture_output=True)
        skewed = subprocess.run([sys.executable, "-c", "import time; print(time.time())"], check=True, capture_output=True, text=True,
                                env={**os.environ, "LD_PRELOAD": str(library), "FAULTS_SKEW": "3600"})
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotPossible(f"a clock of a process's own takes a C compiler (cc) and a loader with LD_PRELOAD: {error}") from error
    if not 3500 < float(skewed.stdout) - time.time() < 3700:
        raise NotPossible("the loader does not take a library that sets the clock")
    return library


def launches(study: FaultyStudy, stack: ExitStack) -> Plan:
    """Two at the same moment, before there is such a study."""
    study.replacing = False
    both = [study.launch(2) for _ in range(2)]
    yield from until(lambda: all(each.process.poll() is not None for each in both))
    study.registered = True
    return f"2 launches of 2 {study.kind} each, started at the same moment"


def driver(study: FaultyStudy, stack: ExitStack) -> Plan:
    """Launch itself is killed; its workers must end without it, and the same command again goes on from what is in the database."""
    study.register(study.load.trials)
    study.launch(FEW)
    for _ in range(DRIVERS):
        yield from until(study.holders)
        yield pause_of(study)
        yield from study.a_holder()
        orphans = study.trainers()
        study.kill(study.workers[0].process.pid)
        if not (yield from until(partial(have_ended, orphans), PATIENT_LEASES * study.load.lease)):
            study.deaths.append("a worker outlived its launch")
    return f"{DRIVERS} × kill -9 of launch while its {FEW} {study.kind} held trials, and the same command again"


def have_ended(pids: set[int]) -> bool:
    return not any(trains(pid) for pid in pids)


PLANS: dict[str, Callable[[FaultyStudy, ExitStack], Plan]] = {
    "kills": kills, "restarts": restarts, "full-disk": full_disk, "network": network, "paused": paused, "hung": hung, "clocks": clocks, "launches": launches,
    "driver": driver}
