"""`python -m benchmarks.search [--write]` compares searches: each sampler, with and without stopping, on measured trials and on functions with known fronts.

One search is one seed of one sampler and one stopping rule on one problem, in virtual time, with one worker: proposals by `hpo.proposer`, stopping by
`hpo.pruning`, as in a study. What a search sees is noisy; hypervolume is that of noise-free values. Finished searches are kept, keyed by the code that
made them, so that a broken run goes on; several runs may work side by side.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import problems, replay, simulation
from benchmarks.documents import DOCS, table, write_part
from benchmarks.simulation import Curve, MoAsha, search
from hpo import distributions, dominance, flat, gaussian, history, home, proposer, pruning, rungs, samplers, seconds
from hpo.proposer import Proposer
from hpo.pruning import Pruner
from hpo.samplers import SAMPLERS
from hpo.settings import Settings

SEEDS, FIRST_SEED = 20, 300  # settings are chosen on seeds 0 to 11; those from 100 to 219 were looked at
BUDGET, RANDOM_BUDGET = 50, 200  # in full trials: all steps and one evaluation
ENOUGH = 18  # of the seeds, in which the default must have the larger area
REDUCTION, CONFIDENCE = Settings().reduction, Settings().stop_confidence
RULES: dict[str, Callable[[], object] | None] = {"moasha": lambda: Pruner(REDUCTION, CONFIDENCE), "MO-ASHA": lambda: MoAsha(REDUCTION), "none": None}


class Kind(NamedTuple):
    """How is searched. evaluated: at how many of the last rungs. baselines: whether they are run first, where the problem has such, as a launch does."""

    sampler: str
    rule: str
    evaluated: int = Settings().rungs
    baselines: bool = False

    def __str__(self) -> str:
        return f"{self.sampler}, {self.rule}" + (f" at {self.evaluated} rungs" if self.rule != "none" else "") + (", after the baselines" if self.baselines else "")


DEFAULT, RANDOM = Kind("auto", "moasha", Settings().evaluated_rungs), Kind("random", "none")
# Those that the default is held against, by what they stand for.
MO_ASHA, MO_ASHA_AT_FEWER = Kind("random", "MO-ASHA"), Kind("random", "MO-ASHA", DEFAULT.evaluated)
RIVALS = {MO_ASHA: "MO-ASHA with random proposals (Syne Tune)", MO_ASHA_AT_FEWER: f"the same at {DEFAULT.evaluated} rungs, as the default",
          Kind("nsga2", "none"): "NSGA-II", Kind("tpe", "none"): "TPE", Kind("gp", "none"): "Gaussian process"}
# As launches begin; the default at every rung; each other sampler with each of the product's rules.
LAUNCHED = tuple(kind._replace(baselines=True) for kind in (DEFAULT, MO_ASHA, MO_ASHA_AT_FEWER))
OTHERS = (*LAUNCHED, Kind("auto", "moasha"), *(Kind(name, "moasha", DEFAULT.evaluated) for name in SAMPLERS), Kind("auto", "none", DEFAULT.evaluated),
          *(Kind(name, "none") for name in SAMPLERS if name != "auto"))
TARGETS = (DEFAULT, RANDOM, *RIVALS)
KINDS = tuple(dict.fromkeys([*TARGETS, *OTHERS]))
POINTS = 101  # of a drawn curve
CODE = (dominance, distributions, flat, gaussian, history, proposer, pruning, rungs, samplers, seconds, problems, replay, simulation)


@dataclass(frozen=True)
class Run:
    problem: str
    kind: Kind
    seed: int

    @property
    def budget(self) -> int:
        return RANDOM_BUDGET if self.kind == RANDOM else BUDGET

    @property
    def file(self) -> Path:
        kind = self.kind._replace(baselines=self.kind.baselines and bool(problem_of(self.problem).baselines))
        return home.data_root() / "searches" / version(self.problem) / f"{self.problem}-{'-'.join(map(str, kind))}-{self.seed}.npz"


@cache
def version(problem: str) -> str:
    """Of the code, and of the table where it is searched."""
    digest = hashlib.sha256("".join(inspect.getsource(module) for module in CODE).encode())
    digest.update(f"{REDUCTION} {CONFIDENCE}".encode())
    if problem == "cells":
        digest.update(replay.TABLE.read_bytes())
    return digest.hexdigest()[:12]


@cache
def problem_of(name: str) -> problems.Problem:
    return replay.Table.read() if name == "cells" else problems.PROBLEMS[name]


def names() -> list[str]:
    """Of the problems: (a) first, then (b)."""
    return ["cells"] * replay.TABLE.exists() + list(problems.PROBLEMS)


def runs(chosen: list[str], seeds: Sequence[int], kinds: Sequence[Kind] = KINDS) -> Iterator[Run]:
    """Those that targets are made of come first, and of these all of one seed."""
    targets = [kind for kind in kinds if kind in TARGETS]
    for part in (targets, [kind for kind in kinds if kind not in targets]):
        yield from (Run(name, kind, seed) for seed in seeds for kind in part for name in chosen)


def make(run: Run) -> str:
    """Search, unless that was done."""
    if not run.file.exists():
        problem, rule = problem_of(run.problem), RULES[run.kind.rule]
        started = time.monotonic()
        proposing = Proposer(run.kind.sampler, run.seed, ["minimize", "minimize"], problem.propose, problem.rungs, evaluated_rungs=run.kind.evaluated)
        curve = search(problem, proposing, rule and rule(), run.seed, run.budget * problem.whole_seconds(), evaluated_rungs=run.kind.evaluated,
                       baselines=run.kind.baselines)
        run.file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = run.file.with_suffix(f".{os.getpid()}.npz")
        np.savez(unfinished, cost=curve.cost, elapsed=curve.elapsed, trials=curve.trials, hypervolume=curve.hypervolume, stopped=curve.stopped,
                 seconds=time.monotonic() - started)
        unfinished.rename(run.file)
    return run.file.stem


def read(run: Run) -> Curve:
    with np.load(run.file) as stored:
        return Curve(*(stored[name] for name in ("cost", "elapsed", "trials", "hypervolume")), int(stored["stopped"]))


@dataclass(frozen=True)
class Result:
    """All searches on one problem. curves: one a seed."""

    problem: problems.Problem
    curves: dict[Kind, list[Curve]]

    @property
    def cost(self) -> float:
        return BUDGET * self.problem.whole_seconds()

    def areas(self, kind: Kind) -> np.ndarray:
        """(seeds,) mean hypervolume over the budget, as a share of the best there is."""
        return np.array([curve.area(self.cost) for curve in self.curves[kind]]) / self.problem.best_hypervolume

    def median_at(self, kind: Kind, trials: int) -> float:
        """Median over the seeds of the hypervolume after so many full trials' cost, as a share of the best there is."""
        return float(np.median([curve.at(trials * self.problem.whole_seconds()) for curve in self.curves[kind]])) / self.problem.best_hypervolume

    def reaches(self) -> float:
        """After how many full trials' cost the default's median is what random search has after RANDOM_BUDGET; inf: not within the budget."""
        wanted = self.median_at(RANDOM, RANDOM_BUDGET)
        return next((trials for trials in np.arange(1, BUDGET + 0.5, 0.5) if self.median_at(DEFAULT, trials) >= wanted), float("inf"))

    def wins(self, kind: Kind, default: Kind = DEFAULT) -> int:
        """Seeds in which the default has the larger area."""
        return int((self.areas(default) > self.areas(kind)).sum())


def wins_on_all(results: Sequence[Result], kind: Kind) -> int:
    """Seeds in which the default has the larger area on average over these problems."""
    return int((np.mean([result.areas(DEFAULT) - result.areas(kind) for result in results], axis=0) > 0).sum())


def result_of(name: str, seeds: Sequence[int], kinds: Sequence[Kind]) -> Result:
    return Result(problem_of(name), {kind: [read(Run(name, kind, seed)) for seed in seeds] for kind in kinds})


def body(results: dict[str, Result], first: int = FIRST_SEED) -> str:
    """The tables of docs/search.md."""
    curves = next(iter(results.values())).curves
    seeds, chosen = len(curves[DEFAULT]), " (settings were chosen on others)" if first == FIRST_SEED else ""
    targets = [[name, f"{result.median_at(DEFAULT, BUDGET):.3f}", f"{result.median_at(RANDOM, RANDOM_BUDGET):.3f}",
                "–" if result.reaches() == float("inf") else f"{result.reaches():g}", *(f"{result.wins(kind)}" for kind in RIVALS)] for name, result in results.items()]
    functions = [result for name, result in results.items() if name in problems.PROBLEMS]
    if len(functions) > 1:
        targets.append([f"mean of the {len(functions)} functions", "", "", "", *(f"{wins_on_all(functions, kind)}" for kind in RIVALS)])
    launched = [f"A launch begins with the papers' methods, evaluated at all rungs. If the searches on {name} begin so too, the default's median area is "
                f"{np.median(result.areas(LAUNCHED[0])):.3f}, larger than MO-ASHA's in {result.wins(LAUNCHED[1], LAUNCHED[0])} of {seeds} seeds, and in "
                f"{result.wins(LAUNCHED[2], LAUNCHED[0])} where that is evaluated at {DEFAULT.evaluated} rungs."
                for name, result in results.items() if result.problem.baselines and LAUNCHED[0] in curves]
    areas = [[name, *(f"{np.median(result.areas(kind)):.3f}" for kind in curves)] for name, result in results.items()]
    return "\n\n".join([
        f"Made by `python -m benchmarks.search --write`: {seeds} seeds, from {first} on{chosen}. Hypervolume as a share of the best "
        f"there is (of all cells of the table, or of the known front). The default is `--sampler auto` with the rule above, at {DEFAULT.evaluated} of 3 rungs. "
        "A full trial's cost is all steps and one evaluation; searches without stopping pay one evaluation a trial. On the table each search begins with the yardstick, as a study does; nothing of it is free.",
        table(["problem", f"default after {BUDGET} full trials' cost", f"random after {RANDOM_BUDGET}", "default is there after",
               *(f"larger area than {words}, of {seeds} seeds" for words in RIVALS.values())], targets),
        *launched,
        f"Median area under hypervolume against cost, up to that of {BUDGET} full trials:",
        table(["problem", *map(str, curves)], areas),
        "![Hypervolume against cost: medians and quartiles over the seeds](search.png)"])


def draw(results: dict[str, Result], file: Path) -> None:
    """Hypervolume against cost and against trials, medians with quartiles, each axis from where the lowest median is after a tenth of the budget."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(results), 7), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(results), squeeze=False)
    for place, (name, result) in enumerate(results.items()):
        for kind in TARGETS:
            label = "default" if kind == DEFAULT else RIVALS.get(kind, "random search")
            for axis, grid, at in ((axes[0, place], np.linspace(0, BUDGET, POINTS), lambda curve, x: curve.at(x * result.problem.whole_seconds())),
                                   (axes[1, place], np.arange(0, 2 * BUDGET + 1), lambda curve, x: curve.at_trials(x))):
                curves = np.stack([at(curve, grid) for curve in result.curves[kind]]) / result.problem.best_hypervolume
                low, middle, high = np.quantile(curves, (0.25, 0.5, 0.75), axis=0)
                (line,) = axis.plot(grid, middle, label=label, linewidth=2.2 if kind == DEFAULT else 1.2)
                axis.fill_between(grid, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
        lowest = min(result.median_at(kind, BUDGET // 10) for kind in TARGETS)
        for axis in axes[:, place]:
            axis.set_ylim(bottom=lowest)
        axes[0, place].axhline(result.median_at(RANDOM, RANDOM_BUDGET), color="grey", linestyle=":", label=f"random search after {RANDOM_BUDGET}")
        axes[0, place].set_title(name)
        axes[0, place].set_xlabel("cost in full trials")
        axes[1, place].set_xlabel("finished trials, stopped ones too")
    for row in axes:
        row[0].set_ylabel("share of the best hypervolume")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(TARGETS) + 1, fontsize=9)
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", default=",".join(names()), help="comma-separated")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="searches side by side, one thread each")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of each search; fewer for a first look")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="0 to choose settings on")
    parser.add_argument("--targets", action="store_true", help="only what the targets are made of")
    parser.add_argument("--write", action="store_true", help="write the part of docs/search.md and docs/search.png")
    given = parser.parse_args()
    if given.write and given.first_seed != FIRST_SEED:
        parser.error(f"--first-seed {given.first_seed} --write: settings may have been chosen on these; leave one of the two out")
    chosen = given.problems.split(",")
    kinds = TARGETS if given.targets else KINDS
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    todo = list(runs(chosen, seeds, kinds))
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of the processes that are started now
    with ProcessPoolExecutor(given.workers, get_context("spawn")) as pool:
        for done in pool.map(make, todo):
            print(done, flush=True)
    results = {name: result_of(name, seeds, kinds) for name in chosen}
    print(body(results, given.first_seed))
    if given.write:
        draw(results, DOCS / "search.png")
        write_part("search.md", "curves", body(results, given.first_seed))


if __name__ == "__main__":
    main()
