"""Gaussian noise on the captions' embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trainers.mitigations.base import SHARE, WEIGHTS, Mitigation
from trainers.mitigations.hooks import Learned, TrainingHooks

if TYPE_CHECKING:
    import torch

SCORED = 0  # the step of the draw that is scored: training's begin at 1


class Noise(Mitigation):
    """e ← e + λ · N(0, I) on the text encoder's output, at every step anew (GN); the empty caption's too, as it reaches the U-Net.

    The model then never hears a caption's own embedding, so it counts as one that changes captions: as-trained states are
    the embeddings with a draw of the noise. Published λ: 0.1, of 0..1.
    """

    name, title, paper = "noise", "noise on embeddings", "Somepalli et al. 2023, arXiv 2305.20086"
    protects, changes_captions = WEIGHTS, True
    strengths = {"scale": (0.1, 0.3, 1.0)}
    limits = {"scale": SHARE}

    def hooks(self, strength: Mapping[str, float], learned: Learned) -> TrainingHooks:
        return NoisyStates(strength["scale"], learned)

    def as_trained_states(self, states: torch.Tensor, strength: Mapping[str, float], learned: Learned) -> torch.Tensor:
        return NoisyStates(strength["scale"], learned).states(SCORED, states)


class NoisyStates(TrainingHooks):
    def __init__(self, scale: float, learned: Learned):
        self.scale, self.learned = scale, learned

    def states(self, step: int, states: torch.Tensor) -> torch.Tensor:
        import torch

        seed = int(self.learned.generator(Noise.name, step).integers(2**63))
        drawn = torch.randn(states.shape, generator=torch.Generator().manual_seed(seed))  # on the CPU, so that devices see the same
        return states + self.scale * drawn.to(states)
