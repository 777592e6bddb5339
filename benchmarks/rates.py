"""`python -m benchmarks.rates [--write]` trains every method at multiples of its reference rate and writes docs/rates.md.

A method's range of learning rates and its reference rate, on the bundled miniature and the phantoms, come from this table: all
blocks, the method's first choice of kinds, half of the default number of steps. Finished trainings are kept, so that a broken
run goes on; a rate that was changed in the code since is measured anew.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.documents import table, write_part
from hpo import home
from hpo.inner_loop import InnerLoop
from hpo.settings import Settings
from hpo.spaces.reference import reference_candidate
from trainers.candidate import Candidate, rounded
from trainers.errors import TrainerError
from trainers.methods import METHODS

SETTINGS = Settings(held_out_every=0)
STEPS = SETTINGS.steps // 2
FACTORS = (0.1, 0.3, 1, 3)
SCORES = ("fd", "copy_excess", "loss_gap")
inner: InnerLoop | None = None  # of this process


def start() -> None:
    global inner
    import torch

    torch.set_num_threads(1)
    inner = InnerLoop(SETTINGS, "cpu")


def candidates(names: list[str]) -> Iterator[Candidate]:
    for name in names:
        reference = reference_candidate(name, STEPS)
        for factor in FACTORS:
            yield replace(reference, learning_rate=rounded(reference.learning_rate * factor),
                          norm_rate=None if reference.norm_rate is None else rounded(reference.norm_rate * factor))


def measured(candidate: Candidate, folder: Path) -> dict[str, Any]:
    """What one training came to: its scores, or why it has none."""
    file = folder / f"{candidate.hash}.json"
    if not file.exists():
        started = time.monotonic()
        try:
            result = inner.evaluate(candidate, 0)
            found = {"trainable": result.trainable} | {name: result.scores[name].value for name in SCORES}
        except TrainerError as error:
            found = {"reason": str(error)}
        file.write_text(json.dumps(found | {"seconds": time.monotonic() - started}))
    return json.loads(file.read_text())


def row(candidate: Candidate, found: dict[str, Any]) -> list[str]:
    method = METHODS[candidate.method]
    low, high = method.learning_rates
    mark = "reference" if candidate.learning_rate == method.reference_rate else "in the range" if low <= candidate.learning_rate <= high else ""
    scores = [found["reason"], "–", "–"] if "reason" in found else [f"{found[name]:.3g}" for name in SCORES]
    return [candidate.method, str(found.get("trainable", "–")), f"{candidate.learning_rate:g}", mark, *scores]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="trainings side by side, one thread each")
    parser.add_argument("--write", action="store_true", help="write docs/rates.md")
    given = parser.parse_args()
    folder = home.data_root() / "rates"
    folder.mkdir(parents=True, exist_ok=True)
    todo = list(candidates(given.methods.split(",")))
    rows = []
    with ProcessPoolExecutor(given.workers, multiprocessing.get_context("spawn"), start) as pool:
        for candidate, found in zip(todo, pool.map(measured, todo, [folder] * len(todo))):
            rows.append(row(candidate, found))
            print(*rows[-1], f"{found['seconds']:.0f} s", flush=True)
    if given.write:
        write_part("rates.md", "rates", f"Made by `python -m benchmarks.rates --write`: phantoms, the bundled miniature, {STEPS} steps, one seed. "
                   "`fd` (lower is better) says whether a rate is too low to learn or too high to hold.\n\n"
                   + table(["method", "trainable", "learning rate", "", *(f"`{name}`" for name in SCORES)], rows))


if __name__ == "__main__":
    main()
