"""The runs behind `benchmarks.effect`: what was measured on disk, one file a training, so that a broken run goes on.

`python -m benchmarks.effect_runs` is one worker: it takes runs whose file is missing until there are none. Several may
work side by side.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from hpo.settings import Settings
from hpo.spaces.reference import reference_candidate
from metrics.evaluate import Generated, Measured
from trainers.candidate import Applied, Candidate

METHODS = ("full", "attention", "lora", "svdiff", "difffit", "norm", "bias")
MITIGATIONS = {"": (), "rwa": (Applied.of("rwa-once", words=4),), "tm": (Applied.of("threshold-quantile", quantile=0.9),)}  # MemControl's strengths
SEEDS = (0, 1, 2)
# A hostile reader's rival: full fine-tuning that learns slower, whose quality is about as good (docs/rates.md).
SLOW_RATE = {"full-slow": ("full", 0.3)}  # a recipe without mitigation: method and factor on its reference rate
STEP_FRACTIONS = (0.125, 0.25, 0.5, 1.0, 2.0)  # of the default number of steps
MITIGATED_FRACTIONS = (0.25, 0.5, 1.0)  # a mitigation that changes captions is measured both ways, at twice the price
CONTROL_DRAWS = tuple(range(20))  # of the sides
PICTURES_KEPT = 16
WAYS = ("written", "trained")  # captions as they are written, and as the training heard them


@dataclass(frozen=True)
class Run:
    """One training: a method with a seed, alone or with a mitigation, or a control (full fine-tuning on the second twin with a draw of the sides)."""

    method: str
    seed: int
    mitigation: str = ""
    control: bool = False

    @property
    def recipe(self) -> str:
        return recipe(self.method, self.mitigation)

    @property
    def name(self) -> str:
        return f"control-{self.seed}" if self.control else f"{self.recipe.replace(' + ', '-')}-{self.seed}"

    def candidate(self, settings: Settings) -> Candidate:
        method, factor = SLOW_RATE.get(self.method, (self.method, 1.0))
        return replace(reference_candidate(method, settings.steps, settings.learning_rate_scale * factor), mitigations=MITIGATIONS[self.mitigation])


def recipe(method: str, mitigation: str = "") -> str:
    """What a method with a mitigation is called: "full", "full + rwa"."""
    return f"{method} + {mitigation}" if mitigation else method


RECIPES = (*METHODS, *SLOW_RATE, *(recipe(method, mitigation) for mitigation in MITIGATIONS if mitigation for method in METHODS))


def steps_of(settings: Settings, run: Run) -> tuple[int, ...]:
    if run.control:
        return (settings.steps,)
    return tuple(max(round(settings.steps * fraction), 1) for fraction in (MITIGATED_FRACTIONS if run.mitigation else STEP_FRACTIONS))


def runs() -> Iterator[Run]:
    """Those that decide most come first."""
    for seed in SEEDS:
        yield from (Run(method, seed) for method in (*METHODS, *SLOW_RATE))
    yield from (Run("full", draw, control=True) for draw in CONTROL_DRAWS)
    for seed in SEEDS:
        yield from (Run(method, seed, mitigation) for mitigation in MITIGATIONS if mitigation for method in METHODS)


def settings_of(base: Settings, run: Run) -> Settings:
    """A control draws the sides anew, by another study seed."""
    return replace(base, seed=base.seed + 1000 + run.seed) if run.control else base


def packed(measured: Measured) -> dict[str, np.ndarray]:
    return {f"{side}_{what}": getattr(getattr(measured, side), what) for side in ("train", "twin") for what in ("features", "own", "copies")} | {
        "train_losses": measured.train_losses, "twin_losses": measured.twin_losses}


def unpacked(arrays: dict[str, np.ndarray], prefix: str) -> Measured:
    sides = [Generated(*(arrays[f"{prefix}{side}_{what}"] for what in ("features", "own", "copies"))) for side in ("train", "twin")]
    return Measured(*sides, arrays[f"{prefix}train_losses"], arrays[f"{prefix}twin_losses"])


def measured_at(arrays: dict[str, np.ndarray], step: int) -> list[Measured]:
    """What a run's file has of a number of steps, once or twice."""
    return [unpacked(arrays, f"{step}/{way}/") for way in WAYS if f"{step}/{way}/train_losses" in arrays]


def make(base: Settings, run: Run, file: Path) -> None:
    from hpo.inner_loop import InnerLoop, pick_device

    settings = settings_of(base, run)
    inner = InnerLoop(settings, pick_device(settings.device))
    started = time.monotonic()
    found = inner.path(run.candidate(settings), inner.seed(run.seed), steps_of(settings, run), "second_twin" if run.control else "train")
    arrays: dict[str, np.ndarray] = {"seconds": np.array(time.monotonic() - started)}
    for step, (measured, pixels) in found.items():
        for way, each in zip(WAYS, measured):
            arrays |= {f"{step}/{way}/{name}": array for name, array in packed(each).items()}
        arrays[f"{step}/pictures"] = pixels[:PICTURES_KEPT]
    unfinished = file.with_suffix(".unfinished.npz")
    np.savez_compressed(unfinished, **arrays)
    unfinished.rename(file)


def work(base: Settings, folder: Path) -> None:
    """Make every run that is not there yet and that no other worker is making."""
    folder.mkdir(parents=True, exist_ok=True)
    for run in runs():
        file = folder / f"{run.name}.npz"
        if file.exists():
            continue
        try:
            with FileLock(f"{file}.lock", timeout=0):
                if not file.exists():
                    started = time.monotonic()
                    make(base, run, file)
                    print(f"{run.name} {time.monotonic() - started:.0f} s", flush=True)
        except Timeout:
            continue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--settings", required=True, help="JSON of the settings")
    given = parser.parse_args()
    import json

    import torch

    torch.set_num_threads(1)
    work(Settings.from_json({k: v for k, v in json.loads(given.settings).items() if v is not None}), given.folder)


if __name__ == "__main__":
    main()
