"""All that is random in a training: the order of the pictures, noise, timesteps and dropped captions, from one stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from trainers.plan import Plan


@dataclass(frozen=True)
class Drawn:
    """What is drawn for one batch. rows: (b,) int64 of the examples; posterior_noise, noise: (b, c, h, w); timesteps: (b,) int64;
    dropped: (b,) bool, whose caption is left out."""

    rows: torch.Tensor
    posterior_noise: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    dropped: torch.Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> Drawn:
        return Drawn(*(getattr(self, each.name).to(device) for each in fields(self)))

    def parts(self, count: int) -> Iterator[tuple[slice, Drawn]]:
        """The batch in `count` parts, as equal as can be, none empty: fewer where the batch is smaller."""
        count = min(count, len(self))
        bounds = [len(self) * number // count for number in range(count + 1)]
        for place in map(slice, bounds, bounds[1:]):
            yield place, Drawn(*(getattr(self, each.name)[place] for each in fields(self)))


class Draws:
    """Batch after batch, without end; every picture once before any comes again. Drawn on the CPU, so that devices see the same.

    rows: (k,) int64, the pictures to learn from; shape: (c, h, w) of a latent; timesteps: length of the noise schedule.
    """

    def __init__(self, rows: torch.Tensor, shape: torch.Size, timesteps: int, plan: Plan):
        self.rows, self.shape, self.timesteps, self.plan = rows, shape, timesteps, plan
        self.generator = torch.Generator().manual_seed(plan.seed)
        self.waiting = torch.empty(0, dtype=torch.int64)  # places in `rows` of this round's pictures that are still to come

    def next(self) -> Drawn:
        # The order of the draws decides every trained weight: a new draw goes to the end, and only where it is asked for.
        size, generator = self.plan.batch_size, self.generator
        while len(self.waiting) < size:
            self.waiting = torch.cat([self.waiting, torch.randperm(len(self.rows), generator=generator)])
        taken, self.waiting = self.waiting[:size], self.waiting[size:]
        posterior_noise, noise = (torch.randn((size, *self.shape), generator=generator) for _ in range(2))
        timesteps = torch.randint(self.timesteps, (size,), generator=generator)
        dropped = torch.rand(size, generator=generator) < self.plan.caption_dropout
        if self.plan.noise_offset:
            # One number a channel: Guttenberg 2023, "Diffusion with offset noise", as diffusers' training scripts have it.
            noise = noise + self.plan.noise_offset * torch.randn((size, self.shape[0], 1, 1), generator=generator)
        return Drawn(self.rows[taken], posterior_noise, noise, timesteps, dropped)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "waiting": self.waiting}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.waiting = state["waiting"]


class Ahead:
    """The pictures of each step before it comes. They are found by drawing all that is drawn until then, as far as is asked."""

    def __init__(self, draws: Draws):
        self.again = Draws(draws.rows, draws.shape, draws.timesteps, draws.plan)
        self.known: list[np.ndarray] = []

    def __call__(self, step: int) -> np.ndarray:
        """(b,) int64 rows of the examples at `step`, counted from 1."""
        while len(self.known) < step:
            self.known.append(self.again.next().rows.numpy())
        return self.known[step - 1]
