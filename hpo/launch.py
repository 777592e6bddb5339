"""`python -m hpo.launch --trials N` searches until the study has N finished trials, then shows its Pareto front."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from hpo import home, objectives
from hpo.command import one_line_errors
from hpo.settings import Settings, from_command_line


@dataclass(frozen=True)
class Found:
    """What a search gives back: the front's rows (columns of the view pareto_front), the files that were written, exit status."""

    rows: list[dict]
    png: Path
    html: Path
    status: int


def search(settings: Settings, console: Console | None = None) -> Found:
    """Run or resume a study until it has `settings.trials` finished trials. What `python -m hpo.launch` does.

    Raises SearchError, TrainerError, MetricError and StorageError in one line each; KeyboardInterrupt after running trials
    were given back.
    """
    from hpo.engines import ENGINES
    from hpo.identity import identity
    from hpo.progress import Display
    from hpo.study import Search
    from storage import embedded, leases
    from storage.store import open_store

    settings.check()
    console = console or Console(stderr=True, highlight=False)
    what = identity(settings)
    url = settings.storage or embedded.start()
    store = open_store(url)
    study = Search(store, settings)
    registered = study.register(settings.trials, what)
    announce(settings, study, registered, console)
    status = 0
    try:
        with Display(store, settings.study, study.id, study.objectives, console) as display:
            if leases.counts(store, study.id).finished < registered.trials:
                ENGINES[settings.engine].run(settings, url, display.watch)
        ended = study.ended(leases.counts(store, study.id))
        if ended is not None:
            console.print(ended.reason, markup=False)
            status = ended.status
    except KeyboardInterrupt:
        console.print("interrupted: running trials were given back, run the same command again to go on", markup=False)
        status = 130
    return show(settings, study, console, status)


def announce(settings: Settings, study, registered, console: Console) -> None:
    from hpo import keeping
    from hpo.identity import model_folder
    from storage import leases

    counts = leases.counts(study.store, study.id)
    verb = "new" if registered.created else f"resumed with {counts.finished} finished"
    console.print(f"study {settings.study!r} ({verb}): {registered.trials} trials of {', '.join(study.objectives.names)}", markup=False)
    warning = study_warning(settings)
    if warning:
        console.print(f"warning: {warning}", markup=False)
    console.print(keeping.disk_need(model_folder(settings), settings.keep, registered.trials), markup=False)


def study_warning(settings: Settings) -> str | None:
    from hpo.identity import resolution_of
    from hpo.preparation import dealt_sides
    from trainers.data.picture import Picture
    from trainers.data.sides import SIDES, Sides, warning

    _, listed = dealt_sides(settings, resolution_of(settings))
    return warning(Sides(*(tuple(Picture.from_json(each) for each in listed[name]) for name in SIDES)))


def show(settings: Settings, study, console: Console, status: int) -> Found:
    """The front as a table and as pictures, and the lines that open the dashboard and give the same front in SQL."""
    from hpo import picture, table
    from storage import results

    rows = results.front(study.store, settings.study)
    folder = home.study_folder(settings.out, settings.study)
    known = results.references(study.store, study.id)
    base = dict(known.scores) if known is not None else {}
    drawn: tuple[list, objectives.Objectives, dict, str] = (results.trials(study.store, settings.study), study.objectives, base,
                                                            f"{settings.study}: front of {len(rows)} among {len(study.study.trials)} trials")
    found = Found(rows, folder / "front.png", folder / "front.html", status)
    picture.write_png(found.png, *drawn)
    picture.write_html(found.html, *drawn)
    out = Console(width=None if sys.stdout.isatty() else 250, highlight=False)
    if rows:
        table.render(rows, "table", study.objectives.names, out)
    else:
        out.print("no trial has finished yet, so there is no front")
    if known is not None and "real" in (known.base or {}):
        floor = known.base["real"].get(study.objectives.quality)
        if floor:
            out.print(f"real pictures against real ones: {study.objectives.quality} {floor[0]:.3g} [{floor[1]:.3g}, {floor[2]:.3g}], "
                      f"untouched base: {known.q_base:.3g}", markup=False)
    where = f" --storage {shlex.quote(settings.storage)}" if settings.storage else ""
    name = settings.study.replace("'", "''")
    out.print(f"picture:   {found.png}\npage:      {found.html}\ndashboard: python -m hpo.dashboard{where}\n"
              f"SQL:       python -m storage psql{where} -c {shlex.quote(f'''SELECT * FROM pareto_front WHERE study = '{name}' ''').strip()}",
              markup=False, soft_wrap=True)
    return found


def main(arguments: list[str] | None = None) -> int:
    settings = from_command_line(arguments, "python -m hpo.launch", __doc__)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job that is ended by a scheduler gives its trials back too
    return search(settings).status


if __name__ == "__main__":
    sys.exit(one_line_errors(main))
