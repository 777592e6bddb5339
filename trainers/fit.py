"""The inner fine-tune: AdamW on the candidate's subset, with the usual loss for the model's prediction type."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import mse_loss

from trainers.errors import TrainingDiverged
from trainers.methods import Subset

BETAS, WEIGHT_DECAY, EPSILON = (0.9, 0.999), 1e-2, 1e-8  # AdamW as in the papers' code
WARMUP_STEPS = 10


@dataclass(frozen=True)
class Examples:
    """What is learned from: posterior mean and deviation (n, 4, h, w), and the row of each picture's caption in `states`.

    states: (captions, tokens, width) with the empty caption last. All float32, on the U-Net's device.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    states: torch.Tensor
    caption: torch.Tensor  # (n,) int64

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def empty(self) -> int:
        return len(self.states) - 1


@dataclass(frozen=True)
class Plan:
    """How a candidate is trained; everything but which parameters."""

    steps: int
    learning_rate: float
    batch_size: int
    seed: int
    caption_dropout: float = 0.1
    max_grad_norm: float = 1.0
    precision: str = "fp32"


@dataclass(frozen=True)
class Fit:
    """What training left behind: mean loss of its last tenth, and seconds."""

    loss: float
    seconds: float


AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str):
    """Mixed precision as a context; fp32 is the plain computation."""
    dtype = AUTOCAST[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def target_of(scheduler, clean, noise, timesteps):
    """What the U-Net should say: the noise, or the velocity (Salimans & Ho 2022, eq. 11)."""
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(clean, noise, timesteps)
    return noise


def batches(count: int, size: int, generator: torch.Generator):
    """Row numbers without end: every picture once before any comes again."""
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(count, generator=generator)])
        yield waiting[:size]
        waiting = waiting[size:]


def fit(unet, scheduler, subset: Subset, examples: Examples, plan: Plan, on_step: Callable[[int], None] = lambda step: None) -> Fit:
    """Train the subset in place. The same plan on the same machine gives the same weights, bit for bit on a CPU.

    Raises TrainingDiverged at the first loss that is not finite, AssertionError if gradients reach other parameters
    than the subset's. Whatever is raised, also by `on_step`, leaves the U-Net in evaluation mode with the weights of that
    moment: `subset.restore` is the caller's.
    """
    start = time.monotonic()
    device = examples.mean.device
    generator = torch.Generator().manual_seed(plan.seed)
    parameters = list(subset.parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=plan.learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY, eps=EPSILON, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=plan.precision == "fp16")
    rows_of = batches(len(examples), plan.batch_size, generator)
    recent: list[torch.Tensor] = []
    unet.train()
    try:
        for step in range(1, plan.steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate * min(1.0, step / WARMUP_STEPS)
            loss = loss_of(unet, scheduler, examples, next(rows_of), plan, generator)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            if step == 1:
                check_gradients(unet, subset)
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, plan.max_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            recent.append(loss.detach())
            if not math.isfinite(recent[-1]):
                raise TrainingDiverged(step, float(recent[-1]), plan.learning_rate)
            on_step(step)
    finally:
        unet.eval()
    tail = recent[-max(len(recent) // 10, 1):]
    return Fit(float(torch.stack(tail).mean()), time.monotonic() - start)


def loss_of(unet, scheduler, examples: Examples, rows, plan: Plan, generator: torch.Generator) -> torch.Tensor:
    """Mean squared error of one batch. Random numbers come from the CPU's generator, so devices see the same ones."""
    device, shape = examples.mean.device, (len(rows), *examples.mean.shape[1:])
    posterior_noise, noise = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(rows),), generator=generator).to(device)
    dropped = (torch.rand(len(rows), generator=generator) < plan.caption_dropout).to(device)
    rows = rows.to(device)
    clean = examples.mean[rows] + examples.deviation[rows] * posterior_noise
    states = examples.states[torch.where(dropped, examples.empty, examples.caption[rows])]
    with autocast(device, plan.precision):
        predicted = unet(scheduler.add_noise(clean, noise, timesteps), timesteps, states).sample
    return mse_loss(predicted.float(), target_of(scheduler, clean, noise, timesteps))


def check_gradients(unet, subset: Subset) -> None:
    """Every selected parameter has a gradient and no other one: compiled or wrapped graphs have got this wrong before."""
    selected = {id(parameter) for parameter in subset.parameters.values()}
    for name, parameter in unet.named_parameters():
        if (parameter.grad is not None) != (id(parameter) in selected):
            raise AssertionError(f"{name}: selected {id(parameter) in selected}, gradient {parameter.grad is not None}")
