"""LoRA's own: a published count, the formula W + BA, its random start, and what it cannot adapt."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from trainers.candidate import Candidate
from trainers.errors import BadSelection
from trainers.methods import METHODS
from trainers.methods.lora import factors
from trainers.units import REGIONS, walk

LORA = METHODS["lora"]
EVERYWHERE = ("self-attention", "cross-attention", "feed-forward", "resnet", "projection", "resampling", "time-embedding",
              "in-convolution", "out-convolution")


def candidate(kinds=("cross-attention",), rank=4, regions=REGIONS) -> Candidate:
    return Candidate("lora", regions, kinds, 1e-3, 1, rank)


def test_count_is_the_published_one_of_stable_diffusion():
    """diffusers' text-to-image LoRA of rank 4 on to_q, to_k, to_v, to_out.0 of SD v1.5 has 797,184 parameters (a file of 3.2 MB)."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    assert LORA.count(unet, walk(unet), candidate(("self-attention", "cross-attention"))) == 797_184


@pytest.mark.parametrize("layer, expected", [(torch.nn.Linear(10, 7), 3 * 10 + 3 * 7), (torch.nn.Conv2d(5, 6, 3), 3 * 5 * 9 + 3 * 6),
                                             (torch.nn.Conv2d(5, 6, 1), 3 * 5 + 3 * 6)])
def test_factors_by_hand(layer, expected):
    assert factors(layer, rank=3) == expected


def test_count_holds_for_every_kind_of_layer(unet, units):
    wanted = candidate(EVERYWHERE)
    declared = LORA.count(unet, units, wanted)
    subset = LORA.apply(unet, units, wanted)
    assert declared == subset.count == sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad)


def test_a_layer_computes_w_plus_ba(unet, units):
    """alpha = rank, so the update is B A itself, not scaled."""
    subset = LORA.apply(unet, units, candidate())
    name = "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    layer = unet.get_submodule(name)
    a, b = subset.parameters[f"{name}.lora_A.default.weight"], subset.parameters[f"{name}.lora_B.default.weight"]
    with torch.no_grad():
        b.normal_()
        x = torch.randn(3, 64)
        torch.testing.assert_close(layer(x), x @ (layer.base_layer.weight + b @ a).T)


def test_what_was_wrapped_is_put_back_when_there_is_no_memory_for_the_rest(unet, units, monkeypatch):
    from peft.tuners.lora.layer import Linear

    before, layers, wrap, wrapped = unet.state_dict(), dict(unet.named_modules()), Linear.__init__, []

    def scarce(self, *given, **named):
        if len(wrapped) == 3:
            raise torch.OutOfMemoryError("no memory")
        wrapped.append(self)
        wrap(self, *given, **named)

    monkeypatch.setattr(Linear, "__init__", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        LORA.apply(unet, units, candidate())
    assert len(wrapped) == 3 and dict(unet.named_modules()) == layers and list(unet.state_dict()) == list(before)


def test_only_the_layers_of_the_selection_are_adapted(unet, units):
    subset = LORA.apply(unet, units, candidate(regions=("up",)))
    assert subset.parameters and all(name.startswith("up_blocks.") and ".attn2." in name for name in subset.parameters)


def test_the_start_is_random_and_repeats_with_its_seed(unet, units):
    starts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        subset = LORA.apply(unet, units, candidate())
        starts.append(subset.tensors())
        subset.restore()
    name = next(name for name in starts[0] if "lora_A" in name)
    assert torch.equal(starts[0][name], starts[1][name]) and not torch.equal(starts[0][name], starts[2][name])


@pytest.mark.parametrize("rank", [None, 0, -1])
def test_a_rank_below_one_is_refused(unet, units, rank):
    with pytest.raises(BadSelection, match=f"rank {rank} of LoRA"):
        LORA.apply(unet, units, candidate(rank=rank))


@pytest.mark.parametrize("kinds", [("norm",), ("bias",)])
def test_kinds_without_matrices_are_refused(unet, units, kinds):
    with pytest.raises(BadSelection, match="no layer to adapt"):
        LORA.apply(unet, units, candidate(kinds))
