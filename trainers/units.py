"""The units of a U-Net, site × kind, found by walking its modules. What is done with a unit is a method's business.

`python -m trainers.units --model DIR` lists those of a model.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trainers.errors import BadModel, BadSelection, nearest

if TYPE_CHECKING:
    from trainers.candidate import Candidate, Part

REGIONS = ("down", "mid", "up")
SITE = re.compile(
    r"(?:(?:down_blocks|up_blocks)\.\d+|mid_block)\.(?:attentions|resnets|downsamplers|upsamplers|motion_modules)\.\d+"
    r"|(?:conv_in|conv_out|conv_norm_out|time_embedding|add_embedding|class_embedding)(?=\.)")
BLOCK = re.compile(r"(?:down_blocks|up_blocks)\.\d+|mid_block")
EDGES = {"conv_in": "in-convolution", "conv_out": "out-convolution", "time_embedding": "time-embedding",
         "add_embedding": "time-embedding", "class_embedding": "time-embedding"}
KINDS = ("self-attention", "cross-attention", "feed-forward", "projection", "resnet", "resampling", "norm",
         "time-embedding", "in-convolution", "out-convolution")
ATTENTIONS = {"self-attention": ("attn1",), "cross-attention": ("attn2",), "attention": ("attn1", "attn2")}  # by diffusers' names
PROJECTIONS = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out"}
ATTENTION_PARTS = {f"{kind}-{letter}": tuple(f".{module}.{layer}." for module in modules)  # set → what its tensors' names contain
                   for kind, modules in ATTENTIONS.items() for letter, layer in PROJECTIONS.items()}
# Named sets, which overlap, unlike leaf units. transformer: all of a site of attentions, also its norms and projections;
# transformer-block: what is inside its blocks of attention and feed-forward.
SETS = ("attention", "bias", "norm", "resnet", "transformer", "transformer-block", *ATTENTION_PARTS, "everything")
RESOLUTION = "resolution"  # regions "resolution/1", "resolution/2", …: what works at that fraction of a latent's side


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

    @cached_property
    def halvings(self) -> dict[str, int]:
        """How often a latent's side was halved before each block, by the samplers on the way down and up again."""
        blocks = {match[0] for site in self.sites if (match := BLOCK.match(site))}
        down, up = (sorted((block for block in blocks if block.startswith(way)), key=lambda block: int(block.split(".")[1]))
                    for way in ("down_blocks", "up_blocks"))
        found, level = {}, 0
        for block in (*down, "mid_block", *up):
            found[block] = level
            level += (f"{block}.downsamplers.0" in self.sites) - (f"{block}.upsamplers.0" in self.sites)
        return found

    @cached_property
    def resolutions(self) -> dict[str, frozenset[str]]:
        """The sites that work at a latent's full side ("resolution/1"), at half of it ("resolution/2") and so on: down, mid and
        up blocks together. A block that resamples counts as what its resnets see. Embeddings of time have no resolution."""
        halvings = self.halvings
        found: dict[str, set[str]] = {}
        for site in self.sites:
            if EDGES.get(site) != "time-embedding":
                block = BLOCK.match(site)
                found.setdefault(f"{RESOLUTION}/{2 ** halvings[block[0]] if block else 1}", set()).add(site)
        return {name: frozenset(sites) for name, sites in found.items()}

    @property
    def regions(self) -> tuple[str, ...]:
        """Names of groups of sites, beside the sites' own paths and the beginnings of those."""
        return (*REGIONS, *self.resolutions)

    def within(self, site: str, region: str) -> bool:
        """Whether the site is in the region: down, mid, up, a resolution, or the beginning of the site's path."""
        return region_of(site) == region or site in self.resolutions.get(region, ()) or inside(site, region)

    def chosen(self, candidate: Candidate) -> dict[str, Part]:
        """The tensors of a candidate's parts, without those of its frozen parts, each with the part that counts for it: the
        last one that selects it. In the order of the U-Net.

        Raises BadSelection as `select` does, and where all that was chosen is frozen.
        """
        found = {tensor: part for part in candidate.parts for tensor in self.select(part.regions, part.kinds)}
        for part in candidate.frozen:
            for tensor in self.select(part.regions, part.kinds):
                found.pop(tensor, None)
        if not found:
            raise BadSelection(f"{candidate.words}: no parameters are left to train; choose other kinds or regions, or freeze less")
        return {tensor: found[tensor] for tensor in self.sizes if tensor in found}

    def select(self, regions: tuple[str, ...], kinds: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the tensors of these kinds in these regions, in the order of the U-Net.

        A region is "down", "mid", "up", a resolution ("resolution/2") or the beginning of a site's path ("up_blocks.1"); a kind
        is a leaf kind or one of the named sets. Raises BadSelection for an unknown name or an empty selection.
        """
        for region in regions:
            if region not in self.regions and not any(inside(site, region) for site in self.sites):
                raise BadSelection(f"region {region!r} is not in this U-Net: take {nearest(region, [*self.regions, *self.sites])}")
        check_kinds(kinds)
        chosen = self.tensors(regions, kinds)
        if not chosen:
            raise BadSelection(f"kinds {', '.join(kinds)} have no parameters in {', '.join(regions)}: choose other regions or kinds")
        return tuple(tensor for tensor in self.sizes if tensor in chosen)

    def tensors(self, regions: Iterable[str], kinds: Iterable[str]) -> set[str]:
        """The tensors of any of these kinds in any of these regions; empty where there are none. The names are not checked."""
        return {tensor for unit in self.units if any(self.within(unit.site, region) for region in regions)
                for tensor in unit.tensors if any(belongs(tensor, unit, kind) for kind in kinds)}

    def count(self, tensors: Iterable[str]) -> int:
        return sum(self.sizes[tensor] for tensor in tensors)


def check_kinds(kinds: Iterable[str], own: Iterable[str] = ()) -> None:
    """Raises BadSelection for a kind that is neither a leaf kind nor a named set, nor one of a method's own."""
    known = (*KINDS, *SETS, *own)
    for kind in kinds:
        if kind not in known:
            raise BadSelection(f"kind {kind!r} is unknown: take {nearest(kind, known)}")


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
    if kind == "transformer":
        return ".attentions." in unit.site
    if kind == "transformer-block":
        return ".transformer_blocks." in tensor
    if kind in ATTENTION_PARTS:
        return any(part in tensor for part in ATTENTION_PARTS[kind])
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


if __name__ == "__main__":
    from trainers.listing import main  # it imports this module by its name, so that there is one of each class

    sys.exit(main())
