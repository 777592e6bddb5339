"""The denoising loss of a batch or of a part of one, with the weights of its samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn.functional import mse_loss

from trainers.draws import Drawn
from trainers.mitigated import Mitigations
from trainers.mitigations.hooks import Batch
from trainers.plan import Examples, Plan
from trainers.weighting import V_PREDICTION, min_snr

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str):
    """Mixed precision as a context; fp32 is the plain computation."""
    dtype = AUTOCAST[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def target_of(scheduler, clean, noise, timesteps):
    """What the U-Net should say: the noise, or the velocity (Salimans & Ho 2022, eq. 11)."""
    if scheduler.config.prediction_type == V_PREDICTION:
        return scheduler.get_velocity(clean, noise, timesteps)
    return noise


@dataclass(frozen=True)
class Loss:
    """plain: () mean squared error of all samples, without gradient. trained: () the mean over all samples of weight · squared error, with
    gradient; None where every sample is skipped. kept: samples that are not skipped."""

    plain: torch.Tensor
    trained: torch.Tensor | None
    kept: int


@dataclass(frozen=True)
class Denoising:
    """What is learned: to undo noise on the examples' latents, as the plan and the mitigations have it."""

    unet: Any
    scheduler: Any
    examples: Examples
    plan: Plan
    mitigations: Mitigations

    def loss(self, step: int, drawn: Drawn, states: torch.Tensor) -> Loss:
        """The loss of the pictures of `drawn`, on the U-Net's device, with caption states (b, tokens, width)."""
        examples, scheduler, timesteps = self.examples, self.scheduler, drawn.timesteps
        clean = examples.mean[drawn.rows] + examples.deviation[drawn.rows] * drawn.posterior_noise
        noisy = scheduler.add_noise(clean, drawn.noise, timesteps)
        predicted = self.predict(noisy, timesteps, states)
        target = target_of(scheduler, clean, drawn.noise, timesteps)

        @cache
        @torch.no_grad()
        def without_caption() -> torch.Tensor:
            return self.predict(noisy, timesteps, examples.states[examples.empty].expand_as(states))

        chosen = self.mitigations.weights(Batch(step, noisy, timesteps, predicted.detach(), without_caption, scheduler.alphas_cumprod,
                                                scheduler.config.prediction_type, drawn.dropped))
        if chosen is None and self.plan.min_snr_gamma is None:
            loss = mse_loss(predicted, target)
            return Loss(loss.detach(), loss, len(drawn))
        errors = (predicted - target).square().flatten(1).mean(1)
        kept = len(drawn) if chosen is None else int((chosen > 0).sum())
        weights = self.by_timestep(timesteps) * (1.0 if chosen is None else chosen)
        return Loss(errors.detach().mean(), (weights * errors).mean() if kept else None, kept)

    def predict(self, noisy: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        with autocast(noisy.device, self.plan.precision):
            predicted = self.unet(noisy, timesteps, states).sample
        return predicted.float()

    def by_timestep(self, timesteps: torch.Tensor) -> torch.Tensor:
        """The weights (b,) that timesteps have by themselves: of min-SNR, or 1."""
        if self.plan.min_snr_gamma is None:
            return torch.ones(timesteps.shape, device=timesteps.device)
        return min_snr(self.scheduler.alphas_cumprod.to(timesteps.device)[timesteps], self.scheduler.config.prediction_type, self.plan.min_snr_gamma)
