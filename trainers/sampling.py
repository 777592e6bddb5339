"""Pictures from captions: a fast solver with classifier-free guidance, the same initial noise for every trial."""

from __future__ import annotations

import numpy as np
import torch

from trainers.fit import autocast


def initial_noise(count: int, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Standard normal latents (count, *shape), drawn on the CPU so that every device and trial starts from the same."""
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def sample(unet, scheduler_config: dict, states: torch.Tensor, caption: torch.Tensor, noise: torch.Tensor, *, steps: int,
           guidance_scale: float, batch_size: int, precision: str = "fp32") -> torch.Tensor:
    """Latents of one picture a row of `caption`: (n, 4, h, w) float32, scaled as the U-Net sees them.

    states: (captions, tokens, width) with the empty caption last; caption: (n,) rows of it; noise: (n, 4, h, w).
    DPM-Solver++ 2M (arXiv 2211.01095); conditional and unconditional in one batch.
    """
    from diffusers import DPMSolverMultistepScheduler

    device = states.device
    empty = states[-1:]
    out = []
    for start in range(0, len(caption), batch_size):
        rows = caption[start : start + batch_size].to(device)
        # A solver keeps the history of its batch, so each batch has its own.
        solver = DPMSolverMultistepScheduler.from_config(scheduler_config, algorithm_type="dpmsolver++", solver_order=2)
        solver.set_timesteps(steps, device=device)
        latents = noise[start : start + batch_size].to(device) * solver.init_noise_sigma
        both = torch.cat([empty.expand(len(rows), -1, -1), states[rows]])
        for timestep in solver.timesteps:
            given = solver.scale_model_input(torch.cat([latents, latents]), timestep)
            with autocast(device, precision):
                plain, conditional = unet(given, timestep, both).sample.float().chunk(2)
            latents = solver.step(plain + guidance_scale * (conditional - plain), timestep, latents).prev_sample
        out.append(latents.contiguous())
    return torch.cat(out)


@torch.inference_mode()
def decode(vae, latents: torch.Tensor, batch_size: int) -> np.ndarray:
    """Grey pictures of scaled latents: (n, H, W) uint8, the mean of the three channels."""
    parts = []
    for start in range(0, len(latents), batch_size):
        with torch.autocast(latents.device.type, enabled=False):
            decoded = vae.decode(latents[start : start + batch_size].float() / vae.config.scaling_factor).sample
        grey = decoded.float().mean(1).add(1).mul(127.5).round().clamp(0, 255)
        parts.append(grey.to(torch.uint8).cpu().numpy())
    return np.concatenate(parts)
