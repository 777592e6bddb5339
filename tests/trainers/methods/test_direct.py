"""The selective methods: exactly the tensors of the selection, under their own names."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from trainers.candidate import Candidate
from trainers.methods import METHODS
from trainers.units import REGIONS, walk

# By the first choice of kinds, on Stable Diffusion v1.5.
SD15 = {"full": 859_520_964, "attention": 93_536_640, "norm": 200_320, "bias": 343_684}


@pytest.mark.parametrize("name", SD15)
def test_counts_of_the_first_choice_on_stable_diffusion(name):
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    method = METHODS[name]
    assert method.count(unet, walk(unet), Candidate(name, REGIONS, method.kinds[0], 1e-3, 1)) == SD15[name]


@pytest.mark.parametrize("regions, kinds", [(("up",), ("bias",)), (("mid", "down"), ("norm", "bias")), (REGIONS, ("everything",))])
def test_the_subset_is_the_selection(unet, units, regions, kinds):
    subset = METHODS["bias"].apply(unet, units, Candidate("bias", regions, kinds, 1e-3, 1))
    own = dict(unet.named_parameters())
    assert tuple(subset.parameters) == units.select(regions, kinds)
    assert all(parameter is own[name] and parameter.requires_grad for name, parameter in subset.parameters.items())
