"""The table of PEFT's tuners: published and hand-worked counts, the formulas that they compute, versions, and what a rank may be."""

from __future__ import annotations

import warnings
from dataclasses import fields

import peft
import pytest
import torch
from diffusers import UNet2DConditionModel

from trainers.candidate import Candidate, Part
from trainers.errors import BadSelection
from trainers.methods import METHODS
from trainers.methods.peft_adapter import CONVOLUTION, LINEAR, NORM, POINTWISE, Shape
from trainers.methods.peft_tuners import INSTALLED, TUNERS, factors, missing, parsed, tuners_of
from trainers.units import REGIONS, walk

HERE = tuners_of(TUNERS, INSTALLED)
EVERY_KIND = {LINEAR: ("self-attention", "cross-attention", "feed-forward", "time-embedding"), POINTWISE: ("projection",),
              CONVOLUTION: ("resnet", "resampling", "in-convolution", "out-convolution"), NORM: ("norm",)}
LAYER = "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"  # 64 → 32, without a bias


def tuner(name: str):
    return next(each for each in TUNERS if each.name == name)


def ranked(each, rank=None):
    return (rank or each.ranks[0]) if each.ranks else None


def candidate(each, kinds=None, rank=None, regions=REGIONS) -> Candidate:
    return Candidate.of(each.name, regions, kinds or each.kinds[0], 1e-3, 1, ranked(each, rank))


@pytest.fixture(scope="module")
def sd15():
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    return unet, walk(unet)


def test_count_is_the_published_one_of_stable_diffusion(sd15):
    """diffusers' text-to-image LoRA of rank 4 on to_q, to_k, to_v, to_out.0 of SD v1.5 has 797,184 parameters (a file of 3.2 MB)."""
    assert METHODS["lora"].count(*sd15, candidate(tuner("lora"), ("self-attention", "cross-attention"), 4)) == 797_184


@pytest.mark.parametrize("each", HERE, ids=lambda each: each.name)
def test_stable_diffusion_is_counted_on_the_meta_device(sd15, each):
    assert 0 < each.count(*sd15, candidate(each)) < walk(sd15[0]).total


# (tuner, rank, elements on a layer 12 → 8, on a 3 × 3 convolution 12 → 8): each by hand from its paper's matrices
@pytest.mark.parametrize("name, rank, linear, convolution", [
    ("lora", 3, 3 * 12 + 3 * 8, 3 * 12 * 9 + 3 * 8),
    ("rslora", 3, 60, 348),
    ("dora", 3, 60 + 8, 348 + 8),  # and one magnitude a row
    ("loha", 3, 2 * 60, 2 * 348),  # two products
    ("lokr", 1, 2 * 3 + 1 * (4 + 4), 2 * 3 + 1 * (4 + 4 * 9)),  # 8 = 2 · 4, 12 = 3 · 4
    ("lokr", 2, 2 * 3 + 4 * 4, 2 * 3 + 4 * 4 * 9),  # half of 4: the second factor is whole
    ("hira", 3, 60, 348),
    ("gralora", 4, 4 * 12 + 4 * 8, None),
    ("miss", 3, 3 * 8, None),
    ("oft", 4, 3 * 6, None),  # 12 = 3 blocks of 4, skew-symmetric
    ("boft", 4, 3 * 16 + 8, 27 * 16 + 8),  # and one scale a row
    ("hra", 2, 2 * 12, 2 * 108),
    ("ia3", None, 8, 8),
    ("vera", 3, 3 + 8, None),
    ("randlora", 3, 3 * (3 + 8), None),  # ⌈8 / 3⌉ bases
    ("shira", 3, 60, None)])
def test_elements_by_hand(name, rank, linear, convolution):
    assert tuner(name).elements(Shape(8, 12, 1, 96), rank) == linear
    assert (convolution is None) == (CONVOLUTION not in tuner(name).layers)
    assert convolution is None or tuner(name).elements(Shape(8, 12, 9, 864), rank) == convolution


@pytest.mark.parametrize("number, expected", [(1, (1, 1)), (7, (1, 7)), (128, (8, 16)), (256, (16, 16)), (320, (16, 20)), (1280, (32, 40))])
def test_factors_nearest_to_each_other(number, expected):
    assert factors(number) == expected


def test_factors_are_those_that_peft_takes():
    from peft.tuners.lokr.layer import factorization

    assert all(factors(number) == factorization(number) for number in range(1, 300))


@pytest.mark.parametrize("each", HERE, ids=lambda each: each.name)
def test_what_is_counted_is_there_on_every_sort_of_layer_that_it_wraps(unet, units, each):
    for sort in each.layers:
        wanted = candidate(each, EVERY_KIND[sort] if sort != CONVOLUTION else (*EVERY_KIND[CONVOLUTION], *EVERY_KIND[POINTWISE]), 2 if each.ranks else None)
        declared = each.count(unet, units, wanted)
        subset = each.apply(unet, units, wanted)
        assert declared == subset.count == sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad)
        subset.restore()


def randomized(unet, units, name: str, rank: int | None, **part):
    """A subset on one kind with random values, its layer, and the layer's own weight."""
    wanted = Candidate(name, (Part(("up",), ("cross-attention",), rank, **part),), 1e-3, 1)
    subset = METHODS[name].apply(unet, units, wanted)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in subset.parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return subset, unet.get_submodule(LAYER), subset.base[LAYER].weight


@pytest.mark.parametrize("name, alpha, scale", [("lora", None, 1.0), ("lora", 8.0, 2.0), ("rslora", None, 4.0), ("rslora", 6.0, 3.0)])
def test_a_layer_computes_w_plus_ba_scaled(unet, units, name, alpha, scale):
    """LoRA's scale is alpha / rank, by default 1; rsLoRA's alpha / √rank, by default 8 / √4."""
    subset, layer, weight = randomized(unet, units, name, 4, alpha=alpha)
    a, b = subset.parameters[f"{LAYER}.lora_A.default.weight"], subset.parameters[f"{LAYER}.lora_B.default.weight"]
    torch.testing.assert_close(subset.merged()[f"{LAYER}.weight"], weight + scale * (b @ a).detach(), rtol=1e-4, atol=1e-4)
    x = torch.randn(3, 64)
    torch.testing.assert_close(layer(x), x @ (weight + scale * b @ a).T, rtol=1e-4, atol=1e-3)


def test_dora_gives_each_row_a_length_of_its_own(unet, units):
    """Liu et al. 2024, eq. 5."""
    subset, layer, weight = randomized(unet, units, "dora", 4)
    a, b, magnitude = (subset.parameters[f"{LAYER}.lora_{part}"] for part in ("A.default.weight", "B.default.weight", "magnitude_vector.default.weight"))
    direction = weight + b @ a
    expected = magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True)
    torch.testing.assert_close(subset.merged()[f"{LAYER}.weight"], expected.detach(), rtol=1e-4, atol=1e-5)


def test_loha_is_a_product_of_products(unet, units):
    subset, layer, weight = randomized(unet, units, "loha", 4)
    (a, b), (c, d) = ([subset.parameters[f"{LAYER}.hada_w{each}_{part}.default"] for part in "ab"] for each in (1, 2))
    torch.testing.assert_close(subset.merged()[f"{LAYER}.weight"], (weight + (a @ b) * (c @ d)).detach())


def test_lokr_is_a_kronecker_product(unet, units):
    subset, layer, weight = randomized(unet, units, "lokr", 1)
    small, a, b = (subset.parameters[f"{LAYER}.lokr_{part}.default"] for part in ("w1", "w2_a", "w2_b"))
    torch.testing.assert_close(subset.merged()[f"{LAYER}.weight"], (weight + torch.kron(small, a @ b)).detach())


def test_ia3_scales_outputs(unet, units):
    subset, layer, weight = randomized(unet, units, "ia3", None)
    torch.testing.assert_close(subset.merged()[f"{LAYER}.weight"], (weight * subset.parameters[f"{LAYER}.ia3_l.default"]).detach())


def test_hra_reflects_inputs(unet, units):
    """Yuan et al. 2024: W ∏ (I − 2 u uᵀ) with u of length 1, which changes no row's length."""
    subset, layer, weight = randomized(unet, units, "hra", 2)
    expected = weight
    for vector in subset.parameters[f"{LAYER}.hra_u.default"].T:
        u = vector / vector.norm()
        expected = expected - 2 * (expected @ u)[:, None] * u
    merged = subset.merged()[f"{LAYER}.weight"]
    torch.testing.assert_close(merged, expected.detach())
    torch.testing.assert_close(merged.norm(dim=1), weight.norm(dim=1))


def test_boft_keeps_angles_and_needs_no_kernel(unet, units):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a failed compilation
        subset, layer, weight = randomized(unet, units, "boft", 8)
    with torch.no_grad():
        subset.parameters[f"{LAYER}.boft_s.default"].fill_(1.0)
    merged = subset.merged()[f"{LAYER}.weight"]
    assert not torch.allclose(merged, weight, atol=0.01)
    torch.testing.assert_close(merged @ merged.T, weight @ weight.T)


@pytest.mark.parametrize("each", HERE, ids=lambda each: each.name)
def test_the_line_names_what_peft_has(each):
    known = {known.name for known in fields(getattr(peft, each.config))}
    assert {name for name in (each.rank_name, each.alpha_name, *each.options) if name} <= known
    assert bool(each.ranks) == (each.rank_name is not None) and each.paper and all(rank % each.multiple == 0 for rank in each.ranks)


@pytest.mark.parametrize("each", HERE, ids=lambda each: each.name)
def test_every_rank_of_the_search_fits_the_miniature(unet, units, each):
    for kinds in each.kinds:
        for rank in each.ranks or (None,):
            assert each.count(unet, units, candidate(each, kinds, rank)) > 0


def test_a_version_without_a_tuner_says_which_has_it():
    assert "hira" not in {each.name for each in tuners_of(TUNERS, "0.18.1")} and "hira" in {each.name for each in tuners_of(TUNERS, "0.20.0")}
    assert missing("hira", TUNERS, "0.18.1") == "method 'hira' needs peft 0.20, 0.18.1 is installed: pip install 'peft>=0.20,<0.23'"
    assert missing("nothing", TUNERS, "0.18.1") is None
    assert parsed("0.21.2") == (0, 21) and parsed("0.22.0.dev0") == (0, 22)


@pytest.mark.parametrize("name, rank, words", [("lora", 33, r"rank 33 of LoRA is above the width of down_blocks.0\S*to_q \(32 × 32\): take at most 32"),
                                               ("lora", 65, r"above the width of down_blocks.0\S*to_q \(32 × 32\)"),  # the narrowest, not the first
                                               ("vera", 64, "rank 64 of VeRA is above the width"),
                                               ("shira", 17, r"\(32 × 32\): take at most 16"),  # 17 · (32 + 32) places of 1,024
                                               ("hra", 3, "rank 3 of HRA: it must be a multiple of 2, take one of 2, 4, 8"),
                                               ("oft", 6, "rank 6 of OFT does not divide the width of"),
                                               ("lora", 0, "rank 0 of LoRA: it must be at least 1, take one of 2, 4, 8, 16, 32")])
def test_a_rank_that_a_layer_cannot_have_is_refused(unet, units, name, rank, words):
    wanted = Candidate.of(name, REGIONS, ("self-attention", "cross-attention"), 1e-3, 1, rank)
    for ask in (METHODS[name].count, METHODS[name].apply):
        with pytest.raises(BadSelection, match=words) as caught:
            ask(unet, units, wanted)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name, part, words", [("ia3", {"rank": 4}, r"rank 4 of \(IA\)³: it has no rank, leave it out"),
                                               ("ln-tuning", {"rank": 4}, "rank 4 of LN tuning: it has no rank"),
                                               ("oft", {"rank": 4, "alpha": 8.0}, "alpha 8 of OFT: it has no alpha, leave it out"),
                                               ("lora", {"rank": 4, "alpha": 0.0}, "alpha 0 of LoRA: it must be a number above 0"),
                                               ("lora", {"rank": 4, "alpha": float("nan")}, "alpha nan of LoRA: it must be a number above 0"),
                                               ("lora", {"rank": 4, "alpha": float("inf")}, "alpha inf of LoRA: it must be a number above 0"),
                                               ("lora", {}, "rank None of LoRA: it must be at least 1")])
def test_what_a_tuner_does_not_have_is_refused(unet, units, name, part, words):
    with pytest.raises(BadSelection, match=words):
        METHODS[name].count(unet, units, Candidate(name, (Part(REGIONS, METHODS[name].kinds[0], **part),), 1e-3, 1))


@pytest.mark.parametrize("name, kinds, words", [("oft", ("resnet",), "OFT cannot adapt down_blocks.0.resnets.0.conv1, a k×k convolution"),
                                                ("vera", ("projection",), "VeRA cannot adapt .*proj_in, a 1×1 convolution"),
                                                ("ln-tuning", ("everything",), "LN tuning cannot adapt conv_in, a k×k convolution"),
                                                ("lora", ("norm",), "LoRA has no layer to adapt"), ("lora", ("bias",), "LoRA has no layer to adapt")])
def test_layers_that_it_cannot_wrap_are_refused(unet, units, name, kinds, words):
    with pytest.raises(BadSelection, match=words):
        METHODS[name].apply(unet, units, candidate(tuner(name), kinds))
