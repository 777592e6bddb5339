"""Prompt optimization: the embedding of a caption is moved, before sampling, until it moves the predicted noise less."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from trainers.mitigations.base import OUTPUTS, POSITIVE, STEPS, Mitigation
from trainers.mitigations.hooks import FirstStep, GenerationHooks, Learned
from trainers.mitigations.noise_norm import rms_noise_difference

if TYPE_CHECKING:
    import torch

RATE = 0.05  # of AdamW, with its default decay: `--optim_lr` in the published code
TERMINAL_ALPHA = 0.00466  # ᾱ at the last of Stable Diffusion's 1,000 timesteps


class PromptOptimization(Mitigation):
    """AdamW on each picture's caption embedding, at the first step of sampling, until its noise norm (see `threshold`) is at or
    below a target; all tokens but the first, for at most `steps` steps. All of sampling then uses that embedding.

    rms: the target divided by √n. Published is a norm of 3 over the 4 pictures of a prompt together, for Stable Diffusion v1.4 at
    512 × 512, so √n = √(4 · 16384) = 256: 0.0117; here each picture has an embedding of its own. Where the first step is at pure
    noise (zero terminal SNR) no caption moves the noise at all: √ᾱ is then that of Stable Diffusion's own last timestep, with
    which a target means the same change of the picture in both kinds of model.
    """

    name, title, paper = "prompt-optimization", "prompt optimization", "Wen et al. 2024, ICLR, openreview 84n3UwkH7b"
    protects, changes_captions = OUTPUTS, True
    strengths = {"rms": (0.0117, 0.006, 0.003), "steps": (10, 30)}
    limits = {"rms": POSITIVE, "steps": STEPS}

    def hooks(self, strength: Mapping[str, float], learned: Learned) -> GenerationHooks:
        return OptimizedPrompts(strength["rms"], int(strength["steps"]))


class OptimizedPrompts(GenerationHooks):
    def __init__(self, rms: float, steps: int):
        self.rms, self.steps = rms, steps

    def states(self, first: FirstStep, states: torch.Tensor) -> torch.Tensor:
        import torch

        plain = first.predict(first.empty.expand_as(states))
        alpha = torch.tensor(max(first.alpha_cumprod, TERMINAL_ALPHA), device=states.device)
        start, later = states[:, :1], states[:, 1:].clone().requires_grad_()
        done = torch.zeros(len(states), 1, 1, dtype=torch.bool, device=states.device)
        optimizer = torch.optim.AdamW([later], lr=RATE)
        for _ in range(self.steps):
            with torch.enable_grad():
                norms = rms_noise_difference(first.predict(torch.cat([start, later], 1)), plain, alpha, first.prediction_type)
                done |= (norms <= self.rms)[:, None, None]
                if done.all():
                    break
                # The norm itself, not its root mean square, whose gradients come near AdamW's epsilon.
                (later.grad,) = torch.autograd.grad(norms.sum() * math.sqrt(plain[0].numel()), [later])
            reached = later.detach().clone()
            optimizer.step()
            later.data.copy_(torch.where(done, reached, later))
        return torch.cat([start, later.detach()], 1)
