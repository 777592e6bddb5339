"""Two-objective functions with known fronts and a steps axis, to try searches on in no time: ZDT1 to 3, DTLZ2, and one like ours.

At a rung a function's value is its value after all steps plus a bias that shrinks with steps and depends on the parameters, so that
rankings cross; what a search sees has noise that shrinks with steps too, and bootstrap replicates of which half is common to all trials,
as patients are. Both objectives are minimised. Costs are those of the miniature: an evaluation is a third of a whole training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from hpo.pruning import REPLICATES
from hpo.volume import undominated

RUNGS = (22, 67, 200)
STEPS = RUNGS[-1]
EVALUATION_SECONDS = 7.0  # pictures and scores of the miniature, docs/effect.md
STEP_SECONDS = 0.1
SHARED = np.random.default_rng(0).normal(size=(REPLICATES, 2))  # what the draws of patients do to every trial alike
COMMON = 0.5  # share of a score's variance that is
DIMENSIONS = 6
FRONT_POINTS = 1001
CENTRE = 0.5  # of a parameter from 0 to 1
SLOW_IF_GOOD = 0.5  # how much of a function's slowness comes from being good in the end; the rest is a wave over the parameters
BIAS, NOISE = 0.7, 0.03  # at the first and at the last rung, in the reference point's own units


class Asked(NamedTuple):
    """What a trial is to run: `root` is all but the steps, by name."""

    root: tuple[tuple[str, Any], ...]
    steps: int


@dataclass(frozen=True)
class Problem:
    """A problem of search. Values are (2,) float64, smaller is better; costs are seconds.

    reference: the reference point of hypervolumes. noise: standard deviations after all steps. yardstick: answers that give the trial with which a
    study begins and which no rule stops, where there is one. baselines: the same of those that a launch runs next.
    """

    name: str
    reference: tuple[float, float]
    noise: tuple[float, float]
    rungs: tuple[int, ...] = RUNGS
    evaluation_seconds: float = EVALUATION_SECONDS
    yardstick: Mapping[str, Any] | None = None
    baselines: tuple[Mapping[str, Any], ...] = ()

    def propose(self, trial: Any) -> Asked:
        """Asks an Optuna trial for all parameters, "steps" included."""
        root = tuple(sorted(self.parameters(trial).items()))
        return Asked(root, trial.suggest_categorical("steps", self.rungs))

    def parameters(self, trial: Any) -> dict[str, Any]:
        raise NotImplementedError

    def true(self, point: Asked, steps: int) -> np.ndarray:
        """Without noise, after so many steps of this point's training."""
        raise NotImplementedError

    def seconds(self, point: Asked, steps: int) -> float:
        """Of training for so many steps."""
        return STEP_SECONDS * steps

    def observe(self, point: Asked, steps: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """What a search sees of an evaluated rung: values (2,) and replicates (REPLICATES, 2).

        The part of the noise that all trials have in common is in the replicates only: in the values it would be a constant.
        """
        deviation = np.array(self.noise) * math.sqrt(self.rungs[-1] / steps)
        own = math.sqrt(1 - COMMON) * deviation
        values = self.true(point, steps) + own * rng.normal(size=2)
        return values, values + math.sqrt(COMMON) * deviation * SHARED + own * rng.normal(size=(REPLICATES, 2))

    def whole_seconds(self) -> float:
        """What a full trial costs without stopping: all steps, one evaluation."""
        return STEP_SECONDS * self.rungs[-1] + self.evaluation_seconds

    def front(self) -> np.ndarray:
        """Points of the known front, densely, (n, 2)."""
        raise NotImplementedError

    @cached_property
    def best_hypervolume(self) -> float:
        """Of the known front."""
        return hypervolume(self.front(), self.reference)


def hypervolume(points: np.ndarray, reference: tuple[float, float]) -> float:
    """As hpo.objectives has it, for the thousands of points of a dense front of two objectives."""
    front = undominated(points[(points < reference).all(axis=1)])
    return float((np.diff(np.append(front[:, 0], reference[0])) * (reference[1] - front[:, 1])).sum())


def left_to_go(steps: int) -> float:
    """How much of the bias is left after so many steps: 1 at the first rung, 0.25 at the second, 0 after all of them."""
    return (STEPS / steps - 1) / (STEPS / RUNGS[0] - 1)


@dataclass(frozen=True)
class Function(Problem):
    """A standard function of DIMENSIONS numbers from 0 to 1 whose first one moves along the front and whose others lead to it.

    final: (DIMENSIONS,) -> (2,), after all steps. good: (DIMENSIONS,) -> 1 on the front, 0 at the worst. curve: the known front.
    """

    final: Callable[[np.ndarray], np.ndarray] = None
    good: Callable[[np.ndarray], float] = None
    curve: Callable[[], np.ndarray] = None

    def parameters(self, trial: Any) -> dict[str, Any]:
        return {f"x{i}": trial.suggest_float(f"x{i}", 0, 1) for i in range(DIMENSIONS)}

    def true(self, point: Asked, steps: int) -> np.ndarray:
        x = np.array([value for _, value in point.root])
        return self.final(x) + BIAS * np.array(self.reference) * left_to_go(steps) * self.slowness(x)

    def slowness(self, x: np.ndarray) -> np.ndarray:
        """(2,) from 0 to 1, how far each objective is behind at the first rung. What is good in the end is slower, and so are bands of
        the parameters, the bands of both objectives being neighbours."""
        wave = math.tau * (x[0] + 2 * x[-1])
        bands = 0.5 + 0.5 * np.sin([wave, wave + math.tau / 8])
        return SLOW_IF_GOOD * self.good(x) + (1 - SLOW_IF_GOOD) * bands

    def front(self) -> np.ndarray:
        return undominated(self.curve())


def zdt(name: str, bend: Callable[[np.ndarray, np.ndarray], np.ndarray], top: float) -> Function:
    """Zitzler, Deb and Thiele 2000: f1 = x0, f2 = g · bend(f1, g), g = 1 + 9 · mean(x1, …) and 1 on the front."""
    def final(x: np.ndarray) -> np.ndarray:
        g = 1 + 9 * x[1:].mean()
        return np.array([x[0], g * bend(x[0], g)])

    def curve() -> np.ndarray:
        f1 = np.linspace(0, 1, FRONT_POINTS)
        return np.stack([f1, bend(f1, 1.0)], axis=1)

    return Function(name, (1.1, top), (NOISE * 1.1, NOISE * top), final=final, good=lambda x: 1 - x[1:].mean(), curve=curve)


def dtlz2(x: np.ndarray) -> np.ndarray:
    """Deb, Thiele, Laumanns and Zitzler 2002, two objectives: a quarter circle of radius 1 + Σ (x1, … − 0.5)²."""
    radius = 1 + ((x[1:] - CENTRE) ** 2).sum()
    return radius * np.array([math.cos(x[0] * math.pi / 2), math.sin(x[0] * math.pi / 2)])


def quarter_circle() -> np.ndarray:
    angle = np.linspace(0, math.pi / 2, FRONT_POINTS)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


@dataclass(frozen=True)
class Tuner:
    """A method of the mixed problem. capacity: of its smallest and largest subset, 0 to 1. rate: the best learning rate.
    step_seconds: of a step. best: the share of warm-up and the dropout that suit it. sizes: what sets the capacity, from least to most,
    asked as `size_name`."""

    capacity: tuple[float, float]
    rate: float
    step_seconds: float
    best: tuple[float, float]
    size_name: str | None = None
    sizes: tuple[Any, ...] = (None,)


TUNERS = {
    "full": Tuner((0.5, 1.0), 2e-3, 0.115, (0.3, 0.4), "region", ("mid", "down", "up", "all")),
    "attention": Tuner((0.2, 0.45), 3e-3, 0.085, (0.1, 0.2), "layers", ("self", "cross", "both")),
    "lora": Tuner((0.05, 0.5), 3e-3, 0.09, (0.05, 0.1), "rank", (1, 2, 4, 8, 16, 32, 64)),
    "bias": Tuner((0.12, 0.12), 1e-2, 0.1, (0.2, 0.0)),
    "norm": Tuner((0.06, 0.06), 1e-2, 0.085, (0.25, 0.05)),
}
RATES = (0.03, 10.0)  # range of learning rates, in best ones
WARM_UPS, DROPOUTS = (0.0, 0.5), (0.0, 0.5)
FLOOR, UNTOUCHED = 0.1, 4.9  # of the distance: as good as it gets, and the base model's
GRID = 20  # warm-ups and dropouts of the enumeration, beside the best ones; and half as many as learning rates


@dataclass(frozen=True)
class Subsets(Problem):
    """Our own problem in miniature: a distance that falls as training goes on (the slower, the lower the learning rate), and memorization
    that comes late, grows with the capacity, and is not there yet when the first rung is looked at. A method has parameters of its own."""

    def parameters(self, trial: Any) -> dict[str, Any]:
        method = trial.suggest_categorical("method", list(TUNERS))
        tuner = TUNERS[method]
        low, high = (factor * tuner.rate for factor in RATES)
        asked = {"method": method, "rate": trial.suggest_float(f"rate of {method}", low, high, log=True)}
        if method == "lora":
            asked["size"] = trial.suggest_int("log2_rank of lora", 0, len(tuner.sizes) - 1)
        elif tuner.size_name:
            asked["size"] = tuner.sizes.index(trial.suggest_categorical(f"{tuner.size_name} of {method}", tuner.sizes))
        return asked | {"warm_up": trial.suggest_float("warm_up", *WARM_UPS), "dropout": trial.suggest_float("dropout", *DROPOUTS)}

    def true(self, point: Asked, steps: int) -> np.ndarray:
        return subset_scores(steps=steps, **dict(point.root))

    def seconds(self, point: Asked, steps: int) -> float:
        return TUNERS[dict(point.root)["method"]].step_seconds * steps

    def front(self) -> np.ndarray:
        return undominated(np.concatenate([each.reshape(2, -1).T for each in self.enumerated()]))

    def enumerated(self) -> Iterator[np.ndarray]:
        """Scores of all methods and sizes on a grid of rates, warm-ups and dropouts, at all rungs."""
        for method, tuner in TUNERS.items():
            warm_ups, dropouts = ([best, *np.linspace(*between, GRID)] for best, between in zip(tuner.best, (WARM_UPS, DROPOUTS)))
            rates = np.geomspace(*RATES, 2 * GRID) * tuner.rate
            for size in range(len(tuner.sizes)):
                yield subset_scores(method, *np.meshgrid(rates, warm_ups, dropouts, self.rungs), size)


def subset_scores(method: str, rate: Any, warm_up: Any, dropout: Any, steps: Any, size: int = 0) -> np.ndarray:
    """(distance, memorization) of a subset, (2, ...) for numbers or arrays of one shape. Learning is exponential with a speed that goes with the rate and is lost with a warm-up; far
    above the best rate the distance grows again (heavy-tailed, as `fd` is), and so it does away from the warm-up and the dropout that suit
    the method; what is memorised goes with the capacity and the third power of what is learnt, and less of it with dropout."""
    tuner = TUNERS[method]
    capacity = np.interp(size, [0, max(1, len(tuner.sizes) - 1)], tuner.capacity)
    relative = rate / tuner.rate
    learnt = 1 - np.exp(-5 * relative ** 0.7 * (1 - warm_up) * steps / STEPS)
    reach = 0.85 + 0.15 * math.sqrt(capacity)
    broken = np.maximum(0, np.log(relative)) ** 2
    unsuited = (warm_up - tuner.best[0]) ** 2 + (dropout - tuner.best[1]) ** 2
    memorised = 0.6 * capacity ** 1.5 * learnt ** 3 * (1 - dropout) * (1 + 0.5 * steps / STEPS)
    return np.array([FLOOR + (UNTOUCHED - FLOOR) * (1 - reach * learnt) + broken + 8 * unsuited + 0.2 * memorised, memorised])


PROBLEMS: dict[str, Problem] = {problem.name: problem for problem in (
    zdt("zdt1", lambda f, g: 1 - np.sqrt(f / g), top=6.0),
    zdt("zdt2", lambda f, g: 1 - (f / g) ** 2, top=6.0),
    zdt("zdt3", lambda f, g: 1 - np.sqrt(f / g) - f / g * np.sin(10 * math.pi * f), top=6.0),
    Function("dtlz2", (1.8, 1.8), (NOISE * 1.8, NOISE * 1.8), final=dtlz2, good=lambda x: 1 - 4 * ((x[1:] - CENTRE) ** 2).mean(),
             curve=quarter_circle),
    Subsets("subsets", (2.5, 0.6), (0.1, 0.02)),
)}
