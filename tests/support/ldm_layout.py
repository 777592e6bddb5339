"""A diffusers folder as one file in the layout of Stable Diffusion's authors: what diffusers' single-file loader undoes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
          "conv_shortcut": "skip_connection"}
EDGES = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
         "conv_norm_out": "out.0", "conv_out": "out.2", "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
         "mid_block.resnets.1": "middle_block.2"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write(folder: Path, file: Path, open_clip: bool = False) -> Path:
    """open_clip: the text encoder as Stable Diffusion 2.x has it, else as 1.x."""
    parts = {part: {name: tensor for weights in sorted((folder / part).glob("*.safetensors")) for name, tensor in load_file(weights).items()}
             for part in ("unet", "vae", "text_encoder")}
    configs = {part: json.loads((folder / part / "config.json").read_text()) for part in parts}
    layers, blocks = configs["unet"]["layers_per_block"], len(configs["vae"]["block_out_channels"])
    tensors = {f"model.diffusion_model.{unet_name(name, layers, parts['unet'])}": tensor for name, tensor in parts["unet"].items()}
    for name, tensor in parts["vae"].items():
        attention = ".attentions." in name and tensor.ndim == 2
        tensors[f"first_stage_model.{vae_name(name, blocks)}"] = tensor[:, :, None, None] if attention else tensor
    # transformers 5 writes names without the prefix that Stable Diffusion's files have.
    text = open_clip_layout if open_clip else lambda states: {f"transformer.text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in states.items()}
    tensors |= {f"cond_stage_model.{name}": tensor for name, tensor in text(parts["text_encoder"]).items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file


def unet_name(name: str, layers: int, known: dict[str, torch.Tensor]) -> str:
    for new, old in EDGES.items():
        name = re.sub(rf"^{re.escape(new)}\.", f"{old}.", name)
    found = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name)
    if found:
        way, block, kind, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        place = {"resnets": number, "attentions": number, "downsamplers": layers, "upsamplers": layers}[kind]
        if kind == "upsamplers":
            inner = f"{2 if any(key.startswith(f'up_blocks.{block}.attentions.') for key in known) else 1}.{rest}"
        else:
            inner = {"resnets": f"0.{rest}", "attentions": f"1.{rest}", "downsamplers": f"0.{rest.replace('conv', 'op')}"}[kind]
        first = block * (layers + 1)
        name = f"input_blocks.{first + place + 1}.{inner}" if way == "down" else f"output_blocks.{first + place}.{inner}"
    return name if "transformer_blocks" in name else replaced(name, RESNET)


def vae_name(name: str, blocks: int) -> str:
    name = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{blocks - 1 - int(found[1])}", name)
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = name.replace("down_blocks.", "down.").replace("samplers.0.", "sample.").replace("conv_norm_out", "norm_out")
    name = name.replace(".resnets.", ".block.").replace("conv_shortcut", "nin_shortcut")
    if "mid_block.attentions.0" in name:
        name = replaced(name.replace("mid_block.attentions.0", "mid.attn_1"), VAE_ATTENTION)
    return name


def replaced(name: str, names: dict[str, str]) -> str:
    for new, old in names.items():
        name = re.sub(rf"(^|\.){re.escape(new)}\.", rf"\g<1>{old}.", name)
    return name


def open_clip_layout(states: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    states = {name.removeprefix("text_model."): tensor for name, tensor in states.items()}
    found = {}
    for name, tensor in states.items():
        name = replaced(name.replace("encoder.layers.", "transformer.resblocks."), {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "fc1": "c_fc",
                                                                                  "fc2": "c_proj", "self_attn": "attn", "final_layer_norm": "ln_final"})
        if "q_proj" in name:
            joined = torch.cat([states[key_of(name, letter)] for letter in "qkv"])
            found[f"model.{name.replace('q_proj.', 'in_proj_')}"] = joined
        elif not re.search("[kv]_proj", name):
            name = name.replace("embeddings.token_embedding", "token_embedding").replace("embeddings.position_embedding.weight", "positional_embedding")
            found[f"model.{name}"] = tensor
    return found


def key_of(name: str, letter: str) -> str:
    """The name in transformers' layout of one of the three projections whose query is called `name` here."""
    return replaced(name, {"attn": "self_attn"}).replace("transformer.resblocks.", "encoder.layers.").replace("q_proj", f"{letter}_proj")


