"""What the selective methods share: the base model's own tensors are trained. They differ only in which, and how fast."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from trainers.candidate import Candidate
from trainers.methods.base import BaseCache, Method, Subset
from trainers.units import Units

NORMS = (torch.nn.GroupNorm, torch.nn.LayerNorm)


class DirectSubset(Subset):
    """Tensors of the U-Net itself, which are given float32 copies of their values to train. The values that they had are put
    aside, untouched, and given back."""

    def __init__(self, unet, names: Iterable[str]):
        own = dict(unet.named_parameters())
        self.parameters = {name: own[name] for name in names}
        beside = [own[name] for name in of_norms(unet, self.parameters) if own[name].dtype != torch.float32]
        unet.requires_grad_(False)
        self.base: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        try:
            for parameter in dict.fromkeys([*self.parameters.values(), *beside]):
                self.base.append((parameter, parameter.data))
                parameter.data = parameter.data.to(torch.float32, copy=True)
        except BaseException:  # out of memory half-way: what is changed already is put back
            self.restore()
            raise
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)

    def merged(self) -> dict[str, torch.Tensor]:
        return self.tensors()

    def restore(self) -> None:
        for parameter, values in self.base:
            parameter.requires_grad_(False)
            parameter.grad = None
            parameter.data = values


class Direct(Method):
    def apply(self, unet, units: Units, candidate: Candidate, cache: BaseCache | None = None) -> DirectSubset:
        return DirectSubset(unet, units.chosen(candidate))

    def count(self, unet, units: Units, candidate: Candidate) -> int:
        return units.count(units.chosen(candidate))


def of_norms(unet, names: Iterable[str]) -> list[str]:
    """All tensors of those norm layers that own one of these: torch's norms take scale and shift in one dtype only, so
    that the one that is not trained has to be float32 too. Its values are the same."""
    owners = {owner: unet.get_submodule(owner) for owner in dict.fromkeys(name.rpartition(".")[0] for name in names)}
    return [f"{owner}.{own}" for owner, layer in owners.items() if isinstance(layer, NORMS) for own, _ in layer.named_parameters()]
