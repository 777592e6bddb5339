"""Schedules: the factor on the learning rate at each step, a linear warm-up and then a curve. Adding one is a function and a line in the table."""

from __future__ import annotations

import math
from collections.abc import Callable

from trainers.errors import BadSelection, nearest

WARMUP_STEPS = 10  # Adam's second moments rest on too few gradients before


def constant(progress: float) -> float:
    return 1.0


def linear(progress: float) -> float:
    return 1.0 - progress


def cosine(progress: float) -> float:
    """Loshchilov & Hutter 2017 (SGDR), eq. 5, without restarts and down to 0."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Callable[[float], float]] = {"constant": constant, "cosine": cosine, "linear": linear}


def factor(schedule: str, step: int, warmup: int, total: int) -> float:
    """The factor, 0..1, at `step`, counted from 1: step / warmup in the warm-up, then the curve from 1 at its first step to
    just above 0 at step `total`, where it stays. Raises BadSelection for an unknown schedule."""
    if schedule not in SCHEDULES:
        raise BadSelection(f"schedule {schedule!r} is unknown: take {nearest(schedule, SCHEDULES)}")
    if step <= warmup:
        return step / warmup
    length = max(total - warmup, 1)
    return SCHEDULES[schedule]((min(step - warmup, length) - 1) / length)
