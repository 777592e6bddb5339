"""What a search says while it runs: one display in a terminal, plain lines without one. Reads the database only."""

from __future__ import annotations

import logging
import time

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpo import volume
from hpo.objectives import Objectives
from storage import results
from storage.errors import StorageUnreachable
from storage.results import Progress
from storage.store import Store

LINE_SECONDS = 10.0  # between plain lines when nothing else happens
OUTAGE_SECONDS = 120.0  # how long the database may be away, as for workers
BAR_WIDTH = 40  # characters


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Lines(logging.Handler):
    """Puts warnings of the package on the console, above the display."""

    def __init__(self, console: Console):
        super().__init__(logging.WARNING)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(record.getMessage(), markup=False, highlight=False, soft_wrap=True)


class Display:
    """A context in which `watch`, called about once a second, shows how the study stands.

    `watch` bears a database that is away for OUTAGE_SECONDS, then raises StorageUnreachable.
    """

    def __init__(self, store: Store, study: str, study_id: int, objectives: Objectives, console: Console):
        self.store, self.study, self.study_id, self.objectives, self.console = store, study, study_id, objectives, console
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self.lines = Lines(console)
        self.last_line, self.last_said = "", 0.0
        self.volume: float | None = None
        self.finished = -1
        self.seen = time.monotonic()

    def __enter__(self) -> Display:
        logging.getLogger("hpo").addHandler(self.lines)
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exception) -> None:
        logging.getLogger("hpo").removeHandler(self.lines)
        if self.live:
            self.live.stop()

    def watch(self) -> None:
        try:
            progress = results.progress(self.store, self.study_id)
            if progress.counts.finished != self.finished:
                self.volume = volume.hypervolume(self.store, self.study_id, self.objectives)
                self.finished = progress.counts.finished
        except StorageUnreachable:
            if time.monotonic() - self.seen > OUTAGE_SECONDS:
                raise
            return
        self.seen = time.monotonic()
        if self.live:
            self.live.update(self.panel(progress))
        else:
            self.say(progress)

    def left(self, progress: Progress) -> float | None:
        """Seconds that the trials still to come will take, by the mean of those that are finished."""
        if progress.seconds is None:
            return None
        missing = progress.counts.trials - progress.counts.finished
        spent = sum(min(run.seconds, progress.seconds) for run in progress.running)
        return max(missing * progress.seconds - spent, 0) / max(len(progress.running), 1)

    def summary(self, progress: Progress) -> str:
        volume = "–" if self.volume is None else f"{self.volume:.4g}"
        stopped = f", {progress.counts.stopped} of them stopped early" if progress.counts.stopped else ""
        failed = f", {progress.counts.failed} failed" if progress.counts.failed else ""
        return (f"{progress.counts.finished} of {progress.counts.trials} finished{stopped}{failed}, front of {progress.front}, "
                f"hypervolume {volume}, {duration(self.left(progress))} left")

    def panel(self, progress: Progress) -> Group:
        table = Table(box=None, padding=(0, 1), show_header=False)
        for run in progress.running:
            table.add_row(f"trial {run.number}", run.words or "a new candidate", run.stage or "starting", duration(run.seconds))
        if not progress.running:
            table.add_row("", "workers are starting: base model, caches", "", "")
        bar = ProgressBar(total=progress.counts.trials, completed=progress.counts.finished, width=BAR_WIDTH)
        return Group(Text(self.summary(progress), style="bold"), bar, table)

    def say(self, progress: Progress) -> None:
        tried = "; ".join(f"{run.number}: {run.words or 'a new candidate'} ({run.stage or 'starting'})" for run in progress.running)
        line = f"{self.summary(progress)}{' | ' + tried if tried else ''}"
        due = time.monotonic() - self.last_said > LINE_SECONDS
        if due and line != self.last_line or self.summary(progress).split(",")[0] != self.last_line.split(",")[0]:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
            self.last_line, self.last_said = line, time.monotonic()
