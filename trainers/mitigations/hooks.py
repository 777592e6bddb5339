"""What a mitigation may change, as hooks that training and generation call. By default each changes nothing."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Learned:
    """What is learned from, as a mitigation sees it.

    captions: the distinct captions, row i of the states; caption: (n,) int64, each picture's row; encode: texts →
    (k, tokens, width) float32 states on the U-Net's device, encoded in batches and remembered by text; random_word: a generator →
    what a random token of the tokenizer stands for; features: () → (n, d) float, of the encoder that scores; seed: of the trial,
    independent of that of noise and order.
    """

    captions: list[str]
    caption: np.ndarray
    encode: Callable[[list[str]], torch.Tensor]
    random_word: Callable[[np.random.Generator], str]
    features: Callable[[], np.ndarray]
    seed: int

    def generator(self, name: str, *numbers: int) -> np.random.Generator:
        """Random numbers that are the same whenever they are asked for: of the trial, of the mitigation of that name, and of
        the numbers, such as a step's."""
        return np.random.default_rng([self.seed, zlib.crc32(name.encode()), *numbers])

    def texts(self, rows: np.ndarray) -> list[str]:
        """The captions (b,) of the pictures `rows` (b,)."""
        return [self.captions[row] for row in self.caption[rows]]


@dataclass(frozen=True)
class Batch:
    """One forward pass of training. noisy: (b, 4, h, w); timesteps: (b,); predicted: (b, 4, h, w) of the U-Net with captions,
    detached; without_caption: () → the same for the empty caption, without gradient; alphas_cumprod: (T,) of the schedule;
    prediction_type: "epsilon" or "v_prediction"; dropped: (b,) bool, whose caption was replaced by the empty one."""

    step: int
    noisy: torch.Tensor
    timesteps: torch.Tensor
    predicted: torch.Tensor
    without_caption: Callable[[], torch.Tensor]
    alphas_cumprod: torch.Tensor
    prediction_type: str
    dropped: torch.Tensor


class TrainingHooks:
    """A training-time mitigation at work on one training. Random numbers come from (seed, step), so that a resumed training sees
    the same ones."""

    def kept(self) -> np.ndarray | None:
        """Rows of the pictures that are learned from, or None for all."""
        return None

    def texts(self, step: int, rows: np.ndarray) -> list[str] | None:
        """The captions of the pictures `rows` (b,) at this step, or None for those that they have. Asked once a step, in order;
        a hook may look ahead, to encode many texts in one batch, since it is told the rows of all steps by `expect`."""
        return None

    def expect(self, rows: Callable[[int], np.ndarray], steps: int) -> None:
        """Told before the first step: rows(step) → (b,) pictures of a step, 1 ≤ step ≤ steps."""

    def states(self, step: int, states: torch.Tensor) -> torch.Tensor:
        """The caption states (b, tokens, width) that the U-Net is given."""
        return states

    def weights(self, batch: Batch) -> torch.Tensor | None:
        """(b,) weights of the samples, 0 to skip one, or None for all 1. A step whose weights are all 0 changes nothing."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs: plain numbers, lists and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""


@dataclass(frozen=True)
class FirstStep:
    """The first step of sampling some pictures, before it is made.

    empty: (1, tokens, width) state of the empty caption; predict: states (b, tokens, width) → (b, 4, h, w) float32, what the
    U-Net says of the pictures' initial noise, differentiable in the states; alpha_cumprod: ᾱ of the schedule at this step, 0..1;
    prediction_type: "epsilon" or "v_prediction".
    """

    empty: torch.Tensor
    predict: Callable[[torch.Tensor], torch.Tensor]
    alpha_cumprod: float
    prediction_type: str


class GenerationHooks:
    """A generation-time mitigation at work on one generation. Random numbers come from (seed, picture), so that the batch size does not
    matter."""

    def texts(self, captions: list[str], pictures: np.ndarray) -> list[str] | None:
        """What is said in the place of `captions` (b,), or None for those. pictures: (b,) places among all that are generated."""
        return None

    def states(self, first: FirstStep, states: torch.Tensor) -> torch.Tensor:
        """The caption states (b, tokens, width) that every step of sampling is given. Called without gradient, outside inference
        mode."""
        return states


@dataclass(frozen=True)
class Guard:
    """The generation-time mitigations of a call of `trainers.sampling.sample`, in order. captions: texts of the rows of its
    `states`; encode: as `Learned.encode`."""

    hooks: tuple[GenerationHooks, ...]
    captions: list[str]
    encode: Callable[[list[str]], torch.Tensor]

    def states(self, first: FirstStep, states: torch.Tensor, rows: np.ndarray, pictures: np.ndarray) -> torch.Tensor:
        """What is given in the place of the states (b, tokens, width) of the captions `rows` (b,) for `pictures` (b,)."""
        texts = [self.captions[row] for row in rows]
        for hook in self.hooks:
            said = hook.texts(texts, pictures)
            texts = texts if said is None else said
        if texts != [self.captions[row] for row in rows]:
            states = self.encode(texts)
        for hook in self.hooks:
            states = hook.states(first, states)
        return states
