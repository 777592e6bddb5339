"""What a training is given: the examples that are learned from, and the plan, which is everything but which parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from trainers.schedules import WARMUP_STEPS


@dataclass(frozen=True)
class Examples:
    """What is learned from: posterior mean and deviation (n, 4, h, w), and the row of each picture's caption in `states`.

    states: (captions, tokens, width) with the empty caption last. All float32, on the U-Net's device.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    states: torch.Tensor
    caption: torch.Tensor  # (n,) int64

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def empty(self) -> int:
        return len(self.states) - 1

    def first(self, count: int) -> Examples:
        """The first `count` pictures, or all if there are fewer."""
        return replace(self, mean=self.mean[:count], deviation=self.deviation[:count], caption=self.caption[:count])


@dataclass(frozen=True)
class Plan:
    """How a candidate is trained; everything but which parameters.

    optimizer, schedule: names of `trainers.optimizers.OPTIMIZERS` and `trainers.schedules.SCHEDULES`. schedule_steps: where
    a decaying schedule ends, whatever the candidate's own steps; None: at `steps`. accumulate: parts that a batch is split into,
    one after the other. min_snr_gamma, ema_decay: None for none. gradient_checkpointing: compute activations again in the
    backward pass rather than keep them; the result is the same.
    """

    steps: int
    learning_rate: float
    batch_size: int
    seed: int
    caption_dropout: float = 0.1
    max_grad_norm: float = 1.0
    precision: str = "fp32"
    optimizer: str = "adamw"
    schedule: str = "constant"
    schedule_steps: int | None = None
    warmup_steps: int = WARMUP_STEPS
    accumulate: int = 1
    min_snr_gamma: float | None = None
    noise_offset: float = 0.0
    ema_decay: float | None = None
    gradient_checkpointing: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the weights after k steps, for any k: without the number of steps, since a longer training goes on
        from a shorter one, unless a decaying schedule ends there."""
        named = {name: value for name, value in vars(self).items() if name not in ("steps", "gradient_checkpointing")}
        return {**named, "schedule_steps": None if self.schedule == "constant" else self.schedule_steps or self.steps}
