"""`python -m benchmarks.faults` breaks workers, server, disk, network and clocks of real studies, and counts what is left.

A study of short trials for each fault, on an embedded server in a temporary data folder. Status 1 if any count is wrong.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace

from benchmarks.documents import DOCS, table, write_part
from benchmarks.faults_counts import Counts, counted, front_hashes, front_roots, pictures
from benchmarks.faults_left import processes, shared_memory, stray_files, stray_pictures, temporary_files
from benchmarks.faults_plans import PLANS
from benchmarks.faults_study import FaultyStudy, Load, NotPossible, Place
from hpo.command import one_line_errors
from hpo.engines import CLASSES
from hpo.errors import BadSetting
from storage import embedded
from trainers.errors import nearest

PAGE = "faults.md"
HEADER = ["fault", "what was done", "trials asked / finished / left running", "failed", "scores lost / doubled", "rungs as unbroken",
          "front: points / without usable weights", "left behind", "minutes", "verdict", "made by"]
EXPLAINED = ("Each row is a study of its own of real trials (two rungs, the fewest pictures and steps that train), which is asked for more trials while the "
             "fault goes on. *Failed* trials were replaced; the reasons are beside their number. *Scores lost*: also those of an objective without replicates. "
             "*Rungs as unbroken*: a few trials, those first that lost a lease, are run again from their candidate in one go, and every score, interval and "
             "replicate is compared. *Usable weights* load, and the model that they make is measured again with the scores that are stored. *Left behind*: "
             "processes, shared memory, temporary files, tensors and training states that belong to no point of the front, and pictures that no trial notes, "
             "after the server was stopped; the logs that Ray keeps of its sessions are not counted. Rows with *ray* were done to actors of "
             "`python -m hpo.launch --engine ray`. `--write` replaces the rows of the faults that were done and leaves the others.")


@dataclass(frozen=True)
class Row:
    """A fault and what came of it. wrong: in words, empty if all is well; left: what was left behind; done: None where the fault could not be done."""

    fault: str
    done: str
    counts: Counts | None
    left: tuple[str, ...]
    minutes: float
    wrong: tuple[str, ...]

    def cells(self) -> list[str]:
        verdict = "good" if not self.wrong else "BAD: " + "; ".join(self.wrong)
        found = self.counts
        if found is None:
            return [self.fault, self.done, *["–"] * 6, f"{self.minutes:.1f}", verdict]
        return [self.fault, self.done, f"{found.asked} / {found.finished} / {found.running}", failed(found), f"{found.lost} / {found.doubled}",
                f"{found.compared - found.different} of {found.compared}", f"{found.points} / {found.bare}",
                ", ".join(self.left).replace("|", " ") or "nothing", f"{self.minutes:.1f}", verdict]


def failed(counts: Counts) -> str:
    """How many trials failed, and how many of them for which reason."""
    reasons = "; ".join(f"{count} × {reason}" for reason, count in sorted(Counter(counts.reasons).items()))
    return f"{counts.failed} ({reasons})".replace("|", " ") if reasons else str(counts.failed)


def row_name(fault: str, engine: str) -> str:
    """By which a fault is found in the table."""
    return fault if engine == "local" else f"{fault}, {engine}"


def suffer(fault: str, place: Place) -> Row:
    """Do a fault to a study of its own, and count. The server runs for it alone."""
    started, shown, title = time.monotonic(), place.home / "artifacts", row_name(fault, place.load.engine)
    earlier = set(stray_pictures(shown, set()))  # of other faults' studies
    embedded.start(place.home)
    study = FaultyStudy(place, fault, place.home / "out" / fault)
    with ExitStack() as stack:
        stack.callback(study.close)
        try:
            ended = study.run(PLANS[fault](study, stack))
        except (NotPossible, TimeoutError) as error:
            return Row(title, "not done", None, (), minutes_since(started), (str(error), *study.deaths))
        staying = study.wait_for_workers()
        counts = counted(study.search, place.inner, place.load.sample, study.broken)
        left = [f"process {pid} (a worker that did not end)" for pid in staying]
        left += [f"file {name}" for name in stray_files(study.out, front_hashes(study.search), front_roots(study.search))]
        left += [f"picture {name}" for name in stray_pictures(shown, pictures(study.search) | earlier)]
    left += [f"process {each.pid} ({' '.join(each.cmdline()[:4])})" for each in processes(place.home, servers=False)]
    embedded.stop(place.home)
    left += [f"process {each.pid} ({each.name()})" for each in processes(place.home, servers=True)]
    left += [f"shared memory {name}" for name in sorted(place.memory & shared_memory())]
    left += [f"temporary file {name}" for name in temporary_files(place.temporary)]
    wrong = [*counts.wrong, *([f"{len(left)} left behind"] if left else []), *([f"it ended with {ended.status}: {ended.reason}"] if ended.status else []),
             *study.deaths]
    return Row(title, study.done, counts, tuple(left), minutes_since(started), tuple(wrong))


def minutes_since(started: float) -> float:
    return (time.monotonic() - started) / 60


def report(made: dict[str, list[str]], former: str) -> str:
    """The table: rows as made now, by their names, and those of a former report for the others, in the order of engines and PLANS."""
    names = [row_name(fault, engine) for engine in CLASSES for fault in PLANS]
    rows = {cells[0]: cells for cells in ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in former.splitlines()) if cells[0] in names}
    rows |= made
    return f"{table(HEADER, [rows[name] for name in names if name in rows])}\n\n{EXPLAINED}"


def main(arguments: list[str] | None = None) -> int:
    usual = Load()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PLANS), metavar="NAME,…", help=f"faults to do (default: {','.join(PLANS)})")
    parser.add_argument("--engine", choices=CLASSES, default=usual.engine, help=f"whose workers suffer (default: {usual.engine})")
    parser.add_argument("--write", action="store_true", help="write docs/faults.md")
    parser.add_argument("--kills", type=int, default=usual.kills, help=f"(default: {usual.kills})")
    parser.add_argument("--restarts", type=int, default=usual.restarts, help=f"(default: {usual.restarts})")
    parser.add_argument("--pause", type=float, nargs=2, default=usual.pause, metavar="SECONDS", help="least and most from one fault to the next (default: 5 10)")
    parser.add_argument("--workers", type=int, default=usual.workers, help=f"for kills (default: {usual.workers})")
    parser.add_argument("--trials", type=int, default=usual.trials, help=f"asked for at first (default: {usual.trials})")
    parser.add_argument("--steps", type=int, default=usual.steps, help=f"of the longest trials (default: {usual.steps})")
    parser.add_argument("--lease", type=float, default=usual.lease, help=f"seconds (default: {usual.lease:g})")
    parser.add_argument("--sample", type=int, default=usual.sample, help=f"trials a fault that are run again, unbroken (default: {usual.sample})")
    parser.add_argument("--minutes", type=float, default=usual.minutes, help=f"most that a fault may take (default: {usual.minutes:g})")
    given = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):  # a shell has Ctrl-C ignored in what it runs in the background
        signal.signal(number, signal.default_int_handler)
    load = replace(usual, **{name: tuple(value) if isinstance(value, list) else value for name, value in vars(given).items() if name not in ("only", "write")})
    faults = [name.strip() for name in given.only.split(",")]
    for name in faults:
        if name not in PLANS:
            raise BadSetting(f"--only {name!r}: there is no such fault, take {nearest(name, PLANS)}")
    rows, made_by = [], f"`{' '.join(['python -m benchmarks.faults', *(sys.argv[1:] if arguments is None else arguments)])}` on {os.cpu_count()} cores"
    with Place(load) as place:
        for fault in faults:
            rows.append(suffer(fault, place))
            print(" | ".join(rows[-1].cells()), flush=True)
            if given.write:
                path = DOCS / PAGE
                write_part(PAGE, "faults", report({rows[-1].fault: [*rows[-1].cells(), made_by]}, path.read_text() if path.exists() else ""))
    return int(any(row.wrong for row in rows))


if __name__ == "__main__":
    sys.exit(one_line_errors(main))
