"""Denoising losses: the same noise for every model and batch size, stratified timesteps, and values known beforehand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from trainers.denoising import DRAWS, losses, timesteps_of
from trainers.fit import Examples


class Recorder:
    """In the place of a U-Net: keeps what it is given, by row, and answers with zeros."""

    def __init__(self):
        self.noisy, self.timesteps = [], []

    def __call__(self, noisy, timesteps, states):
        self.noisy.append(noisy.clone())
        self.timesteps.append(timesteps.clone())
        return SimpleNamespace(sample=torch.zeros_like(noisy))


def seen_by(examples, scheduler, **given) -> tuple[torch.Tensor, torch.Tensor]:
    model = Recorder()
    losses(model, scheduler, examples, **given)
    return torch.cat(model.noisy), torch.cat(model.timesteps)


def test_each_picture_has_one_timestep_in_each_stratum():
    drawn = timesteps_of(2_000, 8, 0, 1000, torch.Generator().manual_seed(0))
    assert drawn.shape == (2_000, 8)
    for stratum in range(8):
        column = drawn[:, stratum]
        assert 125 * stratum <= column.min() <= 125 * stratum + 2 and 125 * stratum + 122 <= column.max() <= 125 * (stratum + 1) - 1


@pytest.mark.parametrize("span, low, high", [((0.0, 0.25), 0, 249), ((0.5, 1.0), 500, 999), ((0.0, 1.0), 0, 999)])
def test_a_span_bounds_the_timesteps(examples, scheduler, span, low, high):
    _, timesteps = seen_by(examples, scheduler, seed=0, draws=50, span=span)
    assert low <= timesteps.min() <= low + 30 and high - 30 <= timesteps.max() <= high


def test_noise_and_timesteps_are_common_to_all_models_and_batch_sizes(examples, scheduler):
    noisy, timesteps = seen_by(examples, scheduler, seed=3)
    assert noisy.shape == (DRAWS * len(examples), 4, 8, 8)
    other = Examples(examples.mean, examples.deviation, examples.states.flip(0), examples.caption.flip(0))  # other captions too
    for given in ({"batch_size": 1}, {"batch_size": 3}, {"batch_size": 64}):
        again = seen_by(other, scheduler, seed=3, **given)
        assert torch.equal(again[0], noisy) and torch.equal(again[1], timesteps)
    assert not torch.equal(seen_by(examples, scheduler, seed=4)[0], noisy)


def test_draws_of_one_picture_and_pictures_of_one_draw_have_noise_of_their_own(scheduler):
    zeros = Examples(*(torch.zeros(3, 4, 8, 8),) * 2, torch.zeros(1, 5, 64), torch.zeros(3, dtype=torch.int64))
    noisy, _ = seen_by(zeros, scheduler, seed=0, span=(0.9, 1.0))
    assert len({row.numpy().tobytes() for row in noisy}) == len(noisy)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_perfect_predictor_has_loss_zero_and_each_picture_its_own_error(prediction_type):
    """The predictor knows the clean latents; row k is wrong by k, so its loss is k²."""
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    clean = torch.arange(4.0).view(-1, 1, 1, 1).expand(4, 4, 8, 8)
    examples = Examples(clean, torch.ones_like(clean), torch.arange(4.0).view(-1, 1, 1), torch.arange(4))

    def unet(noisy, timesteps, states):
        own = states[:, :1, :1, None]
        signal, spread = (values.sqrt().view(-1, 1, 1, 1) for values in (scheduler.alphas_cumprod[timesteps], 1 - scheduler.alphas_cumprod[timesteps]))
        noise = (noisy - signal * own) / spread
        return SimpleNamespace(sample=(signal * noise - spread * own if prediction_type == "v_prediction" else noise) + own)

    found = losses(unet, scheduler, examples, seed=0, batch_size=3)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, np.repeat([[0], [1], [4], [9]], DRAWS, axis=1), atol=1e-3)


def test_a_real_network_does_not_depend_on_the_batch_size(unet, scheduler, examples):
    whole = losses(unet, scheduler, examples, seed=0, draws=2)
    np.testing.assert_allclose(losses(unet, scheduler, examples, seed=0, draws=2, batch_size=3), whole, rtol=1e-4)
    assert len(set(whole.ravel())) == 2 * len(examples)


def test_the_loss_is_the_squared_error_of_each_draw(unet, scheduler, examples):
    """Computed again, draw by draw, from what a recorder saw."""
    noisy, timesteps = seen_by(examples, scheduler, seed=0, draws=2)
    signal, spread = (values.sqrt().view(-1, 1, 1, 1) for values in (scheduler.alphas_cumprod[timesteps], 1 - scheduler.alphas_cumprod[timesteps]))
    clean, states = examples.mean.repeat(2, 1, 1, 1), examples.states[examples.caption].repeat(2, 1, 1)
    usable = timesteps < 990  # at the very end of this schedule nothing of the picture is left to compute noise from
    velocity = signal * (noisy - signal * clean) / spread - spread * clean
    with torch.no_grad():
        error = (unet(noisy, timesteps, states).sample - velocity).square().flatten(1).mean(1)
    usable = usable.view(2, -1).T
    np.testing.assert_allclose(losses(unet, scheduler, examples, seed=0, draws=2)[usable], error.view(2, -1).T[usable].numpy(), rtol=1e-3)


def test_measuring_leaves_no_gradient_and_no_random_state_behind(unet, scheduler, examples):
    for parameter in unet.parameters():
        parameter.requires_grad_(True)
    before = torch.get_rng_state()
    losses(unet, scheduler, examples, seed=0, draws=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in unet.parameters())
