"""Pictures from captions: a fast solver with classifier-free guidance, the same initial noise for every trial."""

from __future__ import annotations

import numpy as np
import torch

from trainers.errors import BadModel, NotFinite
from trainers.loss import autocast
from trainers.mitigations.hooks import FirstStep, Guard


def initial_noise(count: int, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Standard normal latents (count, *shape), drawn on the CPU so that every device and trial starts from the same."""
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def sample(unet, scheduler_config: dict, states: torch.Tensor, caption: torch.Tensor, noise: torch.Tensor, *, steps: int,
           guidance_scale: float, batch_size: int, precision: str = "fp32", guard: Guard | None = None) -> torch.Tensor:
    """Latents of one picture a row of `caption`: (n, 4, h, w) float32, scaled as the U-Net sees them.

    states: (captions, tokens, width) with the empty caption last; caption: (n,) rows of it; noise: (n, 4, h, w).
    guard: generation-time mitigations, which may change what the U-Net is given of a caption, or None.
    DPM-Solver++ 2M (arXiv 2211.01095); conditional and unconditional in one batch. Raises NotFinite.
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
        said = states[rows]
        if guard is not None:
            pictures = np.arange(start, start + len(rows))
            said = guarded(guard, first_step(unet, solver, latents, empty, precision), said, rows.cpu().numpy(), pictures)
        both = torch.cat([empty.expand(len(rows), -1, -1), said])
        for timestep in solver.timesteps:
            given = solver.scale_model_input(torch.cat([latents, latents]), timestep)
            with autocast(device, precision):
                plain, conditional = unet(given, timestep, both).sample.float().chunk(2)
            latents = solver.step(plain + guidance_scale * (conditional - plain), timestep, latents).prev_sample
        if not latents.isfinite().all():
            raise NotFinite
        out.append(latents.contiguous())
    return torch.cat(out)


def first_step(unet, solver, latents: torch.Tensor, empty: torch.Tensor, precision: str) -> FirstStep:
    """What mitigations may know before `latents` (b, 4, h, w) take the solver's first step."""
    timestep = solver.timesteps[0]
    with torch.inference_mode(False):  # autograd refuses tensors of inference mode, which a clone outside of it is not
        given, unconditional = solver.scale_model_input(latents, timestep).clone(), empty.clone()

    def predict(states: torch.Tensor) -> torch.Tensor:
        with autocast(given.device, precision):
            return unet(given, timestep, states).sample.float()

    return FirstStep(unconditional, predict, float(solver.alphas_cumprod[int(timestep)]), solver.config.prediction_type)


def guarded(guard: Guard, first: FirstStep, states: torch.Tensor, rows: np.ndarray, pictures: np.ndarray) -> torch.Tensor:
    """The states (b, tokens, width) that sampling goes on with."""
    with torch.inference_mode(False), torch.no_grad():
        return guard.states(first, states.clone(), rows, pictures)


@torch.inference_mode()
def decode(vae, latents: torch.Tensor, batch_size: int) -> np.ndarray:
    """Grey pictures of scaled, finite latents: (n, H, W) uint8, the mean of the three channels. Raises BadModel if a pixel is not finite."""
    parts = []
    for start in range(0, len(latents), batch_size):
        with torch.autocast(latents.device.type, enabled=False):
            decoded = vae.decode(latents[start : start + batch_size].float() / vae.config.scaling_factor).sample
        if not decoded.isfinite().all():
            raise BadModel("the VAE decodes latents to pixels that are not finite, in fp32: its weights are damaged, take another copy")
        grey = decoded.float().mean(1).add(1).mul(127.5).round().clamp(0, 255)
        parts.append(grey.to(torch.uint8).cpu().numpy())
    return np.concatenate(parts)
