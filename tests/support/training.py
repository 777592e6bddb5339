"""What the tests of training share: a short plan, a subset by method and kinds, and the values that it ends with."""

from __future__ import annotations

from collections.abc import Callable

import torch

from trainers.candidate import Candidate
from trainers.fit import fit
from trainers.methods import METHODS, Subset
from trainers.plan import Plan
from trainers.units import REGIONS

PLAN = Plan(steps=4, learning_rate=1e-3, batch_size=3, seed=5)


def subset_of(unet, units, method: str = "bias", kinds: tuple[str, ...] = ("bias",), regions: tuple[str, ...] = REGIONS) -> Subset:
    return METHODS[method].apply(unet, units, Candidate.of(method, regions, kinds, 1e-3, 1))


def trained(unet, units, scheduler, examples, plan: Plan, method: str = "bias", kinds: tuple[str, ...] = ("bias",), **given) -> dict[str, torch.Tensor]:
    """The subset's values after training; the network is restored."""
    subset = subset_of(unet, units, method, kinds)
    try:
        fit(unet, scheduler, subset, examples, plan, **given)
        return subset.tensors()
    finally:
        subset.restore()


def gradients_both_ways(unet, subset: Subset, output: Callable[..., torch.Tensor]) -> list[list[torch.Tensor]]:
    """The subset's gradients of a loss on output(unet), without gradient checkpointing and with it."""
    gradients = []
    unet.train()
    for checkpointing in (False, True):
        if checkpointing:
            unet.enable_gradient_checkpointing()
        output(unet).square().mean().backward()
        gradients.append([parameter.grad for parameter in subset.parameters.values()])
        for parameter in subset.parameters.values():
            parameter.grad = None
    return gradients


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
