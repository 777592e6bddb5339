"""The gap between what fine-tuning did to the denoising loss of train and of twin. Losses are computed elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metrics.arrays import finite, same_length
from metrics.estimate import Estimate
from metrics.patients import interval, mean_over_patients


@dataclass(frozen=True, eq=False)
class LossSide:
    """One side's denoising losses: tuned (n,), base (n,), patients (n,).

    A loss is a picture's mean over its draws of noise and timesteps, the same draws for both models.
    """

    tuned: np.ndarray
    base: np.ndarray
    patients: np.ndarray


def loss_gap(train: LossSide, twin: LossSide) -> Estimate:
    """Mean over twin of (fine-tuned - base loss) minus the same over train, in units of the loss; positive = copying.

    Means are over patients of their pictures' means, the interval is that of such a difference (Welch). Changes sign
    when the sides are swapped; a loss that is added to all pictures of both models changes nothing. With another
    fine-tuned model's losses as `base` it is the paired difference of the two models.

    Raises:
        BadArray: NaN, arrays that do not match, or fewer than two patients a side.
    """
    train_change, train_spread = _change("train", train)
    twin_change, twin_spread = _change("twin", twin)
    return interval(twin_change - train_change, [-train_spread, twin_spread])


def _change(name: str, side: LossSide):
    tuned, base = finite(f"{name}.tuned", side.tuned, 1), finite(f"{name}.base", side.base, 1)
    same_length(f"{name}.tuned", tuned, f"{name}.base", base)
    return mean_over_patients(tuned - base, side.patients)
