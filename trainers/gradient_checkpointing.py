"""Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174) of those blocks of a U-Net that keep activations for the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

BEHIND = ("conv_norm_out", "conv_out")  # what runs after the last block


def blocks(unet) -> dict[str, object]:
    """A U-Net's blocks by name, in the order in which they run."""
    named = [(f"down_blocks.{number}", block) for number, block in enumerate(unet.down_blocks)]
    named += [("mid_block", unet.mid_block)] if unet.mid_block is not None else []
    return dict(named + [(f"up_blocks.{number}", block) for number, block in enumerate(unet.up_blocks)])


def reached(unet) -> list[str]:
    """Names of the blocks that gradients reach: from the first one with a parameter that requires a gradient. All of them, where one before
    the blocks does; the time embedding is before them, since every block reads it."""
    names = list(blocks(unet))
    first = len(names)
    for name, parameter in unet.named_parameters():
        if parameter.requires_grad and not name.startswith(BEHIND):
            first = min(first, next((place for place, block in enumerate(names) if name.startswith(f"{block}.")), 0))
    return names[first:]


@contextmanager
def gradient_checkpointing(unet, wanted: bool) -> Iterator[None]:
    """The blocks that gradients reach keep only their layers' inputs inside, and compute the rest again in the backward pass, if
    `wanted`. Blocks below run as always: autograd keeps nothing of them, not even inputs."""
    if not wanted:
        yield
        return
    unet.enable_gradient_checkpointing()
    try:
        needed = reached(unet)
        for name, block in blocks(unet).items():
            for module in block.modules() if name not in needed else ():
                if hasattr(module, "gradient_checkpointing"):
                    module.gradient_checkpointing = False
        yield
    finally:
        unet.disable_gradient_checkpointing()
