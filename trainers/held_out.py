"""The curve of the denoising loss, on the pictures learned from and on held-out ones, while a candidate is trained."""

from __future__ import annotations

from collections.abc import Callable

from trainers.denoising import losses
from trainers.fit import Evaluation
from trainers.plan import Examples

DRAWS = 2  # noise and timestep draws a picture
PICTURES = 32  # measured a side at most: a point of the curve must cost a few steps, however many pictures are learned from

Report = Callable[[int, float, float], None]


def curve(unet, scheduler, train: Examples, twin: Examples, *, every: int, seed: int, report: Report, draws: int = DRAWS,
          span: tuple[float, float] = (0.0, 1.0), batch_size: int = 64, precision: str = "fp32") -> Evaluation:
    """Calls report(step, mean loss of train, mean loss of twin) before training (step 0) and after every `every` steps.

    Noise and timesteps are the same at every step, for every candidate and on both sides, so that a difference between two points is not
    that of their draws; the losses are those of `trainers.denoising.losses`, of the first PICTURES of either side. A training that is
    resumed may report a step again, with the same numbers.
    """
    sides = [side.first(PICTURES) for side in (train, twin)]

    def look(step: int) -> None:
        report(step, *(float(losses(unet, scheduler, side, seed, draws, span, batch_size, precision).mean()) for side in sides))

    return Evaluation(lambda step: step % every == 0, look)
