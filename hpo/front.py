"""`python -m hpo.front` prints a study's Pareto front, straight from the view pareto_front."""

from __future__ import annotations

import argparse
import sys

from hpo.command import one_line_errors
from hpo.errors import BadSetting
from hpo.table import FORMATS, render
from trainers.errors import nearest


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m hpo.front", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--study", default=None, help="name of the study (default: the newest)")
    parser.add_argument("--storage", default=None, help="postgresql:// URL of its store (default: the embedded server)")
    parser.add_argument("--format", default="table", help=f"{', '.join(FORMATS)} (default: table)")
    given = parser.parse_args(arguments)
    if given.format not in FORMATS:
        raise BadSetting(f"--format {given.format!r} is unknown: take {nearest(given.format, FORMATS)}")
    from rich.console import Console

    from hpo.worker import stored_settings
    from storage import embedded, results
    from storage.store import open_store

    store = open_store(given.storage or embedded.start())
    names = results.study_names(store)
    if given.study is None and not names:
        raise BadSetting("there is no study in this store yet: start one with python -m hpo.launch --trials 20")
    study = given.study or names[0]
    rows = results.front(store, study)
    settings = stored_settings(store, study)
    console = Console(width=None if sys.stdout.isatty() else 250)
    render(rows, given.format, tuple(settings.objectives.split(",")), console)
    return 0


if __name__ == "__main__":
    sys.exit(one_line_errors(main))
