"""Prompt optimization: AdamW's steps by hand, when it stops, what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from trainers.mitigations import MITIGATIONS
from trainers.mitigations.hooks import FirstStep
from trainers.mitigations.prompt_optimization import TERMINAL_ALPHA

OPTIMIZATION = MITIGATIONS["prompt-optimization"]


def hooks(rms=0.1, steps=10):
    return OPTIMIZATION.hooks({"rms": rms, "steps": steps}, learned=None)


def first_step(alpha_cumprod=1.0, prediction_type="epsilon", asked=None, scale=1.0):
    """A U-Net that says the mean of a caption's tokens but the first, in each of 4 channels, and 0 without a caption."""

    def predict(states):
        if asked is not None:
            asked.append(states.detach().clone())
        return scale * states[:, 1:].mean((1, 2)).view(-1, 1, 1, 1).expand(-1, 4, 2, 2)

    return FirstStep(torch.zeros(1, 3, 2), predict, alpha_cumprod, prediction_type)


def test_one_step_by_hand():
    """AdamW's first step goes by its rate of 0.05 against the gradient's sign, after a decay of 0.05 · 0.01: 1 → 0.9495; −1 → −0.9495."""
    states = torch.ones(2, 3, 2)
    states[1] = -1
    moved = hooks(steps=1).states(first_step(), states)
    torch.testing.assert_close(moved[0, 1:], torch.full((2, 2), 0.9495))
    torch.testing.assert_close(moved[1, 1:], torch.full((2, 2), -0.9495))
    assert torch.equal(moved[:, 0], states[:, 0]) and torch.equal(states[0], torch.ones(3, 2)), "the first token stays, and so do the states at hand"


def test_it_stops_at_the_target_and_each_caption_for_itself():
    """The U-Net says 1, 0.3 and 0.05: the third is there already; the second needs 5 steps of about 0.05, the first 19."""
    states = torch.tensor([1.0, 0.3, 0.05]).view(3, 1, 1).expand(3, 3, 2).clone()
    asked = []
    moved = hooks(rms=0.1, steps=100).states(first_step(asked=asked), states)
    assert torch.equal(moved[2], states[2])
    said = moved[:, 1:].mean((1, 2))
    assert (said[:2] <= 0.1).all() and (said[:2] > 0.04).all()
    assert 15 < len(asked) < 25, "one for the empty caption, one a step, one to see that the target is met"
    alone = [hooks(rms=0.1, steps=100).states(first_step(), states[[row]]) for row in range(3)]
    assert torch.equal(torch.cat(alone), moved), "captions of a batch do not meet"


def test_it_makes_at_most_its_steps():
    asked = []
    hooks(rms=1e-9, steps=7).states(first_step(asked=asked), torch.ones(1, 3, 2))
    assert len(asked) == 8


def test_a_target_is_of_the_noise_also_for_v_prediction():
    """With ᾱ = 0.25 the noise moves half as far as v: 0.15 is at a target of 0.1, 0.3 is not."""
    first = first_step(alpha_cumprod=0.25, prediction_type="v_prediction")
    states = torch.tensor([0.15, 0.3]).view(2, 1, 1).expand(2, 3, 2).clone()
    moved = hooks(rms=0.1).states(first, states)
    assert torch.equal(moved[0], states[0]) and moved[1, 1:].mean() <= 0.2 + 1e-6


def test_at_pure_noise_the_caption_still_counts():
    """Zero terminal SNR: √ᾱ is Stable Diffusion's, 0.0683, so a target of 0.01 is 0.1465 in v."""
    assert DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod[-1].item() == pytest.approx(TERMINAL_ALPHA, rel=1e-3)
    first = first_step(alpha_cumprod=0.0, prediction_type="v_prediction")
    states = torch.tensor([0.14, 0.9]).view(2, 1, 1).expand(2, 3, 2).clone()
    moved = hooks(rms=0.01, steps=50).states(first, states)
    assert torch.equal(moved[0], states[0]) and 0.08 < moved[1, 1:].mean() <= 0.1466


def test_small_gradients_move_it_as_far():
    """The published loss is the norm: with a U-Net that says a ten-thousandth, steps must not drown in AdamW's epsilon."""
    moved = hooks(rms=1e-9, steps=1).states(first_step(scale=1e-4), torch.ones(1, 3, 2))
    torch.testing.assert_close(moved[0, 1:], torch.full((2, 2), 0.9495), atol=2e-4, rtol=0)
