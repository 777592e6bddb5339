"""What a training reports when it is done, and what is written down for it on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

TAIL = 10  # the last tenth of the losses is reported


@dataclass(frozen=True)
class Fit:
    """What training left behind: mean loss of its last tenth, seconds, and the share of samples that the mitigations kept.

    loss: plain mean squared error of all samples, whatever weights they had, so that it compares across weightings and mitigations.
    seconds: of the steps alone, without evaluations, the writing of states and pauses.
    """

    loss: float
    seconds: float
    kept: float = 1.0


class Record:
    """Loss of every step, samples kept and seconds, also of a training in several goes."""

    def __init__(self, batch_size: int):
        self.batch_size, self.losses, self.kept, self.seconds = batch_size, [], 0, 0.0

    def add(self, loss: float, kept: int) -> None:
        self.losses.append(loss)
        self.kept += kept

    @contextmanager
    def timed(self) -> Iterator[None]:
        """What is done inside is training, and its time counts."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - started

    def fit(self) -> Fit:
        """Raises ValueError before the first step."""
        steps = len(self.losses)
        if not steps:
            raise ValueError("nothing is trained yet: ask for a training's loss after its first step")
        tail = torch.tensor(self.losses[-max(steps // TAIL, 1):])
        return Fit(float(tail.mean()), self.seconds, self.kept / (steps * self.batch_size))

    def state_dict(self) -> dict[str, Any]:
        return {"losses": torch.tensor(self.losses), "kept": self.kept, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses, self.kept, self.seconds = state["losses"].tolist(), state["kept"], state["seconds"]
