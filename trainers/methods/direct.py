"""What the selective methods share: the base model's own tensors are trained. They differ only in which, and how fast."""

from __future__ import annotations

from trainers.candidate import Candidate
from trainers.methods.base import Method, Subset
from trainers.units import Units


class DirectSubset(Subset):
    """Tensors of the U-Net itself; their base values are copied aside and copied back."""

    def __init__(self, unet, names: tuple[str, ...]):
        own = dict(unet.named_parameters())
        self.parameters = {name: own[name] for name in names}
        self.base = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        unet.requires_grad_(False)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)

    def restore(self) -> None:
        self.load(self.base)
        for parameter in self.parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None


class Direct(Method):
    def apply(self, unet, units: Units, candidate: Candidate) -> DirectSubset:
        return DirectSubset(unet, units.select(candidate.regions, candidate.kinds))

    def count(self, unet, units: Units, candidate: Candidate) -> int:
        return units.count(units.select(candidate.regions, candidate.kinds))
