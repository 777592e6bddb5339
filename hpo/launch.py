"""`python -m hpo.launch --trials N` searches until the study has N finished trials, then shows its Pareto front."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console

from hpo import engines, home
from hpo.command import INTERRUPTED, leave, one_line_errors, python, store_url
from hpo.settings import Settings, from_command_line

PLAN = "--plan"
PLAIN_WIDTH = 160  # columns of the table where there is no terminal


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
    from hpo import keeping, picture
    from hpo.identity import identity, resolution_of
    from hpo.plan import checked
    from hpo.preparation import dealt_sides
    from hpo.progress import Display
    from hpo.study import Search
    from storage.retrying import retrying
    from storage.store import open_store

    settings.check()
    console = console or Console(stderr=True, highlight=False)
    engine = engines.named(settings.engine)
    engine.check(settings)
    check_this_machine(settings)
    url = store_url(settings.storage)
    store = open_store(url, upgrade=True)
    dealt = dealt_sides(settings, resolution_of(settings))
    what = identity(settings, dealt)
    checked(store, settings, what, queue_of)  # before anything is made of a launch that is refused
    home.study_folder(settings.out, settings.study).mkdir(parents=True, exist_ok=True)
    study = Search(store, settings)
    queue = queue_of(study)
    registered = retrying(lambda: study.register(settings.trials, what, queue))
    announce(settings, study, registered, dealt.warnings, console)
    threading.Thread(target=picture.load_libraries, name="drawing", daemon=True).start()
    try:
        with Display(study.store, settings.study, study.id, study.objectives, console) as display:
            # Also where nothing is missing: a worker that was killed in the last run may have left a trial running.
            ended = retrying(study.state) or engine.run(study, url, display.watch)
            keeping.tidy(study)  # the last worker may have been killed before it did
        say(console, ended.reason)
        status = ended.status
    except KeyboardInterrupt:
        say(console, interrupted(study))
        status = INTERRUPTED
    return show(settings, study, console, status)


def check_this_machine(settings: Settings) -> None:
    """BadSetting where its disks or the device that is named would end the first worker."""
    from hpo import keeping

    keeping.check_writable(settings, launches=True)
    if settings.ray_address is None and settings.device not in ("auto", "cpu", "cuda"):  # these the engine has looked at
        from hpo.inner_loop import check_usable

        check_usable(settings.device)


def interrupted(study) -> str:
    """What Ctrl-C has come to, in words."""
    from storage import leases

    held = leases.counts(study.store, study.id).running
    but = f" but for {held}, which others run or whose workers died and have a lease left" if held else ""
    return f"interrupted: running trials were given back{but}, run the same command again to go on"


def queue_of(study) -> list[dict]:
    """What is run before anything is proposed: --enqueue's candidates and the front of --warm-start as it was at the first launch with that. Raises BadSetting."""
    from hpo import warm_start
    from storage import results

    given = study.settings
    own = [] if given.enqueue is None else [{"candidate": each.to_json(), "why": "enqueued"} for each in warm_start.enqueued(study, given.enqueue)]
    why = f"on the front of {given.warm_start}"
    front = [] if given.warm_start is None else warm_start.front(study, given.warm_start)
    if front and any(entry["why"] == why for entry in results.queue(study.store, study.id)):  # what the other study finds later is not taken over
        front = []
    return own + [{"candidate": each.to_json(), "why": why} for each in front]


def plan(settings: Settings) -> int:
    """Say what is left to do of the study, and what that will cost. Makes neither a study nor a folder for one."""
    from hpo.costs import costs
    from hpo.engines.base import threads_for
    from hpo.identity import identity, resolution_of
    from hpo.plan import left
    from hpo.preparation import dealt_sides
    from hpo.worker import use_threads

    engine = engines.named(settings.engine)
    engine.check(settings)
    check_this_machine(settings)
    places = engine.places(settings)
    use_threads(threads_for(places))
    dealt = dealt_sides(settings, resolution_of(settings))
    what = identity(settings, dealt)
    found = left(settings, what, queue_of)
    print(f"study:       {found.said}")
    if found.trials:
        print("\n".join(costs(settings, dealt, what, found.trials, places).lines()))
    return 0


def say(console: Console, line: str) -> None:
    """A line of our own, as it is and as long as it is."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def announce(settings: Settings, study, registered, warnings: list[str], console: Console) -> None:
    from hpo import keeping, tried
    from hpo.identity import model_folder
    from storage import leases
    from storage.retrying import retrying

    counts = retrying(lambda: leases.counts(study.store, study.id))
    verb = "new" if registered.created else f"resumed with {counts.finished} finished"
    say(console, f"study {settings.study} ({verb}): {registered.trials} trials of {', '.join(study.objectives.names)}")
    changed = changes(registered)
    if changed:
        say(console, f"{changed}, for workers that run too")
    for warning in (*tried.warnings(settings.engine), *warnings):
        say(console, f"warning: {warning}")
    say(console, keeping.disk_need(model_folder(settings), settings.keep, registered.trials))


def changes(registered) -> str:
    """In words what this launch has replaced of the study's ends, empty if nothing."""
    if registered.before is None:
        return ""
    pairs = {"--trials": (registered.before.trials, registered.trials),
             "--keep": tuple(each.settings["free"].get("keep") for each in (registered.before, registered)),
             "the end of --hours": tuple(time_of(each.settings["free"].get("deadline")) for each in (registered.before, registered))}
    deletes = {"--keep": ", also for what was kept before"}
    return "; ".join(f"{name} was {former}, is {now} now{deletes.get(name, '')}" for name, (former, now) in pairs.items() if former != now)


def time_of(deadline: float | None) -> str:
    """A deadline in words, by the clock of this machine."""
    return "none" if deadline is None else f"{datetime.fromtimestamp(deadline):%Y-%m-%d %H:%M}"


def show(settings: Settings, study, console: Console, status: int) -> Found:
    """The front as a table and as pictures, and the lines that open the dashboard and give the same front in SQL."""
    from hpo import picture, table
    from storage import leases, results
    from storage.retrying import retrying

    rows, points, known, counts = retrying(lambda: (results.front(study.store, settings.study), results.rungs(study.store, settings.study),
                                                    results.references(study.store, study.id), leases.counts(study.store, study.id)))
    folder = home.study_folder(settings.out, settings.study)
    base = dict(known.scores) if known is not None else {}
    drawn = points, study.objectives, base, picture.headline(settings.study, len(rows), len(points), counts.finished)
    found = Found(rows, folder / "front.png", folder / "front.html", status)
    picture.write_png(found.png, *drawn)
    picture.write_html(found.html, *drawn)
    out = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)
    if rows:
        table.render(rows, "table", study.objectives.names, out)
    else:
        say(out, f"{without_front(study, points)}, so there is no front")
    for line in retrying(lambda: list(closing(settings, study, known, found))):
        say(out, line)
    return found


def without_front(study, points: list[dict]) -> str:
    """Why a study without a point on the front has none. points: rows of the view rung_scores."""
    if not points:
        return "no rung is evaluated yet"
    if study.objectives.is_joint_reward and all(row["joint_reward"] is None for row in points):
        return "joint_reward is known of no evaluated rung, since no yardstick has given one"
    return "no evaluated rung meets the constraints"


def closing(settings: Settings, study, known, found: Found) -> Iterator[str]:
    """The lines under the table: what to compare with, and where the same front is."""
    from storage.engine import without_password

    floor = ((known.base or {}).get("real") or {}).get(study.objectives.quality) if known is not None else None
    if floor:
        yield (f"real pictures against real ones: {study.objectives.quality} {floor[0]:.3g} [{floor[1]:.3g}, {floor[2]:.3g}], "
               f"untouched base: {known.q_base:.3g}")
    if found.rows and all(row["joint_reward"] is None for row in found.rows):
        finished = study.agenda.is_there(study.agenda.yardsticks())
        yield "reward: – since " + ("the yardstick does not copy more than the untouched base, or the base is no worse than real pictures" if finished
                                    else "the yardstick, full fine-tuning for all steps, is not finished yet")
    where = f" --storage {shlex.quote(without_password(settings.storage))}" if settings.storage is not None else ""
    query = "SELECT * FROM pareto_front WHERE study = '" + settings.study.replace("'", "''") + "'"
    yield f"picture:   {found.png}"
    yield f"page:      {found.html}"
    yield f"dashboard: {python()} -m hpo.dashboard{where}"
    yield f"SQL:       {python()} -m storage psql{where} -c {shlex.quote(query)}"


def main(arguments: list[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    settings = from_command_line([each for each in given if each != PLAN], "python -m hpo.launch", __doc__, {PLAN: "say what it will cost, and do nothing"})
    if PLAN in given:
        return plan(settings)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job that is ended by a scheduler gives its trials back too
    return search(settings).status


if __name__ == "__main__":
    leave(one_line_errors(main))
