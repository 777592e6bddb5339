"""What can be wrong with what the user gives to the inner loop. Each message is one line: value, rule, way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class TrainerError(ValueError):
    """Something given to the trainers cannot be used; the message names argument, value, rule and way out."""


class BadData(TrainerError):
    """The data folder, or what it leaves of patients and pictures, cannot be used."""


class CorruptPicture(BadData):
    """A file that should be a picture and cannot be decoded."""

    def __init__(self, path: Path):
        super().__init__(f"picture {path} is corrupt: copy it anew")
        self.path = path


class BadModel(TrainerError):
    """The base model's folder cannot be used."""


class BadSelection(TrainerError):
    """Units, a method or a candidate that this U-Net cannot have."""


class TrainingDiverged(TrainerError):
    """The loss is not finite: the candidate's own fault, so it is not tried again."""

    def __init__(self, step: int, loss: float, learning_rate: float):
        self.step, self.loss, self.learning_rate = step, loss, learning_rate
        super().__init__(
            f"loss is {loss} at step {step} with learning rate {learning_rate:g}: it must stay finite, "
            "a lower rate helps"
        )


class NotFinite(TrainerError):
    """The U-Net generates latents that are not finite: a candidate's own fault, or a damaged base model."""

    def __init__(self):
        super().__init__("the U-Net generates latents that are not finite: take a lower learning rate or fewer steps")


class NoMemory(TrainerError):
    """The device's memory is not enough for a candidate: its own fault, so it is not tried again, and the study goes on."""

    def __init__(self, words: str, said: str, batch_size: int):
        self.words, self.said, self.batch_size = words, said, batch_size
        super().__init__(f"out of memory with {words} ({said.rstrip('.')}): raise --accumulate, add --gradient-checkpointing, "
                         f"or lower --batch-size {batch_size}, with another study name")


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names most like `name`, at most three, for an error message: "attention, norm or bias"."""
    close = difflib.get_close_matches(name, list(dict.fromkeys(known)), n=3, cutoff=0.0)
    return " or ".join(filter(None, (", ".join(close[:-1]), close[-1]))) if close else "none, there are none"
