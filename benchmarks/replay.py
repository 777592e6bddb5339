"""The table of measured trials (benchmarks.cells) as a problem for searches: what a cell came to, at what price, with the noise of another seed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cells import OBJECTIVES, RATES, STEPS, TABLE, Cell, cells
from benchmarks.problems import Asked, Problem
from benchmarks.problems import hypervolume as hypervolume_of
from hpo import flat
from hpo.spaces.base import BadProposal
from hpo.spaces.default import WHERE
from hpo.spaces.reference import BASELINES, reference_candidate
from trainers.candidate import where
from trainers.units import REGIONS


@dataclass(frozen=True)
class Table(Problem):
    """values: (cells, rungs, 2), the cell's own, which count as free of noise. deviations: (cells, rungs, 256, 2) of the bootstrap. spread: (rungs, 2) standard
    deviation of what another seed gives: of the logarithm of `fd`, and of `copy_excess` itself."""

    rows: dict[Cell, int] = None
    values: np.ndarray = None
    deviations: np.ndarray = None
    spread: np.ndarray = None
    step_seconds: dict[str, float] = None

    @classmethod
    def read(cls, file: Path = TABLE) -> Table:
        """Cells that are not in the table yet, or whose training diverged, cannot be searched."""
        with np.load(file) as stored:
            arrays = dict(stored)
        own = {Cell(str(method), tuple(str(blocks).split("+")), int(rank), int(rate), int(repeat)): row
               for row, (method, blocks, rank, rate, repeat) in enumerate(zip(*(arrays[name] for name in ("method", "blocks", "rank", "rate", "repeat"))))}
        values = arrays["values"]
        first = {cell: row for cell, row in own.items() if not cell.repeat and np.isfinite(values[row]).all()}
        seconds = {name: float(np.median(arrays["training"][arrays["method"] == name])) / STEPS[-1] for name in set(arrays["method"].tolist())}
        yardstick, *baselines = (published(name, first) for name in BASELINES)
        reference = tuple(np.maximum(arrays["base"], values[first[yardstick], -1]).tolist())
        return cls("cells", reference, noise=(0.0, 0.0), rungs=STEPS, evaluation_seconds=float(np.nanmedian(arrays["evaluation"])),
                   yardstick=answers(yardstick), baselines=tuple(map(answers, baselines)), rows=first, values=values, deviations=arrays["deviations"],
                   spread=spread_of(values, own, first), step_seconds=seconds)

    @cached_property
    def offers(self) -> dict[str, tuple[tuple, tuple]]:
        """Regions and ranks of each method, in the order of the default space, since cells are in none."""
        methods: dict[str, tuple[set, set]] = {}
        for cell in cells():
            regions, ranks = methods.setdefault(cell.method, (set(), set()))
            regions.add(cell.regions)
            ranks.add(cell.rank)
        return {name: (tuple(sorted(regions, key=WHERE.index)), tuple(sorted(ranks))) for name, (regions, ranks) in sorted(methods.items())}

    def parameters(self, trial: Any) -> dict[str, Any]:
        """As the default space asks, but for the learning rate, of which there are RATES. Raises BadProposal for a cell that is not in the table."""
        method = trial.suggest_categorical("method", list(self.offers))
        regions, ranks = self.offers[method]
        chosen = {where(each): each for each in regions}[trial.suggest_categorical("blocks", [where(each) for each in regions])]
        rank = trial.suggest_categorical(f"rank of {method}", list(ranks)) if len(ranks) > 1 else ranks[0]
        cell = Cell(method, chosen, rank, trial.suggest_int(f"learning rate of {method}", 0, RATES - 1))
        if cell not in self.rows:
            raise BadProposal(f"{cell} is not in the table: propose another")
        return {"cell": cell}

    def row(self, point: Asked) -> int:
        return self.rows[dict(point.root)["cell"]]

    def true(self, point: Asked, steps: int) -> np.ndarray:
        return self.values[self.row(point), STEPS.index(steps)]

    def observe(self, point: Asked, steps: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        rung = STEPS.index(steps)
        noise = rng.normal(size=2) * self.spread[rung]
        fd, copy_excess = self.true(point, steps)
        values = np.array([fd * np.exp(noise[0]), copy_excess + noise[1]])
        return values, values + self.deviations[self.row(point), rung]

    def seconds(self, point: Asked, steps: int) -> float:
        return self.step_seconds[dict(point.root)["cell"].method] * steps

    def whole_seconds(self) -> float:
        """Of the median method."""
        return float(np.median(list(self.step_seconds.values()))) * STEPS[-1] + self.evaluation_seconds

    @cached_property
    def best_hypervolume(self) -> float:
        """Of all cells at all rungs: no search can find more."""
        return hypervolume_of(self.values[list(self.rows.values())].reshape(-1, len(OBJECTIVES)), self.reference)


def answers(cell: Cell) -> dict[str, Any]:
    """That give the whole training of the cell; a method without ranks is not asked for one."""
    return {"method": cell.method, "blocks": where(cell.regions), f"rank of {cell.method}": cell.rank, f"learning rate of {cell.method}": cell.rate,
            flat.STEPS: STEPS[-1]}


def published(name: str, known: Iterable[Cell]) -> Cell:
    """Of these cells the one that is nearest to a method of the papers as it was published, by rank, then learning rate."""
    wanted = reference_candidate(name, STEPS[-1])
    rank = wanted.parts[0].rank or 0
    return min((cell for cell in known if cell.method == name and len(cell.regions) == len(REGIONS)),
               key=lambda cell: (abs(cell.rank - rank), abs(np.log(cell.candidate.learning_rate / wanted.learning_rate))))


def spread_of(values: np.ndarray, own: dict[Cell, int], first: dict[Cell, int]) -> np.ndarray:
    """(rungs, 2), from the cells that were trained with two seeds: a difference of two has twice the variance."""
    pairs = [(first[Cell(cell.method, cell.regions, cell.rank, cell.rate)], row) for cell, row in own.items()
             if cell.repeat and Cell(cell.method, cell.regions, cell.rank, cell.rate) in first and np.isfinite(values[row]).all()]
    one, other = (values[[pair[place] for pair in pairs]] for place in (0, 1))
    differences = np.stack([np.log(one[..., 0] / other[..., 0]), one[..., 1] - other[..., 1]], axis=-1)
    return np.sqrt((differences**2).mean(axis=0) / 2)
