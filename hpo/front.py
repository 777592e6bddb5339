"""`python -m hpo.front` prints a study's Pareto front, straight from the view pareto_front."""

from __future__ import annotations

import os
import sys

from hpo.command import Parser, one_line_errors, store_url
from hpo.errors import BadSetting
from hpo.table import FORMATS, as_candidates, render
from trainers.errors import nearest

WIDTH = 250  # columns of a table that goes to a file


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m hpo.front", description=__doc__.splitlines()[0])
    parser.add_argument("--study", default=None, help="name of the study (default: the newest)")
    parser.add_argument("--storage", default=None, help="postgresql:// URL of its store (default: the embedded server)")
    parser.add_argument("--format", default="table", help=f"{', '.join(FORMATS)} (default: table)")
    given = parser.parse_args(arguments)
    if given.format not in FORMATS:
        raise BadSetting(f"--format {given.format!r} is unknown: take {nearest(given.format, FORMATS)}")
    from rich.console import Console

    from hpo.worker import stored_settings
    from storage import results, standing
    from storage.store import open_store

    store = open_store(store_url(given.storage))
    names = results.study_names(store)
    if given.study is None and not names:
        raise BadSetting("there is no study in this store yet: start one with python -m hpo.launch --trials 20")
    study = names[0] if given.study is None else given.study
    rows = results.front(store, study)
    objectives = tuple(stored_settings(store, study).objectives.split(","))
    try:
        if given.format == "candidates":
            print(as_candidates(candidate for candidate, _ in standing.front_candidates(store, results.study_id(store, study))), end="")
        elif rows or given.format != "table":
            render(rows, given.format, objectives, Console(width=None if sys.stdout.isatty() else WIDTH))
        else:
            print(f"no rung of study {study!r} is on a front: none is evaluated yet, or none meets its constraints")
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(one_line_errors(main))
