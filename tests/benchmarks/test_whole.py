"""What `python -m benchmarks.whole` says of a study: what beats a method as published at its own quality, and whether the intervals are apart."""

from __future__ import annotations

import re

from finished_study import begin, finish, new_database

from benchmarks import whole
from hpo import objectives


def test_methods_are_compared_at_equal_quality() -> None:
    search = begin(new_database(), "whole", 9)
    # Yardstick, the six methods as published, and two that were proposed.
    finish(search, [(1.0, 1.0), (3.0, 0.9), (2.0, 0.2), (4.0, 0.5), (5.0, 0.1), (2.5, 0.25), (2.6, 0.5), (1.9, 0.4), (2.5, 0.15)])
    said = whole.body(whole.read(search.store, "whole"), 2)
    search.store.close()
    assert "9 finished trials" in said and "0 of them stopped early, 0 failed" in said and "None" not in said
    compared = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if re.match(r"\| [0-6]: ", line)][:7]
    beaten_by = {int(cells[0].split(":")[0]): (cells[3].split(":")[0], cells[6]) for cells in compared}
    assert beaten_by == {0: ("nothing", "–"), 1: ("8", "yes"), 2: ("nothing", "–"), 3: ("8", "yes"), 4: ("nothing", "–"), 5: ("8", "no"), 6: ("8", "yes")}
    front = said.partition("The front:")[2]
    assert [int(number) for number in re.findall(r"^\| (\d+): ", front, re.MULTILINE)] == [0, 7, 2, 8, 4]


def test_the_worse_of_two_qualities_is_not_equal() -> None:
    chosen = objectives.parse("fd,copy_excess")
    rows = [{"trial": trial, "steps": 40, "feasible": feasible, "fd": fd, "copy_excess": copied}
            for trial, feasible, fd, copied in ((0, True, 2.0, 0.5), (1, True, 2.1, 0.1), (2, True, 2.0, 0.4), (3, False, 1.0, 0.0))]
    assert whole.at_equal_quality(rows[0], rows, chosen) is rows[2]
    assert whole.at_equal_quality(rows[2], rows, chosen) is None


def test_where_trials_were_stopped_is_counted() -> None:
    rows = [{"reached": steps, "state": state} for steps, state in ((67, "PRUNED"), (22, "PRUNED"), (67, "PRUNED"), (200, "COMPLETE"))]
    assert whole.said_of_stopped(rows) == "3 of them stopped early (1 at 22 steps, 2 at 67 steps)"
