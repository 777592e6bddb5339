"""`python -m benchmarks.loss_span [--data DIR]` measures which part of the noise schedule tells methods apart by `loss_gap`.

Four methods, two seeds each, are trained and their denoising losses taken at 16 draws over the whole schedule; then the gap
is computed on parts of it. `hpo.inner_loop.LOSS_SPAN` is chosen by it.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from benchmarks.documents import table, write_part
from benchmarks.summaries import signal_to_noise, z
from hpo.inner_loop import InnerLoop, pick_device
from hpo.settings import Settings
from hpo.spaces.reference import reference_candidate
from metrics.estimate import Estimate
from metrics.loss_gap import LossSide, loss_gap

METHODS = ("full", "attention", "lora", "bias")
SEEDS = (0, 1)
SIDES = ("train", "twin")
DRAWS = 16
PARTS = ((0, 16), (0, 4), (0, 8), (4, 12), (8, 16), (12, 16))

Losses = dict[str, np.ndarray]  # by side: (n, DRAWS)


def measure(inner: InnerLoop) -> Losses:
    return {side: inner.losses(side, DRAWS, (0.0, 1.0)) for side in SIDES}


def trained(inner: InnerLoop, method: str, number: int) -> Losses:
    settings = inner.settings
    candidate = reference_candidate(method, settings.steps, settings.learning_rate_scale)
    return inner.path(candidate, inner.seed(number), (settings.steps,), measure=lambda: measure(inner))[settings.steps]


def gap(inner: InnerLoop, tuned: Losses, base: Losses, part: tuple[int, int]) -> Estimate:
    draws = slice(*part)
    return loss_gap(*(LossSide(tuned[side][:, draws].mean(1), base[side][:, draws].mean(1), getattr(inner.prepared, side).patients) for side in SIDES))


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
        rows.append([f"{part[0] / DRAWS:g} … {part[1] / DRAWS:g}", f"{signal_to_noise(values):.0f}", *(f"{z(gaps[method, 0]):.1f}" for method in METHODS),
                     f"{z(gap(inner, found['full', 0], found['bias', 0], part)):.1f}"])
    text = (f"Made by `python -m benchmarks.loss_span{' --data DIR' if given.data else ''}`: `loss_gap` by part of the noise schedule (0 = clean), {DRAWS} draws "
            f"over the whole of it, {inner.settings.steps} steps. z = value over its standard error by patients, of the first seed; signal / noise = range of the "
            "methods' means over the deviation between two seeds.\n\n"
            + table(["part", "signal / noise", *(f"z of {method}" for method in METHODS), "z of full − bias"], rows))
    print(text)
    write_part("results.md", f"schedule-{'phantoms' if given.data is None else 'xrays'}", text)


if __name__ == "__main__":
    main()
