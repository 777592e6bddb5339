"""`python -m benchmarks.whole` writes what a finished study has found, beside the papers' methods of the same study, at equal quality.

It reads the store only: how long the study took, what was stopped, how its front grew, and what on it beats which method as published.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import text

from benchmarks.documents import DOCS, table, write_part
from hpo import objectives as objective_table
from hpo import picture, volume
from hpo.command import store_url
from hpo.objectives import Objectives
from hpo.settings import Settings
from hpo.table import estimate
from hpo.worker import stored_settings
from storage import leases, results, standing
from storage.store import Store, open_store

PICTURE = "whole.png"
SHARES = (0.9, 0.95, 0.99)  # of the last hypervolume
# Finished trials, seconds since the first one began, and the front's hypervolume.
HISTORY = """
SELECT h.finished, extract(epoch FROM t.datetime_complete - (SELECT min(datetime_start) FROM trials WHERE study_id = :study))::float, h.hypervolume
    FROM hypervolume_history h JOIN trials t ON t.study_id = :study AND t.number = h.trial WHERE h.study = :name ORDER BY h.finished
"""
Row = dict[str, Any]  # of the view rung_scores, where nothing else is said


def described(row: Row) -> str:
    return f"{row['trial']}: {row['candidate']}"


def at_equal_quality(method: Row, rows: list[Row], objectives: Objectives) -> Row | None:
    """Of the feasible points that are no worse than a method in quality, the one that memorises least; None if it is that method's own."""
    quality, memorization = objective_table.objective(objectives.quality), objective_table.objective(objectives.memorization)
    among = [row for row in rows if row["feasible"] and quality.oriented(row[quality.name]) <= quality.oriented(method[quality.name])]
    best = min(among, key=lambda row: memorization.oriented(row[memorization.name]))
    return None if best["trial"] == method["trial"] and best["steps"] == method["steps"] else best


def verdict(method: Row, other: Row, name: str) -> str:
    return "yes" if other[f"{name}_high"] < method[f"{name}_low"] else "no"


def grown(history: list[tuple[int, float, float | None]]) -> Iterator[str]:
    """How many finished trials, and minutes, it took until the hypervolume was some share of the last. history: finished, seconds, hypervolume."""
    known = [(finished, seconds, value) for finished, seconds, value in history if value is not None]
    for share in SHARES:
        finished, seconds, _ = next(each for each in known if each[2] >= share * known[-1][2])
        yield f"{share:.0%} of it after {finished} trials ({seconds / 60:.0f} min)"


def said_of_stopped(trials: list[Row]) -> str:
    """How many trials were stopped, and where. trials: rows of the view trial_scores."""
    stopped = Counter(row["reached"] for row in trials if row["state"] == "PRUNED")
    places = ", ".join(f"{count} at {steps} steps" for steps, count in sorted(stopped.items()))
    return f"{stopped.total()} of them stopped early" + (f" ({places})" if places else "")


@dataclass(frozen=True)
class Found:
    """What the store has of a study, read once. rungs, trials, front: rows of the views rung_scores, trial_scores and pareto_front; history: of HISTORY;
    whole, published: hypervolume of the front, and of the papers' methods alone, at all their rungs."""

    settings: Settings
    objectives: Objectives
    counts: leases.Counts
    references: results.References
    rungs: list[Row]
    trials: list[Row]
    front: list[Row]
    history: list[tuple[int, float, float | None]]
    whole: float
    published: float


def read(store: Store, study: str) -> Found:
    settings, id = stored_settings(store, study), results.study_id(store, study)
    objectives, references = objective_table.parse(settings.objectives), results.references(store, id)
    rungs = results.rungs(store, study)
    with store.at_once.connect() as connection:
        history = [tuple(row) for row in connection.execute(text(HISTORY), {"study": id, "name": study})]
    means = np.array([[row[name] for name in objectives.names] for row in rungs if row["baseline"] and row["feasible"]], dtype=float)
    published = volume.of_points(objectives, settings.reward_weight, means, references, standing.yardstick_values(store, id))
    return Found(settings, objectives, leases.counts(store, id), references, rungs, results.trials(store, study), results.front(store, study), history,
                 volume.hypervolume(store, id, objectives), published)


def body(found: Found, cores: int) -> str:
    """The part of docs/search.md."""
    objectives, counts, whole, published = found.objectives, found.counts, found.whole, found.published
    quality, memorization = objectives.quality, objectives.memorization
    methods = [row for row in found.rungs if row["baseline"] and row["steps"] == found.settings.steps and row["repeat"] == 0]
    beaten = []
    for method in methods:
        other = at_equal_quality(method, found.rungs, objectives)
        beaten.append([described(method), estimate(method, quality), estimate(method, memorization),
                       *(["nothing: it is on the front", "–", "–", "–"] if other is None else
                         [described(other), estimate(other, quality), estimate(other, memorization), verdict(method, other, memorization)])])
    front = sorted(found.front, key=lambda row: row[quality])
    header = ["trial and candidate", quality, memorization]
    return "\n\n".join([
        f"Made by `python -m hpo.launch --trials {counts.trials}` and then `python -m benchmarks.whole --write`, on {cores} cores: {counts.finished} finished trials in "
        f"{found.history[-1][1] / 60:.0f} minutes, {said_of_stopped(found.trials)}, "
        f"{counts.failed} failed; proposals that were known already: {counts.duplicates}. {len(found.rungs)} evaluated rungs, {len(front)} of them on the front. "
        f"Hypervolume {whole:.4g}, and {published:.4g} ({published / whole:.0%}) of the papers' methods alone, at all their rungs; {'; '.join(grown(found.history))}.",
        f"![The front, and all that was evaluated]({PICTURE})",
        f"The papers' methods at equal quality: of all that is no worse in {quality}, what memorises least. *Apart* is whether the two intervals of {memorization} are.",
        table(["method as published", quality, memorization, "what memorises least at that quality", quality, memorization, "apart"], beaten),
        "The front:",
        table(header, [[described(row), estimate(row, quality), estimate(row, memorization)] for row in front]),
        "Intervals are of one training, over patients. The best of many looks better than it is, since it was chosen by these very scores."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", default="peft-pareto")
    parser.add_argument("--storage", default=None, help="postgresql:// URL of its store (default: the embedded server)")
    parser.add_argument("--write", action="store_true", help=f"write the part of docs/search.md and docs/{PICTURE}")
    given = parser.parse_args()
    store = open_store(store_url(given.storage))
    found = read(store, given.study)
    said = body(found, os.cpu_count() or 1)
    print(said)
    if given.write:
        title = picture.headline(given.study, len(found.front), len(found.rungs), found.counts.finished)
        picture.write_png(DOCS / PICTURE, found.rungs, found.objectives, dict(found.references.scores), title)
        write_part("search.md", "whole study", said)
    store.close()


if __name__ == "__main__":
    main()
