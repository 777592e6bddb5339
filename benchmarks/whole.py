"""`python -m benchmarks.whole` writes what a finished study has found, beside the papers' methods of the same study, at equal quality.

It reads the store only: how long the study took, what was stopped, how its front grew, and what on it beats which method as published.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from sqlalchemy import text

from benchmarks.documents import DOCS, table, write_part
from hpo import objectives as objective_table
from hpo import picture, volume
from hpo.command import store_url
from hpo.objectives import Objectives
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


def score(row: Row, name: str) -> str:
    return f"{row[name]:.3g} [{row[f'{name}_low']:.2g}, {row[f'{name}_high']:.2g}]"


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


def body(store: Store, study: str, cores: int) -> str:
    """The part of docs/search.md."""
    settings, id = stored_settings(store, study), results.study_id(store, study)
    objectives, counts = objective_table.parse(settings.objectives), leases.counts(store, id)
    rows, trials = results.rungs(store, study), results.trials(store, study)
    with store.at_once.connect() as connection:
        history = [tuple(row) for row in connection.execute(text(HISTORY), {"study": id, "name": study})]
    quality, memorization = objectives.quality, objectives.memorization
    methods = [row for row in rows if row["baseline"] and row["steps"] == settings.steps and row["repeat"] == 0]

    def hypervolume(among: list[Row]) -> float:
        means = np.array([[row[name] for name in objectives.names] for row in among if row["feasible"]], dtype=float)
        return volume.of_points(objectives, settings.reward_weight, means, results.references(store, id), standing.yardstick_values(store, id))

    whole, published = hypervolume(rows), hypervolume([row for row in rows if row["baseline"]])
    beaten = []
    for method in methods:
        other = at_equal_quality(method, rows, objectives)
        beaten.append([described(method), score(method, quality), score(method, memorization),
                       *(["nothing: it is on the front", "–", "–", "–"] if other is None else
                         [described(other), score(other, quality), score(other, memorization), verdict(method, other, memorization)])])
    front = sorted((row for row in rows if row["on_front"]), key=lambda row: row[quality])
    header = ["trial and candidate", quality, memorization]
    return "\n\n".join([
        f"Made by `python -m hpo.launch --trials {counts.trials}` and then `python -m benchmarks.whole --write`, on {cores} cores: {counts.finished} finished trials in "
        f"{history[-1][1] / 60:.0f} minutes, {said_of_stopped(trials)}, "
        f"{counts.failed} failed; proposals that were known already: {counts.duplicates}. {len(rows)} evaluated rungs, {len(front)} of them on the front. "
        f"Hypervolume {whole:.4g}, and {published:.4g} ({published / whole:.0%}) of the papers' methods alone, at all their rungs; {'; '.join(grown(history))}.",
        f"![The front, and all that was evaluated]({PICTURE})",
        f"The papers' methods at equal quality: of all that is no worse in {quality}, what memorises least. *Apart* is whether the two intervals of {memorization} are.",
        table(["method as published", quality, memorization, "what memorises least at that quality", quality, memorization, "apart"], beaten),
        "The front:",
        table(header, [[described(row), score(row, quality), score(row, memorization)] for row in front]),
        "Intervals are of one training, over patients. The best of many looks better than it is, since it was chosen by these very scores."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", default="peft-pareto")
    parser.add_argument("--storage", default=None, help="postgresql:// URL of its store (default: the embedded server)")
    parser.add_argument("--write", action="store_true", help=f"write the part of docs/search.md and docs/{PICTURE}")
    given = parser.parse_args()
    store = open_store(store_url(given.storage))
    said = body(store, given.study, os.cpu_count() or 1)
    print(said)
    if given.write:
        rows, id = results.rungs(store, given.study), results.study_id(store, given.study)
        objectives = objective_table.parse(stored_settings(store, given.study).objectives)
        title = f"{given.study}: front of {sum(row['on_front'] for row in rows)} among {len(rows)} rungs of {leases.counts(store, id).finished} finished trials"
        picture.write_png(DOCS / PICTURE, rows, objectives, dict(results.references(store, id).scores), title)
        write_part("search.md", "whole study", said)
    store.close()


if __name__ == "__main__":
    main()
