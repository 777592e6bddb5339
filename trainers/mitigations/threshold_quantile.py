"""Threshold mitigation whose threshold follows the model: a quantile of the last samples' noise norms."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from trainers.mitigations.base import INSIDE, WEIGHTS, Mitigation
from trainers.mitigations.hooks import Batch, Learned, TrainingHooks
from trainers.mitigations.threshold import noise_norms

if TYPE_CHECKING:
    import torch

REMEMBERED = 1024  # samples whose norms make the distribution: enough for a 0.99 quantile, few enough to follow the training
WARM_UP = 128  # samples before the first one is skipped: a 0.9 quantile of fewer is a matter of luck


class ThresholdQuantile(Mitigation):
    """A sample is skipped if its noise norm (see `threshold`) is at or over a quantile of those of the last 1,024 samples before its batch, or its
    part of one with `--accumulate`.

    MemControl's "auto" takes the 0.9 quantile of each batch, so that a tenth of every batch is skipped whatever is in it, and
    what is skipped depends on the batch size. Here the distribution runs on over the training, and skipped samples are
    part of it. Until it has 128 norms nothing is skipped. Dropped captions, which have norm 0, are no part of it.
    """

    name, title, paper = "threshold-quantile", "threshold on the noise norm's quantile", "Dutt et al. 2024, arXiv 2405.19458, after Wen et al. 2024"
    protects = WEIGHTS
    strengths = {"quantile": (0.9, 0.7, 0.5)}
    limits = {"quantile": INSIDE}

    def hooks(self, strength: Mapping[str, float], learned: Learned) -> TrainingHooks:
        return SkippingQuantile(strength["quantile"])


class SkippingQuantile(TrainingHooks):
    def __init__(self, quantile: float):
        self.quantile = quantile
        self.norms: deque[float] = deque(maxlen=REMEMBERED)

    def weights(self, batch: Batch) -> torch.Tensor:
        norms = noise_norms(batch)
        threshold = float(np.quantile(self.norms, self.quantile)) if len(self.norms) >= WARM_UP else float("inf")
        self.norms.extend(norms[norms > 0].tolist())
        return 1 - (norms >= threshold).float()

    def state_dict(self) -> dict[str, Any]:
        return {"norms": list(self.norms)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.norms = deque(state["norms"], maxlen=REMEMBERED)
