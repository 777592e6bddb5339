"""The text-conditional noise norm of Wen et al. 2024: by how much a caption moves the predicted noise. Used by several mitigations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def rms_noise_difference(captioned: torch.Tensor, plain: torch.Tensor, alphas_cumprod: torch.Tensor, prediction_type: str) -> torch.Tensor:
    """‖ε(x_t, c) − ε(x_t, ∅)‖₂ / √n for predictions (b, …) of n elements each, with ᾱ (b,) or () at their timesteps: (b,) float32.

    As a root mean square it is in units of the noise itself, which has 1, and no matter of the resolution, as the norm is.
    A difference of v-predictions is one of noise after multiplication with √ᾱ, since ε = √ᾱ v + √(1 − ᾱ) x_t (Salimans & Ho
    2022, appendix D): at zero terminal SNR no caption moves the noise.
    """
    difference = (captioned.float() - plain.float()).flatten(1)
    if prediction_type == "v_prediction":
        difference = difference * alphas_cumprod.sqrt().expand(len(difference))[:, None]
    return difference.norm(dim=1) / math.sqrt(difference.shape[1])
