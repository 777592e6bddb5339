"""Weights of the denoising loss by timestep."""

from __future__ import annotations

import torch

V_PREDICTION = "v_prediction"


def min_snr(alphas_cumprod: torch.Tensor, prediction_type: str, gamma: float) -> torch.Tensor:
    """Min-SNR-γ weights (Hang et al. 2023, arXiv 2303.09556, section 3.4) of a loss in the model's own prediction.

    alphas_cumprod: any shape, ᾱ with SNR = ᾱ / (1 − ᾱ) → the same shape: min(SNR, γ) / SNR for "epsilon", min(SNR, γ) / (SNR + 1) for
    "v_prediction". Both are finite everywhere, also with zero terminal SNR (ᾱ = 0: 1 and 0) and without noise (ᾱ = 1: 0).
    """
    # Both sides of each fraction times 1 − ᾱ, so that no SNR is infinite.
    capped = torch.minimum(alphas_cumprod, gamma * (1 - alphas_cumprod))
    if prediction_type == V_PREDICTION:
        return capped
    return torch.where(alphas_cumprod > 0, capped / alphas_cumprod.clamp(min=torch.finfo(alphas_cumprod.dtype).tiny), 1.0)
