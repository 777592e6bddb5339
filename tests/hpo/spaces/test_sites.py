"""Attention blocks by the config alone, against a walk over the U-Net that the config makes."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DConditionModel

from hpo.spaces.sites import attention_sites, sites_of
from trainers import base_model
from trainers.errors import BadModel
from trainers.miniature import architecture
from trainers.units import region_of, walk

SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8}  # the rest is diffusers' default, which was made for it
SD21 = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
SDXL = {"block_out_channels": (320, 640, 1280), "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048,
        "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816}
SMALL = {**SD15, "layers_per_block": (1, 2, 1, 1), "mid_block_type": None}


def on_meta(config: dict) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


MODELS: dict[str, tuple[Callable, int]] = {"sd15": (lambda: on_meta(SD15), 16), "sd21": (lambda: on_meta(SD21), 16), "sdxl": (lambda: on_meta(SDXL), 11),
                                           "small": (lambda: on_meta(SMALL), 11), "miniature": (architecture.unet, 4)}


@pytest.mark.parametrize("name", MODELS)
def test_the_config_names_the_attention_blocks_that_a_walk_finds(name: str) -> None:
    made, count = MODELS[name]
    unet = made()
    found = [site for site in walk(unet).sites if ".attentions." in site]
    in_order = [site for region in ("down", "mid", "up") for site in found if region_of(site) == region]
    assert attention_sites(json.loads(unet.to_json_string())) == tuple(in_order) and len(in_order) == count


def test_what_a_config_leaves_out_is_diffusers_default() -> None:
    assert attention_sites({}) == attention_sites(json.loads(on_meta(SD15).to_json_string()))


def test_of_a_folder_and_of_one_that_is_none(tmp_path) -> None:
    assert sites_of(base_model.MINIATURE) == attention_sites(architecture.unet().config)
    with pytest.raises(BadModel, match="there is no such folder"):
        sites_of(tmp_path / "none")


@pytest.mark.parametrize("config", [{"down_block_types": 3}, {"layers_per_block": "two"}, {"layers_per_block": [1, "x"]}, {"up_block_types": [1]}])
def test_a_config_of_other_types_is_refused_in_one_line(config: dict, tmp_path) -> None:
    import shutil

    folder = shutil.copytree(base_model.MINIATURE, tmp_path / "model")
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadModel, match=r"unet/config.json cannot be read .*give a complete diffusers folder"):
        sites_of(folder)
