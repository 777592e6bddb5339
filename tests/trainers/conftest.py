"""Models with the miniature's shapes and random weights, and a few random examples to train them on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainers.captions import CaptionEncoder
from trainers.fit import Examples
from trainers.miniature import architecture, vocabulary
from trainers.miniature.pretrain import save_text_encoder
from trainers.units import walk

TOKENS = 5  # fewer than a text encoder's 77, for speed: the U-Net takes any number


@pytest.fixture
def unet():
    """The miniature's U-Net with the same random weights in every test, frozen."""
    torch.manual_seed(0)
    return architecture.unet().eval().requires_grad_(False)


@pytest.fixture
def units(unet):
    return walk(unet)


@pytest.fixture
def scheduler():
    """The miniature's schedule, v-prediction, as one that adds noise."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(architecture.scheduler().config)


@pytest.fixture
def examples() -> Examples:
    """Ten pictures with four captions."""
    generator = torch.Generator().manual_seed(1)
    mean, deviation = torch.randn(10, 4, 8, 8, generator=generator), 0.1 * torch.rand(10, 4, 8, 8, generator=generator)
    states = torch.randn(5, TOKENS, architecture.TEXT_WIDTH, generator=generator)
    return Examples(mean, deviation, states, torch.arange(10) % 4)


@pytest.fixture(scope="session")
def random_base(tmp_path_factory) -> Path:
    """A Stable Diffusion folder with the miniature's shapes and random weights; not to be written to."""
    folder = tmp_path_factory.mktemp("base")
    size = vocabulary.write(folder / "tokenizer", ["small nodule in the left lung", "no acute cardiopulmonary process"], merges=60)
    torch.manual_seed(0)
    save_text_encoder(architecture.clip(size, size - 1, size - 2), folder / "text_encoder")
    architecture.vae().half().save_pretrained(folder / "vae")
    architecture.unet().half().save_pretrained(folder / "unet")
    architecture.scheduler().save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="session")
def loaded(random_base) -> CaptionEncoder:
    """One that has read its text encoder."""
    made = CaptionEncoder(random_base)
    made.encode([""])
    return made
