"""Every tensor in exactly one unit, on four architectures, and the parameter counts of Stable Diffusion v1.5."""

from __future__ import annotations

import re

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from sdxl import SDXL

from trainers.candidate import Candidate, Part
from trainers.errors import BadModel, BadSelection
from trainers.methods import METHODS
from trainers.miniature import architecture
from trainers.model_files import LAYOUTS, unet_config
from trainers.units import KINDS, REGIONS, Unit, check_kinds, region_of, walk

SD15, SD21 = ({key: value for key, value in unet_config(LAYOUTS / name).items() if key != "_class_name"} for name in ("sd15", "sd21"))
SD15_RESOLUTIONS = {"resolution/1": 29_359_044, "resolution/2": 108_231_680, "resolution/4": 398_323_200, "resolution/8": 321_556_480}
# The papers' counts on Stable Diffusion v1.5 (arXiv 2305.08252, table of parameters; arithmetic from the shapes).
SD15_COUNTS = {"attention": 93_536_640, "cross-attention": 43_962_560, "resnet": 537_670_400, "feed-forward": 148_797_120,
               "bias": 343_684, "norm": 200_320, "everything": 859_520_964,
               "transformer": 267_239_360,  # the reference code's attention tuning: what its names call "attentions"
               # Worked out from widths: five blocks of 320, five of 640, six of 1280; keys and values of captions are 768 wide.
               "self-attention-q": (SQUARES := 5 * 320**2 + 5 * 640**2 + 6 * 1280**2), "self-attention-v": SQUARES,
               "cross-attention-k": 768 * (WIDTHS := 5 * 320 + 5 * 640 + 6 * 1280), "cross-attention-out": SQUARES + WIDTHS,
               "attention-q": 2 * SQUARES, "attention-k": SQUARES + 768 * WIDTHS}


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
    assert units.count(units.select(REGIONS, ("bias", "norm"))) == 443_844
    assert units.count(set(units.select(REGIONS, ("transformer",))) - set(units.select(REGIONS, ("attention",)))) == 173_702_720
    assert {region: units.count(units.select((region,), ("everything",))) for region in SD15_RESOLUTIONS} == SD15_RESOLUTIONS


def test_query_key_value_and_output_divide_attention(model):
    """Self and cross apart, and both together."""
    units = walk(model[1])
    for kind in ("self-attention", "cross-attention", "attention"):
        parts = [set(units.select(REGIONS, (f"{kind}-{letter}",))) for letter in ("q", "k", "v", "out")]
        assert set.union(*parts) == set(units.select(REGIONS, (kind,))) and sum(map(len, parts)) == len(set.union(*parts))
    blocks, transformer = (set(units.select(REGIONS, (kind,))) for kind in ("transformer-block", "transformer"))
    assert set(units.select(REGIONS, ("attention", "feed-forward"))) < blocks < transformer
    assert transformer - blocks == {tensor for tensor in units.sizes if re.search(r"\.attentions\.\d+\.(?:norm|proj_in|proj_out)\.", tensor)}


def test_resolutions_divide_the_network_but_for_what_has_none(model):
    units = walk(model[1])
    parts = [set(units.select((region,), ("everything",))) for region in units.resolutions]
    embeddings = {tensor for tensor in units.sizes if tensor.startswith(("time_embedding.", "add_embedding."))}
    assert set.union(*parts) == set(units.sizes) - embeddings and sum(map(len, parts)) == len(units.sizes) - len(embeddings)
    assert units.within("mid_block.resnets.0", list(units.resolutions)[-1]) and units.within("conv_in", "resolution/1")


def test_a_resolution_is_what_its_convolutions_see():
    """Measured by running the miniature: the side of each resnet's output."""
    unet, seen = architecture.unet(), {}
    for name, module in unet.named_modules():
        if re.fullmatch(r".*\.resnets\.\d+", name):
            module.register_forward_hook(lambda module, given, output, name=name: seen.update({name: 8 // output.shape[-1]}))
    with torch.no_grad():
        unet(torch.zeros(1, 4, 8, 8), 0, torch.zeros(1, 5, 64))
    units = walk(unet)
    assert len(seen) == 8 and all(units.within(name, f"resolution/{fraction}") for name, fraction in seen.items())


def test_a_resolution_goes_together_with_other_regions():
    units = walk(on_meta(SD15))
    half = units.select(("resolution/2",), ("cross-attention-q",))
    assert {tensor.split(".")[0] + tensor.split(".")[1] for tensor in half} == {"down_blocks1", "up_blocks2"}
    assert set(units.select(("resolution/2", "mid"), ("cross-attention-q",))) - set(half) == {
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_q.weight"}


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
    (("resolution/3",), ("bias",), ["region 'resolution/3'", "resolution/1", "resolution/2"]),
    (("up",), ("attention-o",), ["kind 'attention-o'", "attention-out"]),
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


@pytest.mark.parametrize("method", ["bias", "full", "svdiff", "lora", "difffit"])
@pytest.mark.parametrize("kinds", [("bias", "norrm"), ("attention", "bias", "norrm")])
@pytest.mark.parametrize("frozen", [False, True])
def test_an_unknown_kind_beside_known_ones_is_refused(method, kinds, frozen):
    unet = architecture.unet()
    wrong, fine = (Part(("up",), kinds, 4 if method == "lora" else None), Part(("up", "mid"), ("everything",), 4 if method == "lora" else None))
    candidate = Candidate(method, (fine,), 1e-3, 1, frozen=(wrong,)) if frozen else Candidate(method, (fine, wrong), 1e-3, 1)
    for asked in (METHODS[method].apply, METHODS[method].count):
        with pytest.raises(BadSelection, match="kind 'norrm' is unknown: take norm, "):
            asked(unet, walk(unet), candidate)


def test_a_method_s_own_kinds_are_known_to_it_alone():
    check_kinds(("bias", "scale"), own=("scale",))
    with pytest.raises(BadSelection, match="kind 'scale' is unknown"):
        check_kinds(("bias", "scale"))


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
    for method in METHODS.values():
        for choice in method.kinds:
            check_kinds(choice, method.own_kinds)
