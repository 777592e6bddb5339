"""Every tensor in exactly one unit, on four architectures, and the parameter counts of Stable Diffusion v1.5."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from trainers.errors import BadModel, BadSelection
from trainers.methods import METHODS
from trainers.miniature import architecture
from trainers.units import KINDS, REGIONS, SETS, Unit, region_of, walk

SD15 = {
    "act_fn": "silu", "attention_head_dim": 8, "block_out_channels": (320, 640, 1280, 1280), "center_input_sample": False,
    "cross_attention_dim": 768, "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), "downsample_padding": 1,
    "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-5,
    "norm_num_groups": 32, "out_channels": 4, "sample_size": 64, "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
SD21 = {**SD15, "attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024, "sample_size": 96, "use_linear_projection": True}
SDXL = {
    **SD15, "block_out_channels": (320, 640, 1280), "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": (5, 10, 20), "sample_size": 128,
    "cross_attention_dim": 2048, "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}
# The papers' counts on Stable Diffusion v1.5 (arXiv 2305.08252, table of parameters; arithmetic from the shapes).
SD15_COUNTS = {"attention": 93_536_640, "cross-attention": 43_962_560, "resnet": 537_670_400, "feed-forward": 148_797_120,
               "bias": 343_684, "norm": 200_320, "everything": 859_520_964}


def on_meta(config: dict) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(config)


MODELS = {"sd15": lambda: on_meta(SD15), "sd21": lambda: on_meta(SD21), "sdxl": lambda: on_meta(SDXL), "miniature": architecture.unet}
TENSORS = {"sd15": (686, 859_520_964), "sd21": (686, 865_910_724), "sdxl": (1680, 2_567_463_684), "miniature": (208, 803_204)}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return request.param, MODELS[request.param]()


def test_each_tensor_is_in_exactly_one_unit(model):
    name, unet = model
    units = walk(unet)
    covered = [tensor for unit in units.units for tensor in unit.tensors]
    assert sorted(covered) == sorted(dict(unet.named_parameters()))
    assert (len(covered), units.total) == TENSORS[name]
    assert sum(unit.parameters for unit in units.units) == units.total
    assert len({unit.name for unit in units.units}) == len(units.units)
    for unit in units.units:
        assert unit.kind in KINDS and unit.name == f"{unit.site}/{unit.kind}"
        assert all(tensor.startswith(unit.site + ".") for tensor in unit.tensors)


def test_regions_and_leaf_kinds_divide_the_network(model):
    """The leaf kinds are disjoint but for "resnet", whose name means the papers' set, with the norms inside."""
    units = walk(model[1])
    by_region = [set(units.select((region,), ("everything",))) for region in REGIONS]
    assert sum(map(len, by_region)) == len(set.union(*by_region)) == len(units.sizes)
    by_kind = [set(units.select(REGIONS, (kind,))) for kind in KINDS]
    assert set.union(*by_kind) == set(units.sizes)
    resnet = set(units.select(REGIONS, ("resnet",)))
    overlap = sum(map(len, by_kind)) - len(units.sizes)
    assert overlap == len(resnet & set(units.select(REGIONS, ("norm",)))) > 0


def test_counts_of_stable_diffusion():
    units = walk(on_meta(SD15))
    assert len(units.sizes) == 686
    assert {kind: units.count(units.select(REGIONS, (kind,))) for kind in SD15_COUNTS} == SD15_COUNTS


def test_counts_agree_with_a_walk_over_module_types():
    """Norms and biases by what modules are, not by what they are called."""
    unet = architecture.unet()
    units = walk(unet)
    norms = sum(p.numel() for m in unet.modules() if isinstance(m, (torch.nn.GroupNorm, torch.nn.LayerNorm)) for p in m.parameters())
    biases = sum(m.bias.numel() for m in unet.modules() if getattr(m, "bias", None) is not None)
    assert (units.count(units.select(REGIONS, ("norm",))), units.count(units.select(REGIONS, ("bias",)))) == (norms, biases)


@pytest.mark.parametrize("regions, site", [(("up",), "up_blocks."), (("mid",), "mid_block."), (("up_blocks.1",), "up_blocks.1."),
                                           (("down_blocks.0.attentions.0",), "down_blocks.0.attentions.0.")])
def test_a_selection_stays_in_its_region(regions, site):
    units = walk(on_meta(SD15))
    chosen = units.select(regions, ("cross-attention",))
    assert chosen and all(tensor.startswith(site) and ".attn2." in tensor for tensor in chosen)


def test_a_path_is_not_a_prefix_of_letters():
    """up_blocks.1 must not take up_blocks.10 along; here attentions.1 and attentions.10 stand for it."""
    units = walk(on_meta({**SD15, "layers_per_block": 11}))
    chosen = units.select(("down_blocks.0.attentions.1",), ("cross-attention",))
    assert {tensor.split(".")[3] for tensor in chosen} == {"1"}


def test_a_selection_is_in_the_order_of_the_network_whatever_was_named_first():
    units = walk(architecture.unet())
    there, back = units.select(("down", "up"), ("bias", "norm")), units.select(("up", "down"), ("norm", "bias"))
    assert there == back == tuple(tensor for tensor in units.sizes if tensor in set(there))
    assert set(there) == set(units.select(("up", "down"), ("bias",))) | set(units.select(("up", "down"), ("norm",)))


@pytest.mark.parametrize("site, region", [("conv_in", "down"), ("time_embedding", "down"), ("add_embedding", "down"), ("conv_out", "up"),
                                          ("conv_norm_out", "up"), ("mid_block.resnets.1", "mid"), ("up_blocks.2.upsamplers.0", "up")])
def test_what_comes_before_is_down_and_what_comes_after_is_up(site, region):
    assert region_of(site) == region


@pytest.mark.parametrize("regions, kinds, words", [
    (("upp",), ("bias",), ["region 'upp'", "up"]),
    (("up_blocks.9",), ("bias",), ["region 'up_blocks.9'", "up_blocks."]),
    (("up",), ("cross-atention",), ["kind 'cross-atention'", "cross-attention"]),
    (("mid",), ("resampling",), ["resampling", "mid"]),
    ((), ("bias",), ["no parameters"]),
    (("up",), (), ["no parameters"]),
])
def test_a_selection_that_is_wrong_or_empty_is_refused_in_one_line(regions, kinds, words):
    with pytest.raises(BadSelection) as caught:
        walk(architecture.unet()).select(regions, kinds)
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words)


def unconditional():
    """Its attention is of another make: no transformer blocks."""
    return UNet2DModel(block_out_channels=(32, 64), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                       up_block_types=("AttnUpBlock2D", "UpBlock2D"), norm_num_groups=8)


def with_strangers():
    unet = architecture.unet()
    unet.conv_input = torch.nn.Conv2d(4, 4, 1)  # begins like conv_in and is not it
    return unet


@pytest.mark.parametrize("make, stranger", [(unconditional, "attentions.0.to_q"), (with_strangers, "conv_input.weight"),
                                            (lambda: torch.nn.Sequential(torch.nn.Linear(2, 2)), "0.weight")])
def test_an_unknown_architecture_is_refused_by_the_tensor_that_nothing_covers(make, stranger):
    with pytest.raises(BadModel) as caught:
        walk(make())
    assert stranger in str(caught.value) and "\n" not in str(caught.value)


def test_unit_round_trips_through_json():
    import json

    unit = walk(architecture.unet()).units[3]
    assert Unit.from_json(json.loads(json.dumps(unit.to_json()))) == unit


def test_the_methods_name_kinds_that_exist():
    assert {kind for method in METHODS.values() for choice in method.kinds for kind in choice} <= {*KINDS, *SETS}
