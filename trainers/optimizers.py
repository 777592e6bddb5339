"""The table of optimizers, each over groups of equal learning rate. Adding one is a function and a line here."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from trainers.errors import BadSelection, nearest

if TYPE_CHECKING:
    import torch

BETAS, WEIGHT_DECAY, EPSILON = (0.9, 0.999), 1e-2, 1e-8  # AdamW as in the papers' code
FUSED = ("cpu", "cuda")  # devices with a fused AdamW
Groups = list[dict[str, Any]]


def adamw(groups: Groups, device: str) -> torch.optim.Optimizer:
    import torch

    return torch.optim.AdamW(groups, betas=BETAS, weight_decay=WEIGHT_DECAY, eps=EPSILON, fused=device in FUSED)


def adamw8bit(groups: Groups, device: str) -> torch.optim.Optimizer:
    """AdamW with moments of 8 bits in blocks (Dettmers et al. 2022, arXiv 2110.02861); tensors below 4,096 elements keep theirs in fp32."""
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups, betas=BETAS, weight_decay=WEIGHT_DECAY, eps=EPSILON)


def prodigy(groups: Groups, device: str) -> torch.optim.Optimizer:
    """AdamW whose learning rate is estimated (Mishchenko & Defazio 2023, arXiv 2306.06101), with its authors' settings for diffusion models;
    the candidate's own rate is not used."""
    from prodigyopt import Prodigy

    rates = sorted({group["lr"] for group in groups})
    if len(rates) > 1:
        raise BadSelection(f"optimizer prodigy estimates one learning rate for all parameters, and this candidate has {len(rates)} "
                           f"({', '.join(f'{rate:g}' for rate in rates)}): take --optimizer adamw")
    for group in groups:
        group["lr"] = group["rate"] = 1.0
    with contextlib.redirect_stdout(io.StringIO()):  # it announces its weight decay
        return Prodigy(groups, betas=BETAS, weight_decay=WEIGHT_DECAY, eps=EPSILON, decouple=True, use_bias_correction=True, safeguard_warmup=True)


OPTIMIZERS: dict[str, Callable[[Groups, str], torch.optim.Optimizer]] = {"adamw": adamw, "adamw8bit": adamw8bit, "prodigy": prodigy}
PACKAGES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}  # that an optimizer needs beside torch


def check(name: str) -> None:
    """Raises BadSelection for an unknown optimizer and for one whose package is not installed."""
    if name not in OPTIMIZERS:
        raise BadSelection(f"optimizer {name!r} is unknown: take {nearest(name, OPTIMIZERS)}")
    if name in PACKAGES and find_spec(PACKAGES[name]) is None:
        raise BadSelection(f"optimizer {name} needs {PACKAGES[name]}, which is not installed: pip install 'peft-pareto[optimizers]'")


def optimizer_of(name: str, parameters: Mapping[str, torch.nn.Parameter], rates: Mapping[str, float]) -> torch.optim.Optimizer:
    """The optimizer of all parameters, in one group for each of their rates. Raises BadSelection as `check` does, and where the
    optimizer cannot have these rates."""
    check(name)
    groups: dict[float, dict[str, Any]] = {}
    for parameter, tensor in parameters.items():
        rate = rates[parameter]
        groups.setdefault(rate, {"params": [], "lr": rate, "rate": rate})["params"].append(tensor)
    return OPTIMIZERS[name](list(groups.values()), next(iter(parameters.values())).device.type)


def scale_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Each group's learning rate becomes its own rate times the schedule's factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["rate"] * factor
