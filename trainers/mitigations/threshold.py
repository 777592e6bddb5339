"""Threshold mitigation: samples whose caption moves the predicted noise too far are not learned from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trainers.mitigations.base import POSITIVE, WEIGHTS, Mitigation
from trainers.mitigations.hooks import Batch, Learned, TrainingHooks
from trainers.mitigations.noise_norm import rms_noise_difference

if TYPE_CHECKING:
    import torch


def noise_norms(batch: Batch) -> torch.Tensor:
    """(b,) text-conditional noise norms of a batch, as root mean squares. 0 of a dropped caption, also where noise on embeddings moved it."""
    alphas_cumprod = batch.alphas_cumprod.to(batch.timesteps.device)[batch.timesteps]
    return rms_noise_difference(batch.predicted, batch.without_caption(), alphas_cumprod, batch.prediction_type).masked_fill(batch.dropped, 0.0)


class Threshold(Mitigation):
    """A sample is skipped if ‖ε(x_t, c) − ε(x_t, ∅)‖₂ is at or over an absolute threshold (TM). Costs a second pass without gradient.

    rms: the threshold divided by √n, n the elements of a latent, so that it does not depend on the resolution. Published is a
    norm of 2 for Stable Diffusion v1.4 at 512 × 512, where √n = 128: 0.0156. The norm goes with the model and the timestep
    too, so another model needs another constant, or `threshold-quantile`. A dropped caption has norm 0 and is learned from.
    """

    name, title, paper = "threshold", "threshold on the noise norm", "Wen et al. 2024, ICLR, openreview 84n3UwkH7b"
    protects = WEIGHTS
    strengths = {"rms": (0.0156, 0.07, 0.14, 0.28)}
    limits = {"rms": POSITIVE}

    def hooks(self, strength: Mapping[str, float], learned: Learned) -> TrainingHooks:
        return Skipping(strength["rms"])


class Skipping(TrainingHooks):
    def __init__(self, rms: float):
        self.rms = rms

    def weights(self, batch: Batch) -> torch.Tensor:
        # What is not a number is not over the threshold: a training that diverges must not go on as one that skips everything.
        return 1 - (noise_norms(batch) >= self.rms).float()
