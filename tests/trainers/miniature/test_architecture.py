"""The miniature's shapes are those that its card and the design promise, and its parts fit together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from trainers.miniature import architecture


def elements(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_sizes_are_those_of_the_model_card():
    card = (Path(architecture.__file__).parent / "README.md").read_text(encoding="utf-8")
    told = {name: float(size) for name, size in re.findall(r"^\| ([\w -]+) \|.*\| ([\d.]+) M \|$", card, re.MULTILINE)}
    clip = architecture.clip(vocabulary=1_133, end=1_132, start=1_131)
    found = {"VAE": architecture.vae(), "U-Net": architecture.unet(), "CLIP": clip, "text encoder": clip.text_model}
    assert told == {name: round(elements(module) / 1e6, 2) for name, module in found.items()}


def test_block_types_are_stable_diffusion_s():
    """Its U-Net has no kind of block that v1.5 has not, and all the kinds that v1.5 has."""

    def blocks(unet):
        return {type(module).__name__ for module in unet.modules() if type(module).__module__.startswith("diffusers")}

    with torch.device("meta"):
        full = UNet2DConditionModel(cross_attention_dim=768)
    assert blocks(architecture.unet()) == blocks(full)


@torch.no_grad()
def test_a_picture_becomes_latents_of_an_eighth_and_comes_back():
    vae = architecture.vae().eval()
    latents = vae.encode(torch.zeros(2, 3, 64, 64)).latent_dist
    assert latents.mean.shape == latents.std.shape == (2, 4, 8, 8)
    assert vae.decode(latents.mean).sample.shape == (2, 3, 64, 64)


@torch.no_grad()
def test_the_clip_s_text_half_gives_what_the_network_attends_to():
    clip = architecture.clip(vocabulary=100, end=99, start=98).eval()
    tokens = torch.tensor([[98, 5, 6] + [99] * 74])
    states = clip.text_model(tokens).last_hidden_state
    assert states.shape == (1, 77, 64)
    unet = architecture.unet().eval()
    assert unet(torch.zeros(1, 4, 8, 8), torch.tensor([1]), states).sample.shape == (1, 4, 8, 8)
    both = clip(input_ids=tokens, pixel_values=torch.zeros(1, 3, 64, 64))
    assert both.text_embeds.shape == both.image_embeds.shape == (1, 64)


def test_the_schedule_ends_in_pure_noise():
    scheduler = architecture.scheduler()
    scheduler.set_timesteps(15)
    assert scheduler.alphas_cumprod[-1] == 0 and int(scheduler.timesteps[0]) == 999
    assert scheduler.config.prediction_type == "v_prediction"
    # The rest of the schedule is Stable Diffusion's, stretched: it begins where that begins.
    assert scheduler.alphas_cumprod[0].item() == pytest.approx(1 - 0.00085, abs=1e-6)
