"""The reference code's masks, bit by bit, and what they leave to train of Stable Diffusion v1.5."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel

from hpo.errors import BadSetting
from hpo.spaces import SPACES, Bounds
from hpo.spaces.memcontrol import shortened
from hpo.spaces.reference import reference_candidate
from hpo.spaces.sites import attention_sites
from trainers.candidate import Candidate, Part
from trainers.methods import METHODS
from trainers.units import REGIONS, walk

SITES = attention_sites({})  # diffusers' defaults are Stable Diffusion v1.5's
SD15 = Bounds((3000,), sites=SITES)
SPARED = tuple(f"up_blocks.{block}.attentions.2" for block in (1, 2, 3))
# Counted from Stable Diffusion v1.5's shapes: (bits, trained with all ones, with all zeros).
COUNTS = {"memcontrol-attention": (16, 267_239_360, 173_702_720), "memcontrol-difffit": (13, 581_124, 468_484), "memcontrol-svdiff": (13, 222_805, 125_486)}
# Deltas that each bit of the reference code's mask switches.
SVDIFF_BITS = [3_203] * 2 + [6_403] * 2 + [11_779] * 5 + [6_403] * 2 + [3_203] * 2


@pytest.fixture(scope="module")
def sd15():
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    return unet, walk(unet)


def masked(name: str, bits: str, answered: Callable, bounds: Bounds = SD15, rate: float = 1e-4) -> Candidate:
    space = SPACES[name]
    return space.propose(answered({**dict(zip(space.bits(bounds), map(int, bits))), "learning rate": rate}), bounds)


def count(candidate: Candidate, sd15) -> int:
    return METHODS[candidate.method].count(*sd15, candidate)


@pytest.mark.parametrize("name", COUNTS)
def test_bits_are_the_reference_codes_in_its_order(name: str) -> None:
    down = [f"down_blocks.{block}.attentions.{i}" for block in (0, 1, 2) for i in (0, 1)]
    up = [f"up_blocks.{block}.attentions.{i}" for block in (1, 2, 3) for i in ((0, 1, 2) if COUNTS[name][0] == 16 else (0, 1))]
    for each in (name, name + "-strict"):
        assert SPACES[each].bits(SD15) == (*down, "mid_block.attentions.0", *up) and len(SPACES[each].bits(SD15)) == COUNTS[name][0]


@pytest.mark.parametrize("name", COUNTS)
def test_what_masks_leave_to_train(name: str, sd15, answered: Callable) -> None:
    bits, ones, zeros = COUNTS[name]
    assert count(masked(name, "1" * bits, answered), sd15) == ones
    assert count(masked(name, "0" * bits, answered), sd15) == zeros


def test_what_each_bit_of_svdiff_switches(sd15, answered: Callable) -> None:
    found = [222_805 - count(masked("memcontrol-svdiff", "1" * i + "0" + "1" * (12 - i), answered), sd15) for i in range(13)]
    assert found == SVDIFF_BITS


@pytest.mark.parametrize("name", COUNTS)
def test_a_strict_mask_leaves_nothing_in_its_blocks(name: str, sd15, answered: Callable) -> None:
    """What is trained with a block off is what is trained with it on, without all of the block's own share."""
    unet, units = sd15
    bits = COUNTS[name][0]
    site = "mid_block.attentions.0"
    whole, off = masked(name + "-strict", "1" * bits, answered), masked(name + "-strict", "1" * 6 + "0" + "1" * (bits - 7), answered)
    inside = replace(whole, parts=tuple(replace(part, regions=(site,)) for part in whole.parts))
    assert count(whole, sd15) - count(off, sd15) == count(inside, sd15) > 0
    lax = masked(name, "1" * 6 + "0" + "1" * (bits - 7), answered)
    assert count(lax, sd15) > count(off, sd15), "a 0 bit of the reference code freezes less"
    if name == "memcontrol-attention":
        tensors = units.chosen(off)
        assert not [tensor for tensor in tensors if tensor.startswith(site)] and set(units.chosen(lax)) > set(tensors)


def test_candidates_by_hand(answered: Callable) -> None:
    off = ("down_blocks.0.attentions.1", "mid_block.attentions", "up_blocks.3.attentions.0")
    bits = "101111" "0" "111101"
    common = dict(regions=REGIONS, learning_rate=1.23e-4, steps=3000)
    made = {name: masked(name, bits, answered, rate=1.2345e-4) for name in ("memcontrol-svdiff", "memcontrol-difffit")}
    assert made["memcontrol-svdiff"] == Candidate.of("svdiff", kinds=METHODS["svdiff"].kinds[0], norm_rate=1e-6,
                                                     frozen=(Part(off, ("transformer-block",)),), **common)
    assert made["memcontrol-difffit"] == Candidate.of("difffit", kinds=METHODS["difffit"].kinds[0], frozen=(Part(off, ("scale",)),), **common)
    assert masked("memcontrol-difffit-strict", bits, answered).frozen == (Part(off, ("everything", "scale")),)
    attention = masked("memcontrol-attention", bits + "111", answered, rate=1.2345e-4)
    assert attention.words == ("attention tuning on transformer of all blocks, frozen: attention of down_blocks.0.attentions.1, mid_block.attentions and "
                               "up_blocks.2.attentions.1, lr 1.23e-4, 3000 steps")
    assert masked("memcontrol-attention", "1" * 16, answered).frozen == ()


def test_where_all_blocks_below_are_off_the_path_is_short() -> None:
    assert shortened(SITES, SITES) == tuple(dict.fromkeys(site.rpartition(".")[0] for site in SITES))
    off = tuple(site for site in SITES if site not in SPARED)
    assert shortened(off, SITES)[:4] == ("down_blocks.0.attentions", "down_blocks.1.attentions", "down_blocks.2.attentions", "mid_block.attentions")
    assert shortened(off, SITES)[4:] == off[7:], "the third attention of each up block is not meant"
    assert shortened((), SITES) == ()


def test_learning_rates_are_the_reference_code_s_whatever_the_study_s_scale(answered: Callable) -> None:
    for scale in (0.02, 1.0):
        here = replace(SD15, rate_scale=scale)
        for end in (1e-5, 1e-3):
            candidate = masked("memcontrol-svdiff", "1" * 13, answered, here, end)
            assert (candidate.learning_rate, candidate.norm_rate) == (end, 1e-6)
        with pytest.raises(UserWarning, match="out of range"):
            masked("memcontrol-svdiff", "1" * 13, answered, here, 1.1e-3)


def test_all_ones_is_the_method_as_published(answered: Callable) -> None:
    for method in ("svdiff", "difffit"):
        published = reference_candidate(method, 3000)
        assert replace(masked(f"memcontrol-{method}", "1" * 13, answered), learning_rate=published.learning_rate, norm_rate=published.norm_rate) == published


def test_the_miniature_has_the_bits_of_its_own_blocks(bounds: Bounds) -> None:
    assert SPACES["memcontrol-attention"].bits(bounds) == bounds.sites and len(bounds.sites) == 4
    assert SPACES["memcontrol-svdiff"].bits(bounds) == bounds.sites[:3]


def test_a_unet_without_attention_has_no_mask() -> None:
    with pytest.raises(BadSetting, match="--space memcontrol-svdiff: this U-Net has no attention blocks to choose among, take --space default"):
        SPACES["memcontrol-svdiff"].check(Bounds((10,)))
    SPACES["memcontrol-svdiff"].check(SD15)
