"""LoRA (arXiv 2106.09685) through PEFT, on the linear and convolution layers of the chosen units."""

from __future__ import annotations

import re

from trainers.candidate import Candidate
from trainers.errors import BadSelection
from trainers.methods.base import Method, Subset
from trainers.units import Units

ADAPTER = "default"  # PEFT's name for its only adapter


class LoraSubset(Subset):
    """The adapter's factors A and B. PEFT wraps the layers; `restore` unwraps them, and the base's tensors were never written."""

    def __init__(self, unet, modules: tuple[str, ...], rank: int):
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel

        unet.requires_grad_(False)
        exact = "|".join(re.escape(module) for module in modules)
        config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=rf"^(?:{exact})$", init_lora_weights=True)
        layers = dict(unet.named_modules())
        try:
            self.adapter = LoraModel(unet, config, ADAPTER)
        except BaseException:  # out of memory half-way: what is wrapped already is put back
            for module in modules:
                unet.set_submodule(module, layers[module])
            raise
        self.parameters = {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}
        unwanted = [name for name in self.parameters if ".lora_" not in name]
        if unwanted:
            raise AssertionError(f"PEFT left {unwanted[0]} of the base trainable")

    def restore(self) -> None:
        self.adapter.unload()


class Lora(Method):
    name, title = "lora", "LoRA"
    kinds = (("self-attention", "cross-attention"), ("cross-attention",), ("self-attention", "cross-attention", "feed-forward"))
    learning_rates, reference_rate = (5e-4, 1e-2), 3e-3
    ranks = (2, 4, 8, 16, 32)

    def modules(self, unet, units: Units, candidate: Candidate) -> tuple[str, ...]:
        """The layers of the selection that PEFT can adapt: those that own a matrix or a convolution kernel. Raises BadSelection
        if there is none, or no rank."""
        if not candidate.rank or candidate.rank < 1:
            raise BadSelection(f"rank {candidate.rank} of LoRA: it must be at least 1, take one of {', '.join(map(str, self.ranks))}")
        names = units.select(candidate.regions, candidate.kinds)
        layers = dict(unet.named_modules())
        owners = dict.fromkeys(name.rpartition(".")[0] for name in names if name.endswith(".weight"))
        chosen = tuple(owner for owner in owners if layers[owner].weight.ndim in (2, 4))
        if not chosen:
            raise BadSelection(f"LoRA has no layer to adapt among {', '.join(candidate.kinds)}: choose kinds with matrices or convolutions")
        return chosen

    def apply(self, unet, units: Units, candidate: Candidate) -> LoraSubset:
        return LoraSubset(unet, self.modules(unet, units, candidate), candidate.rank)

    def count(self, unet, units: Units, candidate: Candidate) -> int:
        layers = dict(unet.named_modules())
        return sum(factors(layers[name], candidate.rank) for name in self.modules(unet, units, candidate))


def factors(layer, rank: int) -> int:
    """Elements of A and B of one layer: a kernel k × k stays in A, B is 1 × 1."""
    out, inner, *kernel = layer.weight.shape
    area = kernel[0] * kernel[1] if kernel else 1
    return rank * inner * area + rank * out
