"""`python -m benchmarks.cells` makes the table that searches are compared on: real trials of the miniature, every cell at all rungs.

A cell is a method × where × rank × learning rate, the methods and choices those of the default space, with fewer steps and pictures than a
study has. Finished cells are kept, so that a broken run goes on, in any number of pieces (`--minutes`); `--write` packs what there is
into benchmarks/cells.npz, which benchmarks.search replays. A second seed of some cells tells how much of a score is noise.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpo import home
from hpo.inner_loop import InnerLoop
from hpo.settings import DEFAULT_METHODS, Settings
from hpo.spaces.base import Bounds
from hpo.spaces.default import choices
from hpo.spaces.sites import sites_of
from metrics.bootstrap import REPLICATES
from trainers.base_model import MINIATURE
from trainers.candidate import Candidate, rounded
from trainers.errors import TrainerError
from trainers.methods import METHODS

STEPS = (12, 36, 108)  # the rungs of --steps 108, three and a reduction of 3
SETTINGS = Settings(steps=STEPS[-1], batch_size=16, train_images=30, generated=60, sampling_steps=6, held_out_every=0)
RATES = 7  # a method, log-spaced over its range, the ends too
SECOND_SEEDS = 100  # cells that are trained once more with another seed
FIRST = 150  # cells that are made before those, so that an unfinished table knows its noise
OBJECTIVES = ("fd", "copy_excess")
ORDER_SEED = 6  # of the order in which cells are made: pieces of the table are then samples of it
TABLE = Path(__file__).parent / "cells.npz"
inner: InnerLoop | None = None  # of this process


@dataclass(frozen=True)
class Cell:
    """rate: which of the method's learning rates, 0..6; rank 0: the method has none; repeat 1: the second seed."""

    method: str
    regions: tuple[str, ...]
    rank: int
    rate: int
    repeat: int = 0

    @property
    def candidate(self) -> Candidate:
        method = METHODS[self.method]
        norm_rate = None if method.norm_rates is None else grid(method.norm_rates)[self.rate]
        return Candidate.of(self.method, self.regions, method.kinds[0], grid(method.learning_rates)[self.rate], STEPS[-1], self.rank or None, norm_rate=norm_rate)

    @property
    def name(self) -> str:
        return f"{self.candidate.root}-{self.repeat}"


def grid(rates: tuple[float, float]) -> list[float]:
    return [rounded(float(rate)) for rate in np.geomspace(*rates, RATES)]


def cells() -> list[Cell]:
    """All cells in the order in which they are made, and some of them with a second seed."""
    offers = choices(Bounds(STEPS, methods=DEFAULT_METHODS, sites=sites_of(MINIATURE), model=MINIATURE)).methods
    listed = [Cell(name, regions, rank, rate) for name, offer in offers.items() for regions in offer.regions for rank in offer.ranks or (0,) for rate in range(RATES)]
    shuffled = [listed[place] for place in np.random.default_rng(ORDER_SEED).permutation(len(listed))]
    again = [Cell(cell.method, cell.regions, cell.rank, cell.rate, 1) for cell in shuffled[:SECOND_SEEDS]]
    return shuffled[:FIRST] + again + shuffled[FIRST:]


def start() -> None:
    global inner
    import torch

    torch.set_num_threads(1)
    inner = InnerLoop(SETTINGS, "cpu")


def made(cell: Cell, folder: Path) -> str:
    """Train a cell, unless that was done, and keep what it came to at each rung."""
    file = folder / f"{cell.name}.npz"
    if not file.exists():
        unfinished = file.with_suffix(".unfinished.npz")
        np.savez(unfinished, **measured(cell))
        unfinished.rename(file)
    return cell.candidate.words


def measured(cell: Cell) -> dict[str, Any]:
    """values (rungs, 2), replicates (rungs, 256, 2), seconds of all training and (rungs,) of evaluations; NaN from where training diverged."""
    candidate, found, evaluation = cell.candidate, {}, []
    seed = inner.training_seed(candidate, cell.repeat)
    learned = inner.learned("train", seed)
    started = time.monotonic()

    def measure() -> None:
        begun = time.monotonic()
        scores = inner.scores(inner.measure_all(candidate, learned)[0])
        found[STEPS[len(found)]] = [scores[name] for name in OBJECTIVES]
        evaluation.append(time.monotonic() - begun)

    try:
        inner.path(candidate, seed, STEPS, measure=measure)
        reason = ""
    except TrainerError as error:
        reason = str(error)
    values, replicates = np.full((len(STEPS), len(OBJECTIVES)), np.nan), np.full((len(STEPS), REPLICATES, len(OBJECTIVES)), np.nan)
    for place, scores in enumerate(found.values()):
        values[place] = [score.value for score in scores]
        replicates[place] = np.stack([score.replicates for score in scores], axis=1)
    spent = np.array(evaluation + [np.nan] * (len(STEPS) - len(evaluation)))
    return {"values": values, "replicates": replicates, "training": time.monotonic() - started - sum(evaluation), "evaluation": spent, "reason": reason}


def pack(folder: Path) -> Iterator[str]:
    """What is made so far, as one file. Replicates are kept as deviations from the value, in half precision."""
    there = [(cell, np.load(folder / f"{cell.name}.npz")) for cell in cells() if (folder / f"{cell.name}.npz").exists()]
    arrays: dict[str, Any] = {"method": [cell.method for cell, _ in there], "blocks": ["+".join(cell.regions) for cell, _ in there],
                              "rank": [cell.rank for cell, _ in there], "rate": [cell.rate for cell, _ in there], "repeat": [cell.repeat for cell, _ in there]}
    for name in ("values", "training", "evaluation", "reason"):
        arrays[name] = np.stack([found[name] for _, found in there])
    start()
    base = inner.base_scores()
    arrays["base"] = [base[name].value for name in OBJECTIVES]
    arrays["deviations"] = np.stack([found["replicates"] - found["values"][:, None] for _, found in there]).astype(np.float16)
    np.savez_compressed(TABLE, **{name: np.asarray(array) for name, array in arrays.items()})
    yield f"{len(there)} of {len(cells())} cells in {TABLE.name}, {TABLE.stat().st_size / 1e6:.1f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="cells side by side, one thread each")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after so many")
    parser.add_argument("--write", action="store_true", help="pack what is made into benchmarks/cells.npz, and make no more")
    given = parser.parse_args()
    folder = home.data_root() / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    if given.write:
        print(*pack(folder), sep="\n")
        return
    until, todo = time.monotonic() + given.minutes * 60, iter([cell for cell in cells() if not (folder / f"{cell.name}.npz").exists()])
    with ProcessPoolExecutor(given.workers, multiprocessing.get_context("spawn"), start) as pool:
        running = {pool.submit(made, cell, folder) for _, cell in zip(range(2 * given.workers), todo)}
        while running:
            done = next(as_completed(running))
            running.discard(done)
            print(len(list(folder.glob("*-?.npz"))), done.result(), flush=True)
            if time.monotonic() < until and (cell := next(todo, None)) is not None:
                running.add(pool.submit(made, cell, folder))


if __name__ == "__main__":
    main()
