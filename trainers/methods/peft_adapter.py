"""PEFT's tuners as methods: what is peculiar to PEFT lives here. Which tuners there are is in `peft_tuners`.

PEFT wraps the chosen layers in modules of its own; the base's tensors are never written, so putting the layers back is exact.
"""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from trainers.candidate import Candidate, Part
from trainers.errors import BadSelection
from trainers.methods.base import BaseCache, Method, Subset
from trainers.units import Units

ADAPTER = "default"  # the one name of adapters inside the U-Net: PEFT computes with those only that were named last
LINEAR, POINTWISE, CONVOLUTION, NORM = "linear", "1×1 convolution", "k×k convolution", "norm"
ATTENTION = (("self-attention", "cross-attention"), ("cross-attention",), ("self-attention", "cross-attention", "feed-forward"))


@dataclass(frozen=True)
class Shape:
    """Of a layer's weight. out: output features; channels: input features; area: of the kernel, k · k; own: elements of its tensors."""

    out: int
    channels: int
    area: int
    own: int

    @property
    def inner(self) -> int:
        """Columns of the kernel as a matrix (out, channels · k · k)."""
        return self.channels * self.area


def shape_of(layer: torch.nn.Module) -> Shape:
    out, channels, *kernel = (*layer.weight.shape, 1, 1, 1)[:4]
    return Shape(out, channels, kernel[0] * kernel[1], sum(parameter.numel() for parameter in layer.parameters()))


def sort_of(layer: torch.nn.Module) -> str | None:
    """What a tuner may be able to wrap: a linear layer, one of two sorts of convolution, a norm; None for anything else."""
    if isinstance(layer, torch.nn.Linear):
        return LINEAR
    if isinstance(layer, torch.nn.Conv2d):
        return POINTWISE if tuple(layer.kernel_size) == (1, 1) else CONVOLUTION
    return NORM if isinstance(layer, (torch.nn.GroupNorm, torch.nn.LayerNorm)) else None


class PeftSubset(Subset):
    """The parameters of PEFT's adapters, float32, named as in the wrapped U-Net: "<layer>.lora_A.default.weight".

    Random projections that are not trained (VeRA's, RandLoRA's, SHiRA's places) come from PEFT's fixed seed and are not stored.
    """

    def __init__(self, unet, layers: Iterable[str], configs: Iterable[Any]):
        from peft import PeftModel

        self.unet = unet
        self.base = {name: unet.get_submodule(name) for name in layers}
        unet.requires_grad_(False)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Unsupported layer type .*normalization")  # LN tuning wraps any layer
                self.models = []
                for config in configs:
                    self.models.append(PeftModel(unet, config, ADAPTER))
                    del unet.peft_config  # else the next one would share it, and so would what they save
            self.wrapped = {name: unet.get_submodule(name).train(layer.training) for name, layer in self.base.items()}
            self.parameters = {f"{name}.{own}": parameter for name in self.base for own, parameter in self.added(name)}
            for parameter in self.parameters.values():
                parameter.data = parameter.data.float()
        except BaseException:  # out of memory half-way: what is wrapped already is put back
            self.restore()
            raise

    def added(self, name: str) -> list[tuple[str, torch.nn.Parameter]]:
        """What PEFT added to a layer to be trained, by name inside the wrapped layer."""
        base = {id(parameter) for parameter in self.base[name].parameters()}
        return [(own, parameter) for own, parameter in self.wrapped[name].named_parameters() if id(parameter) not in base and parameter.requires_grad]

    def merged(self) -> dict[str, torch.Tensor]:
        changed = {}
        for name, layer in self.base.items():
            for own, tensor in plain(copy.deepcopy(self.wrapped[name]).cpu().float()).named_parameters():
                if not torch.equal(tensor, layer.get_parameter(own).cpu().float()):
                    changed[f"{name}.{own}"] = tensor.detach().clone()
        return changed

    @contextmanager
    def generating(self) -> Iterator[None]:
        """The wrapped layers give way to merged plain copies. Not for a base in low precision: there a merged weight would be
        rounded to the base's precision, and small changes with it."""
        exact = all(parameter.dtype == torch.float32 for layer in self.base.values() for parameter in layer.parameters())
        try:
            for name, layer in self.wrapped.items() if exact else ():
                self.unet.set_submodule(name, plain(copy.deepcopy(layer)))
            yield
        finally:
            for name, layer in self.wrapped.items():
                self.unet.set_submodule(name, layer)

    def restore(self) -> None:
        for name, layer in self.base.items():
            self.unet.set_submodule(name, layer)
        vars(self.unet).pop("peft_config", None)


def plain(wrapped: torch.nn.Module) -> torch.nn.Module:
    """The layer that computes what a wrapped one does, which is used up by it."""
    wrapped.merge()
    return wrapped.get_base_layer()


@dataclass(frozen=True, eq=False)
class Tuner(Method):
    """One of PEFT's tuners.

    config: its class in PEFT; options: what that is given beside rank, alpha and layers. elements: (shape, rank) → trained
    elements of a layer. layers: the sorts that it wraps rightly. rank_name, alpha_name: what it calls them, None: it has none;
    rank_means: in words. alpha: where a part gives none; None: as the rank, so that the adapter's output is scaled by 1.
    limit: the largest rank of a shape; multiple: the rank must be one of it; divides: the rank is a block size that must divide the
    layer's inputs.
    since: PEFT's first version (major, minor) that has it. prepare: called before it is used.
    """

    name: str
    title: str
    config: str
    paper: str = field()  # the base class has a default, which would make all that follow need one
    elements: Callable[[Shape, int], int]
    learning_rates: tuple[float, float]
    reference_rate: float
    ranks: tuple[int, ...] = ()
    layers: tuple[str, ...] = (LINEAR, POINTWISE, CONVOLUTION)
    kinds: tuple[tuple[str, ...], ...] = ATTENTION
    options: Mapping[str, Any] = field(default_factory=dict)
    rank_name: str | None = "r"
    rank_means: str = "rank"
    alpha_name: str | None = None
    alpha: float | None = None
    limit: Callable[[Shape], int] = lambda shape: min(shape.out, shape.inner)
    multiple: int = 1
    divides: bool = False
    since: tuple[int, int] = (0, 18)
    prepare: Callable[[], None] = lambda: None

    def apply(self, unet, units: Units, candidate: Candidate, cache: BaseCache | None = None) -> PeftSubset:
        chosen = self.chosen(unet, units, candidate)
        self.prepare()
        return PeftSubset(unet, chosen, self.configs(chosen))

    def count(self, unet, units: Units, candidate: Candidate) -> int:
        return sum(self.elements(shape_of(unet.get_submodule(name)), part.rank) for name, part in self.chosen(unet, units, candidate).items())

    def chosen(self, unet, units: Units, candidate: Candidate) -> dict[str, Part]:
        """The layers of the selection by name, each with the part that counts for it: those that own a chosen weight of a sort
        that the tuner wraps. Other methods' norms are passed over. Raises BadSelection for a layer that it cannot wrap, for
        none at all, and for a rank that a layer cannot have."""
        parts = {tensor.removesuffix(".weight"): part for tensor, part in units.chosen(candidate).items() if tensor.endswith(".weight")}
        shapes = {}
        for name in parts:
            layer = unet.get_submodule(name)
            sort = sort_of(layer)
            if sort in self.layers:
                shapes[name] = shape_of(layer)
            elif sort != NORM:
                raise BadSelection(f"{self.title} cannot adapt {name}, a {sort or type(layer).__name__}: it takes a {' or '.join(self.layers)}; "
                                   f"choose kinds without it, such as {' and '.join(self.kinds[0])}")
        if not shapes:
            raise BadSelection(f"{self.title} has no layer to adapt in {candidate.words}: it takes a {' or '.join(self.layers)}; "
                               f"choose such kinds as {' and '.join(self.kinds[0])}")
        for name in sorted(shapes, key=lambda name: self.limit(shapes[name])):  # the narrowest first: what it takes, all take
            self.check_layer(name, shapes[name], parts[name])
        return {name: parts[name] for name in shapes}

    def check_layer(self, name: str, shape: Shape, part: Part) -> None:
        """Raises BadSelection for a rank or an alpha that the tuner cannot have there."""
        rank, choices = part.rank, ", ".join(map(str, self.ranks))
        for word, value, has in (("rank", rank, self.rank_name), ("alpha", part.alpha, self.alpha_name)):
            if value is not None and not has:
                raise BadSelection(f"{word} {value:g} of {self.title}: it has no {word}, leave it out")
        if self.rank_name is None:
            return
        if not rank or rank < 1 or rank % self.multiple:
            raise BadSelection(f"rank {rank} of {self.title}: it must be {'at least 1' if self.multiple == 1 else f'a multiple of {self.multiple}'}, "
                               f"take one of {choices}")
        if part.alpha is not None and not 0 < part.alpha < math.inf:
            raise BadSelection(f"alpha {part.alpha:g} of {self.title}: it must be a number above 0, or leave it out")
        if rank > self.limit(shape):
            raise BadSelection(f"rank {rank} of {self.title} is above the width of {name} ({shape.out} × {shape.inner}): take at most {self.limit(shape)}, "
                               "or leave that layer out")
        if self.divides and shape.inner % rank:
            raise BadSelection(f"rank {rank} of {self.title} does not divide the width of {name} ({shape.inner} inputs): take one of {choices}, "
                               "or leave that layer out")

    def configs(self, chosen: Mapping[str, Part]) -> list[Any]:
        """PEFT's configurations: one, with patterns, where its class has them for rank and alpha, else one for each rank. (HiRA's class
        has one for rank alone, and PEFT 0.21.2 does not heed it.)"""
        import peft

        groups: dict[tuple[int | None, float | None], list[str]] = {}
        for name, part in chosen.items():
            groups.setdefault((part.rank, part.alpha), []).append(name)
        if len(groups) > 1 and "alpha_pattern" in {each.name for each in fields(getattr(peft, self.config))}:
            return [self.configuration(chosen, *next(iter(groups)),
                                       rank_pattern={pattern(names): rank for (rank, _), names in groups.items()},
                                       alpha_pattern={pattern(names): self.scale(rank, alpha) for (rank, alpha), names in groups.items()})]
        return [self.configuration(names, rank, alpha) for (rank, alpha), names in groups.items()]

    def configuration(self, names: Iterable[str], rank: int | None, alpha: float | None, **more: Any) -> Any:
        import peft

        named = {self.rank_name: rank} if self.rank_name else {}
        if self.alpha_name:
            named[self.alpha_name] = self.scale(rank, alpha)
        return getattr(peft, self.config)(target_modules=pattern(names), **named, **self.options, **more)

    def scale(self, rank: int, alpha: float | None) -> float:
        return next(value for value in (alpha, self.alpha, rank) if value is not None)


def pattern(names: Iterable[str]) -> str:
    """A regular expression for exactly these layers; PEFT anchors it."""
    return f"(?:{'|'.join(map(re.escape, names))})"


def peft_folder(subset: PeftSubset, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors, which PEFT's own `PeftModel.from_pretrained` loads.

    Several ranks of a tuner without rank patterns are several adapters: the further ones are in subfolders "2", "3", …, for
    `load_adapter`, and are to be made active together.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    for number, model in enumerate(subset.models, 1):
        home, config = folder if number == 1 else folder / str(number), model.peft_config[ADAPTER]
        home.mkdir(parents=True, exist_ok=True)
        others = tuple(f"base_model.model.{name}." for name in subset.base if not re.fullmatch(config.target_modules, name))
        tensors = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items() if not name.startswith(others)},
                  home / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(home)
