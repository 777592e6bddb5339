"""Sampling: the same noise gives the same pictures, guidance is what its formula says, and a perfect model gives its picture."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, PNDMScheduler

from trainers.errors import BadModel, NotFinite
from trainers.miniature import architecture
from trainers.mitigations import MITIGATIONS
from trainers.mitigations.hooks import GenerationHooks, Guard
from trainers.mitigations.noise_norm import rms_noise_difference
from trainers.sampling import decode, initial_noise, sample

SHAPE = (4, 8, 8)
ZERO_SNR = dict(architecture.scheduler().config)
SD15 = dict(PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1).config)
CONFIGS = {"v-prediction, zero terminal SNR": ZERO_SNR, "epsilon, as Stable Diffusion v1.5": SD15}


@pytest.fixture
def states(examples):
    return examples.states


def run(unet, states, caption=(0, 1, 2, 3, 0), noise=None, config=ZERO_SNR, **given):
    caption = torch.tensor(caption)
    noise = initial_noise(len(caption), SHAPE, seed=7) if noise is None else noise
    return sample(unet, config, states, caption, noise, **{"steps": 4, "guidance_scale": 2.0, "batch_size": 8, **given})


def test_initial_noise_is_standard_normal_and_its_seeds():
    noise = initial_noise(500, SHAPE, seed=1)
    assert noise.shape == (500, *SHAPE) and noise.dtype == torch.float32
    assert torch.equal(noise, initial_noise(500, SHAPE, seed=1)) and not torch.equal(noise, initial_noise(500, SHAPE, seed=2))
    assert noise.mean().item() == pytest.approx(0, abs=0.01) and noise.std().item() == pytest.approx(1, abs=0.01)


def test_the_same_noise_gives_the_same_pictures_whatever_the_global_generator_did(unet, states):
    torch.manual_seed(1)
    first = run(unet, states)
    torch.manual_seed(2)
    assert torch.equal(run(unet, states), first)
    assert not torch.allclose(run(unet, states, noise=initial_noise(5, SHAPE, seed=8)), first, atol=1e-2)


def test_the_batch_size_does_not_matter(unet, states):
    whole = run(unet, states)
    for size in (1, 2, 3):
        torch.testing.assert_close(run(unet, states, batch_size=size), whole, atol=1e-4, rtol=1e-4)


def test_rows_go_with_their_captions_and_noise(unet, states):
    order = [3, 0, 4, 1, 2]
    noise, caption = initial_noise(5, SHAPE, seed=7), torch.tensor([0, 1, 2, 3, 0])
    mixed = run(unet, states, caption=caption[order].tolist(), noise=noise[order])
    torch.testing.assert_close(mixed, run(unet, states)[order], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(run(unet, states, caption=(1, 2, 3, 0, 1)), run(unet, states), atol=1e-3)


@torch.no_grad()
def two_passes(unet, states, caption, noise, config, steps, scale):
    """Guidance written out: one pass with the captions, one with the empty one."""
    solver = DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++", solver_order=2)
    solver.set_timesteps(steps)
    latents, empty = noise * solver.init_noise_sigma, states[-1:].expand(len(noise), -1, -1)
    for timestep in solver.timesteps:
        plain, conditional = unet(latents, timestep, empty).sample, unet(latents, timestep, states[caption]).sample
        latents = solver.step((1 - scale) * plain + scale * conditional, timestep, latents).prev_sample
    return latents


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_guidance_in_one_batch_is_two_separate_passes(unet, states, config, scale):
    caption, noise = torch.tensor([0, 1, 2]), initial_noise(3, SHAPE, seed=7)
    expected = two_passes(unet, states, caption, noise, config, 4, scale)
    torch.testing.assert_close(run(unet, states, caption.tolist(), noise, config, guidance_scale=scale), expected, atol=1e-4, rtol=1e-3)


def test_guidance_of_zero_hears_no_caption_and_of_one_only_the_caption(unet, states):
    noise = initial_noise(2, SHAPE, seed=7)
    silent = run(unet, states, (0, 1), noise, guidance_scale=0.0)
    torch.testing.assert_close(run(unet, states, (2, 3), noise, guidance_scale=0.0), silent, atol=1e-4, rtol=1e-4)
    spoilt = states.clone()
    spoilt[-1] += 1.0
    torch.testing.assert_close(run(unet, spoilt, (0, 1), noise, guidance_scale=1.0), run(unet, states, (0, 1), noise, guidance_scale=1.0), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(run(unet, spoilt, (0, 1), noise, guidance_scale=0.0), silent, atol=1e-3)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("steps", [2, 15, 25])
def test_a_model_that_knows_the_picture_gives_it(config, steps):
    """The network's answer is that of a data set of one picture; the solver must end at it, from any noise."""
    schedule = DDPMScheduler.from_config(config)
    picture = torch.linspace(-2, 2, 4 * 8 * 8).view(1, *SHAPE)

    def unet(noisy, timestep, states):
        signal, spread = schedule.alphas_cumprod[timestep].sqrt(), (1 - schedule.alphas_cumprod[timestep]).sqrt()
        noise = (noisy - signal * picture) / spread
        return SimpleNamespace(sample=signal * noise - spread * picture if config["prediction_type"] == "v_prediction" else noise)

    found = run(unet, torch.zeros(2, 5, 64), (0, 0, 0), config=config, steps=steps)
    torch.testing.assert_close(found, picture.expand(3, -1, -1, -1), atol=0.05 if config is SD15 else 1e-3, rtol=0)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_latents_are_finite_and_contiguous(unet, states, config):
    found = run(unet, states, config=config, steps=15)
    assert found.shape == (5, *SHAPE) and found.dtype == torch.float32
    assert found.isfinite().all() and found.is_contiguous()


def test_the_first_step_of_a_zero_snr_model_is_at_pure_noise(states):
    """Trailing timesteps: with any other spacing the model would never see the noise that it was trained to begin from."""
    seen = []

    def unet(noisy, timestep, states):
        seen.append(int(timestep))
        return SimpleNamespace(sample=torch.zeros_like(noisy))

    run(unet, states, steps=15)
    assert seen[0] == 999 and seen == sorted(seen, reverse=True) and len(seen) == 15


class Painter:
    """In the place of a VAE: shows the latents' first value in each channel as it is, so that grey levels are known."""

    config = SimpleNamespace(scaling_factor=0.5)

    def decode(self, latents):
        return SimpleNamespace(sample=latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3))


@pytest.mark.parametrize("channels, grey", [((-1, -1, -1), 0), ((1, 1, 1), 255), ((0, 0, 0), 128), ((1, 0, -1), 128), ((3, 3, 3), 255),
                                            ((-5, -5, -5), 0), ((0.2, 0.2, 0.2), 153)])
def test_grey_levels_by_hand(channels, grey):
    latents = torch.zeros(1, 4, 8, 8)
    latents[0, :3] = torch.tensor(channels, dtype=torch.float32).view(3, 1, 1) * Painter.config.scaling_factor
    assert set(np.unique(decode(Painter(), latents, 4))) == {grey}


def test_decoded_pictures_have_their_shape_and_type_in_any_batch():
    torch.manual_seed(0)
    vae, latents = architecture.vae().eval(), torch.randn(5, 4, 8, 8)
    pictures = decode(vae, latents, batch_size=8)
    assert pictures.shape == (5, 64, 64) and pictures.dtype == np.uint8 and pictures.std() > 0
    for size in (1, 2):
        assert np.abs(decode(vae, latents, batch_size=size).astype(int) - pictures).max() <= 1


def test_decoding_undoes_encoding_of_grey_levels():
    """What `encode_pictures` scales down, `decode` scales up: through a VAE that changes nothing the pictures come back."""
    from trainers.base_model import encode_pictures

    class Mirror(torch.nn.Module):
        config = SimpleNamespace(scaling_factor=0.18)

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def encode(self, pictures):
            return SimpleNamespace(latent_dist=SimpleNamespace(mean=pictures, std=torch.zeros_like(pictures)))

        def decode(self, latents):
            return SimpleNamespace(sample=latents)

    greys = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    mean, _ = encode_pictures(Mirror(), greys)
    np.testing.assert_array_equal(decode(Mirror(), torch.from_numpy(mean), 4), greys)


# Guarded by mitigations ----------------------------------------------------------------------------------------------


def guard_of(*hooks, encode=None):
    return Guard(hooks, ["a", "b", "c", "d", ""], encode)


def test_a_guard_that_changes_nothing_gives_the_same_bits(unet, states):
    assert torch.equal(run(unet, states, guard=guard_of(GenerationHooks())), run(unet, states))
    assert torch.equal(run(unet, states, guard=guard_of()), run(unet, states))


class Swapped(GenerationHooks):
    """Says the next caption instead, and keeps what it was told."""

    def __init__(self):
        self.captions, self.pictures, self.firsts = [], [], []

    def texts(self, captions, pictures):
        self.captions += captions
        self.pictures += pictures.tolist()
        return [{"a": "b", "b": "c", "c": "d", "d": "a"}[caption] for caption in captions]

    def states(self, first, states):
        self.firsts.append(first)
        return states


def test_other_captions_give_the_pictures_of_those_in_any_batch(unet, states):
    expected = run(unet, states, caption=(1, 2, 3, 0, 1))
    encode = lambda texts: states[["abcd".index(text) for text in texts]]
    for size in (8, 2):
        hook = Swapped()
        torch.testing.assert_close(run(unet, states, guard=guard_of(hook, encode=encode), batch_size=size), expected, atol=1e-4, rtol=1e-4)
        assert hook.captions == ["a", "b", "c", "d", "a"] and hook.pictures == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("config, alpha", [(ZERO_SNR, 0.0), (SD15, 0.0047)], ids=CONFIGS)
def test_a_guard_is_shown_the_first_step(unet, states, config, alpha):
    """By hand: what the U-Net says of the initial noise at the solver's first timestep."""
    noise, hook = initial_noise(2, SHAPE, seed=7), Swapped()
    run(unet, states, (0, 1), noise, config, guard=guard_of(hook, encode=lambda texts: states[1:3]))
    (first,) = hook.firsts
    solver = DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++", solver_order=2)
    solver.set_timesteps(4)
    with torch.no_grad():
        torch.testing.assert_close(first.predict(states[1:3]), unet(noise, solver.timesteps[0], states[1:3]).sample)
    assert torch.equal(first.empty, states[-1:])
    assert first.prediction_type == config["prediction_type"] and first.alpha_cumprod == pytest.approx(alpha, abs=1e-4 if config is SD15 else 1e-6)


class Downhill(GenerationHooks):
    """Goes against the gradient of the noise norm, as mitigations do."""

    def states(self, first, states):
        moved = states.clone().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad((first.predict(moved) - first.predict(first.empty.expand_as(moved))).square().sum(), [moved])
        self.gradient = gradient
        return (moved - gradient).detach()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_guard_may_go_through_the_network_backwards(unet, states, precision):
    hook = Downhill()
    found = run(unet, states, guard=guard_of(hook), precision=precision)
    assert found.isfinite().all() and hook.gradient.abs().sum() > 0
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_prompt_optimization_brings_captions_to_its_target(unet, states):
    """On the random network the noise norm of every caption ends at or below a target half as large as it was, if steps suffice."""
    norms = []

    class Measure(GenerationHooks):
        def states(self, first, states):
            plain = first.predict(first.empty.expand_as(states))
            norms.append(rms_noise_difference(first.predict(states), plain, torch.tensor(first.alpha_cumprod), first.prediction_type))
            return states

    run(unet, states, config=SD15, guard=guard_of(Measure()))
    target = float(norms[0].min()) / 2
    optimization = MITIGATIONS["prompt-optimization"].hooks({"rms": target, "steps": 100}, learned=None)
    found = run(unet, states, config=SD15, guard=guard_of(optimization, Measure()))
    assert (norms[1] <= target).all() and (norms[0] > target).all()
    torch.testing.assert_close(run(unet, states, config=SD15, guard=guard_of(optimization), batch_size=2), found, atol=1e-2, rtol=1e-2)


# Not finite ----------------------------------------------------------------------------------------------------------


def test_latents_that_are_not_finite_are_refused(unet, states):
    with torch.no_grad():
        unet.conv_out.bias.fill_(float("inf"))
    with pytest.raises(NotFinite, match="not finite"):
        run(unet, states)


def test_a_vae_that_decodes_to_nan_is_refused():
    vae = architecture.vae()
    with torch.no_grad():
        vae.decoder.conv_in.bias.fill_(float("nan"))
    with pytest.raises(BadModel, match="the VAE decodes latents to pixels that are not finite"):
        decode(vae, torch.zeros(3, *SHAPE), 2)
