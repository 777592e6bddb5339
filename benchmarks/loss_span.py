"""`python -m benchmarks.loss_span [--data DIR]` measures which part of the noise schedule tells methods apart by `loss_gap`.

Four methods, two seeds each, are trained and their denoising losses taken at 16 draws over the whole schedule; then the gap
is computed on parts of it. `hpo.inner_loop.LOSS_SPAN` is chosen by it.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from benchmarks.documents import table, write_part
from hpo.inner_loop import LOSS_STREAM, TRAINING_STREAM, InnerLoop, pick_device, seed_of
from hpo.settings import Settings
from hpo.spaces.reference import reference_candidate
from metrics.estimate import Estimate
from metrics.loss_gap import LossSide, loss_gap
from metrics.patients import NORMAL_975
from trainers.denoising import losses
from trainers.fit import fit

METHODS = ("full", "attention", "lora", "bias")
SEEDS = (0, 1)
SIDES = ("train", "twin")
DRAWS = 16
PARTS = ((0, 16), (0, 4), (0, 8), (4, 12), (8, 16), (12, 16))

Losses = dict[str, np.ndarray]  # by side: (n, DRAWS)


def measure(inner: InnerLoop) -> Losses:
    seed = inner.settings.seed
    return {side: losses(inner.pipeline.unet, inner.scheduler, inner.examples[side], seed_of(seed, LOSS_STREAM, side == "twin"), draws=DRAWS,
                         batch_size=inner.settings.batch_size) for side in SIDES}


def trained(inner: InnerLoop, method: str, number: int) -> Losses:
    candidate = reference_candidate(method, inner.settings.steps, inner.settings.learning_rate_scale)
    seed = seed_of(inner.settings.seed, TRAINING_STREAM, number)
    subset = inner.apply(candidate, seed)
    try:
        fit(inner.pipeline.unet, inner.scheduler, subset, inner.examples["train"], inner.plan(candidate, seed))
        return measure(inner)
    finally:
        subset.restore()


def gap(inner: InnerLoop, tuned: Losses, base: Losses, part: tuple[int, int]) -> Estimate:
    draws = slice(*part)
    return loss_gap(*(LossSide(tuned[side][:, draws].mean(1), base[side][:, draws].mean(1), getattr(inner.prepared, side).patients) for side in SIDES))


def z(estimate: Estimate) -> float:
    return estimate.value / ((estimate.high - estimate.low) / 2 / NORMAL_975)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=None, help="MIMIC-CXR-JPG folder (default: phantoms)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    inner = InnerLoop(Settings(data=given.data).check(), pick_device("auto"))
    base = measure(inner)
    found = {}
    for method in METHODS:
        for seed in SEEDS:
            found[method, seed] = trained(inner, method, seed)
            print(method, seed, flush=True)
    rows = []
    for part in PARTS:
        gaps = {key: gap(inner, tuned, base, part) for key, tuned in found.items()}
        values = np.array([[gaps[method, seed].value for seed in SEEDS] for method in METHODS])
        noise = np.sqrt(values.var(1, ddof=1).mean())
        rows.append([f"{part[0] / DRAWS:g} … {part[1] / DRAWS:g}", f"{np.ptp(values.mean(1)) / noise:.0f}", *(f"{z(gaps[method, 0]):.1f}" for method in METHODS),
                     f"{z(gap(inner, found['full', 0], found['bias', 0], part)):.1f}"])
    text = (f"Made by `python -m benchmarks.loss_span{' --data DIR' if given.data else ''}`: `loss_gap` by part of the noise schedule (0 = clean), {DRAWS} draws "
            f"over the whole of it, {inner.settings.steps} steps. z = value over its standard error by patients, of the first seed; signal / noise = range of the "
            "methods' means over the deviation between two seeds.\n\n"
            + table(["part", "signal / noise", *(f"z of {method}" for method in METHODS), "z of full − bias"], rows))
    print(text)
    write_part("results.md", f"schedule-{'phantoms' if given.data is None else 'xrays'}", text)


if __name__ == "__main__":
    main()
