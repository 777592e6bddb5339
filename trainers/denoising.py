"""Per-picture denoising loss at common noise: the raw material of the loss gap. No statistics here."""

from __future__ import annotations

import numpy as np
import torch

from trainers.loss import autocast, target_of
from trainers.plan import Examples

DRAWS = 8  # noise and timestep draws a picture: DESIGN, decision 6


def timesteps_of(count: int, draws: int, low: int, high: int, generator: torch.Generator) -> torch.Tensor:
    """Stratified: each picture gets one timestep from each of `draws` equal parts of [low, high): (count, draws)."""
    position = (torch.arange(draws) + torch.rand(count, draws, generator=generator)) / draws
    return (low + position * (high - low)).long().clamp(max=high - 1)


@torch.inference_mode()
def losses(unet, scheduler, examples: Examples, seed: int, draws: int = DRAWS, span: tuple[float, float] = (0.0, 1.0),
           batch_size: int = 64, precision: str = "fp32") -> np.ndarray:
    """Mean squared error of each picture's posterior mean at each of its draws: (n, draws) float64, from clean to noisy.

    Noise and timesteps depend on the seed and on how many pictures and draws there are, not on the model, the captions or
    the batch size, so two models are compared on the same ones. `span` is the part of the schedule that timesteps
    come from (0 = clean, 1 = pure noise).
    """
    device, count = examples.mean.device, len(examples)
    generator = torch.Generator().manual_seed(seed)
    last = scheduler.config.num_train_timesteps
    timesteps = timesteps_of(count, draws, round(span[0] * last), round(span[1] * last), generator)
    noise = torch.randn((count, draws, *examples.mean.shape[1:]), generator=generator)
    out = np.empty((count, draws))
    for draw in range(draws):
        for start in range(0, count, batch_size):
            rows = slice(start, min(start + batch_size, count))
            clean, t = examples.mean[rows], timesteps[rows, draw].to(device)
            drawn = noise[rows, draw].to(device)
            with autocast(device, precision):
                predicted = unet(scheduler.add_noise(clean, drawn, t), t, examples.states[examples.caption[rows]]).sample
            error = (predicted.float() - target_of(scheduler, clean, drawn, t)).square().flatten(1).mean(1)
            out[rows, draw] = error.double().cpu().numpy()
    return out
