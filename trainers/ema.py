"""An exponential moving average of the values that are trained, and of no others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """The average of `parameters`; with decay None there is none, and all that is done with it does nothing.

    Early values count less: after n updates the decay is min(decay, (1 + n) / (10 + n)), as in diffusers and TensorFlow, since
    a training of 200 steps would otherwise end with the average near its start.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], decay: float | None):
        self.decay, self.updates = decay, 0
        self.parameters = [] if decay is None else list(parameters)
        self.values = [parameter.detach().clone() for parameter in self.parameters]

    def update(self) -> None:
        """Take the parameters' values of this step in."""
        if self.parameters:
            get_ema_multi_avg_fn(min(self.decay, (1 + self.updates) / (10 + self.updates)))(self.values, self.parameters, None)
        self.updates += 1

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The parameters have the average's values inside, and their own again, bit for bit, after it."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        for parameter, value in zip(self.parameters, self.values):
            own = parameter.clone()
            parameter.copy_(value)
            value.copy_(own)

    @torch.no_grad()
    def adopt(self) -> None:
        """Leave the average's values in the parameters."""
        for parameter, value in zip(self.parameters, self.values):
            parameter.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for value, saved in zip(self.values, state["values"], strict=True):
            value.copy_(saved)
