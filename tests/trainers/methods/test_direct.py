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
    assert method.count(unet, walk(unet), Candidate.of(name, REGIONS, method.kinds[0], 1e-3, 1)) == SD15[name]


@pytest.mark.parametrize("regions, kinds", [(("up",), ("bias",)), (("mid", "down"), ("norm", "bias")), (REGIONS, ("everything",))])
def test_the_subset_is_the_selection(unet, units, regions, kinds):
    subset = METHODS["bias"].apply(unet, units, Candidate.of("bias", regions, kinds, 1e-3, 1))
    own = dict(unet.named_parameters())
    assert tuple(subset.parameters) == units.select(regions, kinds)
    assert all(parameter is own[name] and parameter.requires_grad for name, parameter in subset.parameters.items())


def output(unet) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    latents, states = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 64, generator=generator)
    return unet(latents, torch.tensor([10, 900]), states).sample


@pytest.mark.parametrize("kinds", [("bias",), ("norm",), ("cross-attention",), ("in-convolution",)])
def test_in_low_precision_what_is_trained_is_float32_and_comes_back_as_the_very_tensors(unet, units, kinds):
    unet.to(torch.bfloat16)
    own = dict(unet.named_parameters())
    before = {name: (parameter.data_ptr(), parameter.detach().clone()) for name, parameter in own.items()}
    candidate = Candidate.of("full", ("down",), kinds, 1e-3, 1)
    with torch.autocast("cpu", torch.bfloat16):
        base = output(unet)
        subset = METHODS["full"].apply(unet, units, candidate)
        start = output(unet)
    start.float().square().mean().backward()
    assert torch.equal(start, base)
    for name, parameter in own.items():
        chosen = name in subset.parameters
        assert parameter.requires_grad == (parameter.grad is not None) == chosen
        assert not chosen or parameter.dtype == parameter.grad.dtype == torch.float32
    with torch.no_grad():
        for parameter in subset.parameters.values():
            parameter.add_(1e-4)  # less than bfloat16 could tell apart near 1
    assert all((tensor - before[name][1].float()).abs().min() > 5e-5 for name, tensor in subset.merged().items())
    subset.restore()
    for name, parameter in own.items():
        place, values = before[name]
        assert (parameter.data_ptr(), parameter.dtype, parameter.requires_grad, parameter.grad) == (place, torch.bfloat16, False, None), name
        assert torch.equal(parameter, values)


def test_a_frozen_shift_beside_a_trained_scale_is_float32_too_but_nothing_else(unet, units):
    """torch's norms take both in one dtype only."""
    unet.to(torch.bfloat16)
    subset = METHODS["bias"].apply(unet, units, Candidate.of("bias", ("mid",), ("bias",), 1e-3, 1))
    chosen = set(subset.parameters)
    norms = {f"{name}.weight" for name, module in unet.named_modules() if isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm)) and name.startswith("mid")}
    assert norms and {name for name, parameter in unet.named_parameters() if parameter.dtype == torch.float32} == chosen | norms
    assert {name for name, parameter in unet.named_parameters() if parameter.requires_grad} == chosen


def test_in_full_precision_too_the_very_tensors_come_back(unet, units):
    before = {name: parameter.data_ptr() for name, parameter in unet.named_parameters()}
    subset = METHODS["full"].apply(unet, units, Candidate.of("full", REGIONS, ("everything",), 1e-3, 1))
    assert all(parameter.data_ptr() != before[name] for name, parameter in subset.parameters.items())
    subset.restore()
    assert before == {name: parameter.data_ptr() for name, parameter in unet.named_parameters()}


def test_values_are_put_back_when_there_is_no_memory_for_the_rest(unet, units, monkeypatch):
    before, copied, convert = {name: parameter.data_ptr() for name, parameter in unet.named_parameters()}, [], torch.Tensor.to

    def scarce(tensor, *given, **named):
        if len(copied) == 3:
            raise torch.OutOfMemoryError("no memory")
        copied.append(tensor)
        return convert(tensor, *given, **named)

    monkeypatch.setattr(torch.Tensor, "to", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        METHODS["full"].apply(unet, units, Candidate.of("full", REGIONS, ("everything",), 1e-3, 1))
    assert len(copied) == 3 and before == {name: parameter.data_ptr() for name, parameter in unet.named_parameters()}
    assert not any(parameter.requires_grad for parameter in unet.parameters())
