"""The attention blocks of a U-Net by its config alone, without building it, so that a launch can name them at once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainers import base_model
from trainers.errors import BadModel

# What diffusers' UNet2DConditionModel takes where its config says nothing.
DOWN = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
UP = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
MID = "UNetMidBlock2DCrossAttn"
LAYERS = 2
ATTENTION = "Attn"  # in the names of diffusers' types of blocks that have attentions


def sites_of(model: Path) -> tuple[str, ...]:
    """`attention_sites` of a diffusers folder. Raises BadModel where its U-Net's config cannot be read."""
    try:
        return attention_sites(json.loads((base_model.check_folder(model) / "unet" / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, BadModel):
            raise
        raise BadModel(f"--model {model}: unet/config.json cannot be read ({type(error).__name__}: {error}); give a complete diffusers folder") from error


def attention_sites(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Paths such as "down_blocks.0.attentions.1" in the order down, mid, up. config: of `unet/config.json`.

    Each layer of a block has one; up blocks have a layer more than down blocks, and take their numbers in reverse.
    """
    down, up = config.get("down_block_types", DOWN), config.get("up_block_types", UP)
    layers = config.get("layers_per_block", LAYERS)
    layers = [layers] * len(down) if isinstance(layers, int) else list(layers)

    def found() -> Iterator[str]:
        yield from attentions("down_blocks", down, layers)
        if ATTENTION in (config.get("mid_block_type", MID) or ""):
            yield "mid_block.attentions.0"
        yield from attentions("up_blocks", up, [count + 1 for count in reversed(layers)])

    return tuple(found())


def attentions(blocks: str, types: Any, layers: list[int]) -> Iterator[str]:
    for number, (kind, count) in enumerate(zip(types, layers)):
        if ATTENTION in kind:
            yield from (f"{blocks}.{number}.attentions.{layer}" for layer in range(count))
