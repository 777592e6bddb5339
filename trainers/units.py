"""The units of a U-Net, site × kind, found by walking its modules. What is done with a unit is a method's business."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from trainers.errors import BadModel, BadSelection, nearest

REGIONS = ("down", "mid", "up")
SITE = re.compile(
    r"(?:(?:down_blocks|up_blocks)\.\d+|mid_block)\.(?:attentions|resnets|downsamplers|upsamplers|motion_modules)\.\d+"
    r"|(?:conv_in|conv_out|conv_norm_out|time_embedding|add_embedding|class_embedding)(?=\.)")
EDGES = {"conv_in": "in-convolution", "conv_out": "out-convolution", "time_embedding": "time-embedding",
         "add_embedding": "time-embedding", "class_embedding": "time-embedding"}
KINDS = ("self-attention", "cross-attention", "feed-forward", "projection", "resnet", "resampling", "norm",
         "time-embedding", "in-convolution", "out-convolution")
SETS = ("attention", "bias", "norm", "resnet", "everything")  # named sets, which overlap, unlike leaf units


@dataclass(frozen=True)
class Unit:
    """A leaf unit: all tensors of one kind at one site. Each tensor of the U-Net is in exactly one."""

    name: str
    site: str
    kind: str
    tensors: tuple[str, ...]
    parameters: int

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "tensors": list(self.tensors)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Unit:
        return cls(**{**data, "tensors": tuple(data["tensors"])})


def region_of(site: str) -> str:
    """The region that a site belongs to: down (with what comes before it), mid or up (with what comes after)."""
    if site.startswith("mid_block"):
        return "mid"
    return "up" if site.startswith(("up_blocks", "conv_out", "conv_norm_out")) else "down"


@dataclass(frozen=True)
class Units:
    """The leaf units of one U-Net, in the order of its modules."""

    units: tuple[Unit, ...]
    sizes: dict[str, int]  # tensor → number of elements

    @cached_property
    def total(self) -> int:
        return sum(self.sizes.values())

    @cached_property
    def sites(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(unit.site for unit in self.units))

    def select(self, regions: tuple[str, ...], kinds: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the tensors of these kinds in these regions, in the order of the U-Net.

        A region is "down", "mid", "up" or the beginning of a site's path ("up_blocks.1"); a kind is a leaf kind or one
        of the named sets. Raises BadSelection for an unknown name or an empty selection.
        """
        for region in regions:
            if region not in REGIONS and not any(inside(site, region) for site in self.sites):
                raise BadSelection(f"region {region!r} is not in this U-Net: take {nearest(region, [*REGIONS, *self.sites])}")
        for kind in kinds:
            if kind not in (*KINDS, *SETS):
                raise BadSelection(f"kind {kind!r} is unknown: take {nearest(kind, [*KINDS, *SETS])}")
        chosen = {tensor for unit in self.units if any(region_of(unit.site) == r or inside(unit.site, r) for r in regions)
                  for tensor in unit.tensors if any(belongs(tensor, unit, kind) for kind in kinds)}
        if not chosen:
            raise BadSelection(f"kinds {', '.join(kinds)} have no parameters in {', '.join(regions)}: choose other regions or kinds")
        return tuple(tensor for tensor in self.sizes if tensor in chosen)

    def count(self, tensors: tuple[str, ...]) -> int:
        return sum(self.sizes[tensor] for tensor in tensors)


def inside(site: str, path: str) -> bool:
    return site == path or site.startswith(path + ".")


def belongs(tensor: str, unit: Unit, kind: str) -> bool:
    """Whether a tensor of the unit is in a leaf kind or in one of the overlapping sets."""
    if kind == "everything":
        return True
    if kind == "bias":
        return tensor.endswith(".bias")
    if kind == "attention":
        return unit.kind in ("self-attention", "cross-attention")
    if kind == "resnet":
        return ".resnets." in unit.site  # the papers' count: with the norms inside
    return unit.kind == kind


def walk(unet) -> Units:
    """The leaf units of a diffusers U-Net, also of one on the meta device.

    Raises BadModel naming the tensors that no rule understands.
    """
    import torch

    norms = (torch.nn.GroupNorm, torch.nn.LayerNorm)
    modules = dict(unet.named_modules())
    sizes = {name: tensor.numel() for name, tensor in unet.named_parameters()}
    grouped: dict[tuple[str, str], list[str]] = {}
    unknown = []
    for tensor in sizes:
        site, owner = SITE.match(tensor), modules[tensor.rpartition(".")[0]]
        kind = site and kind_of(tensor, site[0], isinstance(owner, norms) or "Norm" in type(owner).__name__)
        if kind:
            grouped.setdefault((site[0], kind), []).append(tensor)
        else:
            unknown.append(tensor)
    if unknown:
        raise BadModel(f"this U-Net ({type(unet).__name__}) has {len(unknown)} tensors that no unit covers, the first "
                       f"{unknown[0]!r}: only Stable Diffusion's kinds of blocks are understood")
    return Units(tuple(Unit(f"{site}/{kind}", site, kind, tuple(tensors), sum(sizes[t] for t in tensors))
                       for (site, kind), tensors in grouped.items()), sizes)


def kind_of(tensor: str, site: str, is_norm: bool) -> str | None:
    """The leaf kind of a tensor by where it sits in its site, or None if that is not understood."""
    if is_norm or site == "conv_norm_out":
        return "norm"
    if site in EDGES:
        return EDGES[site]
    if ".resnets." in site:
        return "resnet"
    if "samplers." in site:
        return "resampling"
    inner = tensor[len(site):]
    for mark, kind in ((".attn1.", "self-attention"), (".attn2.", "cross-attention"), (".ff.", "feed-forward"),
                       (".proj_in.", "projection"), (".proj_out.", "projection")):
        if mark in inner:
            return kind
    return None
