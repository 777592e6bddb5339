"""DiffFit (Xie et al. 2023, arXiv 2304.06648): factors γ on residual branches and projections, with biases and norms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch

from trainers.candidate import Candidate, Part
from trainers.errors import BadSelection
from trainers.methods.base import BaseCache, Method, Subset
from trainers.methods.direct import DirectSubset
from trainers.units import Units

SCALE = "scale"
# As in the papers' code, of each transformer block: the factor, and whose output it multiplies.
FACTORS = {"gamma_attn1": "attn1", "gamma_attn2": "attn2", "gamma_ff": "ff"} | {
    f"{attention}.{factor}": f"{attention}.{layer}" for attention in ("attn1", "attn2")
    for factor, layer in (("gamma_q", "to_q"), ("gamma_k", "to_k"), ("gamma_v", "to_v"), ("gamma_out", "to_out.0"))}


class DiffFit(Method):
    """Kind "scale": the factors of the transformer blocks at a site, 11 vectors of a block's width. All other kinds are
    trained as they are; by default biases and norms."""

    name, title, paper = "difffit", "DiffFit", "Xie et al. 2023, arXiv 2304.06648"
    kinds = ((SCALE, "bias", "norm"), (SCALE, "norm"), (SCALE,))
    own_kinds = (SCALE,)
    learning_rates, reference_rate = (2e-3, 3e-2), 1e-2

    def apply(self, unet, units: Units, candidate: Candidate, cache: BaseCache | None = None) -> DiffFitSubset:
        return DiffFitSubset(unet, *self.chosen(unet, units, candidate))

    def count(self, unet, units: Units, candidate: Candidate) -> int:
        tensors, factors = self.chosen(unet, units, candidate)
        modules = dict(unet.named_modules())
        return units.count(tensors) + sum(modules[folded(modules, layer)].out_features for layer in factors.values())

    def chosen(self, unet, units: Units, candidate: Candidate) -> tuple[list[str], dict[str, str]]:
        """The U-Net's own tensors, and the factors by name with the layer whose output each multiplies. Raises BadSelection if
        the candidate selects neither."""
        def tensors(part: Part) -> tuple[str, ...]:
            kinds = tuple(kind for kind in part.kinds if kind != SCALE)
            return units.select(part.regions, kinds) if kinds else ()

        def factors(part: Part) -> list[str]:
            there = set(units.select(part.regions, ("everything",)))
            return [factor for factor, layer in placed.items() if f"{folded(modules, layer)}.weight" in there] if SCALE in part.kinds else []

        modules = dict(unet.named_modules())
        placed = {f"{block}.{factor}": f"{block}.{layer}" for block in transformer_blocks(modules) for factor, layer in FACTORS.items()
                  if f"{block}.{layer}" in modules}
        own, found = left(candidate, tensors), left(candidate, factors)
        if not own and not found:
            raise BadSelection(f"DiffFit has nothing to train in {candidate.words}: choose kind scale where there are attention blocks, or other kinds")
        return own, {factor: placed[factor] for factor in found}


class DiffFitSubset(Subset):
    """Tensors of the U-Net itself, and factors beside the layers that they belong to, float32 and 1 at the start. Hooks multiply the
    layers' outputs, which keep their dtype."""

    def __init__(self, unet, names: Iterable[str], factors: Mapping[str, str]):
        self.factors, self.modules = factors, dict(unet.named_modules())
        self.own = dict(unet.named_parameters())
        self.direct = DirectSubset(unet, names)
        self.parameters = dict(self.direct.parameters)
        self.hooks = []
        try:
            for factor, layer in factors.items():
                self.add(factor, layer)
        except BaseException:  # out of memory half-way: what is added already is taken away
            self.restore()
            raise

    def add(self, factor: str, layer: str) -> None:
        owner, _, own = factor.rpartition(".")
        linear = self.modules[folded(self.modules, layer)]
        gamma = torch.nn.Parameter(torch.ones(linear.out_features, device=linear.weight.device))
        self.modules[owner].register_parameter(own, gamma)
        self.parameters[factor] = gamma
        self.hooks.append(self.modules[layer].register_forward_hook(partial(multiply, gamma)))

    @torch.no_grad()
    def merged(self) -> dict[str, torch.Tensor]:
        """A factor on a linear layer's output is one on its rows and its bias; one on a branch, on those of the branch's last layer."""
        merged = self.direct.merged()
        for factor, layer in self.factors.items():
            linear, gamma = folded(self.modules, layer), self.parameters[factor].cpu()
            for tensor, values in ((f"{linear}.weight", gamma[:, None]), (f"{linear}.bias", gamma)):
                if tensor in self.own:
                    merged[tensor] = merged.get(tensor, self.own[tensor].float().cpu()) * values
        return merged

    def restore(self) -> None:
        for hook in self.hooks:
            hook.remove()
        for factor in self.parameters.keys() - self.direct.parameters.keys():
            owner, _, own = factor.rpartition(".")
            delattr(self.modules[owner], own)
        self.direct.restore()


def multiply(gamma: torch.Tensor, layer: torch.nn.Module, given: tuple, output: torch.Tensor) -> torch.Tensor:
    return (output * gamma).to(output.dtype)


def folded(modules: Mapping[str, torch.nn.Module], layer: str) -> str:
    """The linear layer that gives a layer's output: itself, or the last one inside; after it there is only dropout."""
    inside = [name for name, module in modules[layer].named_modules(prefix=layer) if isinstance(module, torch.nn.Linear)]
    return inside[-1]


def transformer_blocks(modules: Mapping[str, torch.nn.Module]) -> list[str]:
    from diffusers.models.attention import BasicTransformerBlock

    return [name for name, module in modules.items() if isinstance(module, BasicTransformerBlock)]


def left(candidate: Candidate, names: Callable[[Part], Iterable[str]]) -> list[str]:
    """What the candidate's parts name, without what its frozen parts name."""
    frozen = {name for part in candidate.frozen for name in names(part)}
    return [name for name in dict.fromkeys(name for part in candidate.parts for name in names(part)) if name not in frozen]
