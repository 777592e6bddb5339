"""The curve of the denoising loss, on the pictures learned from and on held-out ones, while a candidate is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from trainers.denoising import losses
from trainers.errors import TrainingDiverged
from trainers.plan import Examples
from trainers.training import Evaluation

DRAWS = 2  # noise and timestep draws a picture
PICTURES = 32  # measured a side at most: a point of the curve must cost a few steps, however many pictures are learned from

Report = Callable[[int, float, float], None]


class Curve:
    """The points so far, (mean loss of train, mean loss of twin) by step; kept with a training's state. learning_rate: of the training."""

    def __init__(self, learning_rate: float, report: Report = lambda step, train, twin: None):
        self.points: dict[int, tuple[float, float]] = {}
        self.learning_rate, self.report = learning_rate, report

    def add(self, step: int, train: float, twin: float) -> None:
        """Raises TrainingDiverged, and adds nothing, for a loss that is not finite: it is measured after a step of which the next one's own loss would tell."""
        for loss in (train, twin):
            if not math.isfinite(loss):
                raise TrainingDiverged(step, loss, self.learning_rate)
        self.points[step] = train, twin
        self.report(step, train, twin)

    def state_dict(self) -> dict[str, Any]:
        return {"points": [[step, *losses] for step, losses in self.points.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.points = {step: (train, twin) for step, train, twin in state["points"]}


def curve(unet, scheduler, train: Examples, twin: Examples, *, every: int, seed: int, found: Curve, draws: int = DRAWS,
          span: tuple[float, float] = (0.0, 1.0), batch_size: int = 64, precision: str = "fp32") -> Evaluation:
    """Adds a point to `found` before training (step 0) and after every `every` steps.

    Noise and timesteps are the same at every step, for every candidate and on both sides, so that a difference between two points is not
    that of their draws; the losses are those of `trainers.denoising.losses`, of the first PICTURES of either side.
    """
    sides = [side.first(PICTURES) for side in (train, twin)]

    def look(step: int) -> None:
        found.add(step, *(float(losses(unet, scheduler, side, seed, draws, span, batch_size, precision).mean()) for side in sides))

    return Evaluation(lambda step: step % every == 0, look, found)
