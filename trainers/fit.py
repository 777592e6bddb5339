"""The inner fine-tune: gradient steps on the candidate's subset, repeatable, resumable, with the mitigations' hooks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from trainers import optimizers
from trainers.draws import Ahead, Drawn, Draws
from trainers.ema import Average
from trainers.errors import TrainingDiverged
from trainers.gradient_checkpointing import gradient_checkpointing
from trainers.loss import Denoising
from trainers.methods import Subset
from trainers.mitigated import Encode, Mitigations
from trainers.mitigations.hooks import TrainingHooks
from trainers.plan import Examples, Plan
from trainers.record import Fit, Record
from trainers.resuming import Checkpoints, RandomStates, Stateful, Values
from trainers.schedules import factor


@dataclass(frozen=True)
class Evaluation:
    """What looks at the network during training: `look(step)` after every step for which `due(step)` holds, and at step 0 before the first.

    The network is then in evaluation mode, generating, with the averaged values if there is an EMA. Random states are put back. keeps: what
    it found so far, which a training that goes on from its state gets back, or None.
    """

    due: Callable[[int], bool]
    look: Callable[[int], None]
    keeps: Stateful | None = None


def fit(unet, scheduler, subset: Subset, examples: Examples, plan: Plan, on_step: Callable[[int], None] = lambda step: None, *,
        rates: Mapping[str, float] | None = None, hooks: Sequence[TrainingHooks] = (), encode: Encode | None = None,
        evaluations: Sequence[Evaluation] = (), checkpoints: Checkpoints | None = None) -> Fit:
    """Train the subset in place. The same plan on the same machine gives the same weights, bit for bit on a CPU, also when it was stopped in
    between and goes on from `checkpoints`.

    rates: learning rate of each parameter by name (default: the plan's). encode: texts → (k, tokens, width) states, for hooks that change
    captions. At the end the subset has the averaged values if there is an EMA.
    Raises TrainingDiverged at the first loss that is not finite, AssertionError if gradients reach other parameters than the
    subset's, BadModel for a training state of something else. Whatever is raised, also by a callback, leaves the U-Net in evaluation mode,
    without gradients, with the trained weights of that moment: `subset.restore` is the caller's.
    """
    device = examples.mean.device
    parameters = list(subset.parameters.values())
    mitigations = Mitigations(hooks, encode)
    task = Denoising(unet, scheduler, examples, plan, mitigations)
    draws = Draws(mitigations.kept(len(examples)), examples.mean.shape[1:], scheduler.config.num_train_timesteps, plan)
    optimizer = optimizers.optimizer_of(plan.optimizer, subset.parameters, rates or dict.fromkeys(subset.parameters, plan.learning_rate))
    scaler = torch.amp.GradScaler(device.type, enabled=plan.precision == "fp16")
    average, record = Average(parameters, plan.ema_decay), Record(plan.batch_size)
    state = {"values": Values(subset), "optimizer": optimizer, "scaler": scaler, "average": average, "draws": draws, "hooks": mitigations,
             "random": RandomStates(device), "record": record}
    state |= {f"evaluation {number}": each.keeps for number, each in enumerate(evaluations) if each.keeps is not None}
    evaluate = partial(evaluate_at, evaluations, unet, subset, average, device)
    mitigations.expect(Ahead(draws), plan.steps)
    with in_training(unet, subset, plan, device):
        done = checkpoints.load(plan, state) if checkpoints else 0
        if not done:
            evaluate(0)
        unchecked = True
        for step in range(done + 1, plan.steps + 1):
            optimizers.scale_rates(optimizer, factor(plan.schedule, step, plan.warmup_steps, plan.schedule_steps or plan.steps))
            optimizer.zero_grad(set_to_none=True)
            loss, kept = backward(task, step, draws.next().to(device), scaler, parameters)
            if kept and unchecked:
                check_gradients(unet, subset)
                unchecked = False
            if kept:  # else every sample is skipped, and the step changes nothing
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(parameters, plan.max_grad_norm)
                scaler.step(optimizer)
                scaler.update()
                average.update()
            record.add(float(loss), kept)
            if not math.isfinite(record.losses[-1]):
                raise TrainingDiverged(step, record.losses[-1], plan.learning_rate)
            evaluate(step)
            if checkpoints and checkpoints.due(step, plan.steps):
                checkpoints.save(step, plan, state)
            on_step(step)
        if not all(parameter.isfinite().all() for parameter in parameters):  # spoilt by the very last step: the next loss would be
            raise TrainingDiverged(plan.steps, math.nan, plan.learning_rate)
        average.adopt()
    return record.fit()


@contextmanager
def in_training(unet, subset: Subset, plan: Plan, device: torch.device) -> Iterator[None]:
    """The U-Net in training mode inside; in evaluation mode and without gradients after it, whatever happens. Torch's own generators, which
    dropout layers draw from, start at the plan's seed inside and are put back."""
    unet.train()
    try:
        with forked(device), gradient_checkpointing(unet, plan.gradient_checkpointing):
            torch.manual_seed(plan.seed)
            yield
    finally:
        unet.eval()
        for parameter in subset.parameters.values():
            parameter.grad = None


def forked(device: torch.device):
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def evaluate_at(evaluations: Sequence[Evaluation], unet, subset: Subset, average: Average, device: torch.device, step: int) -> None:
    """Let those evaluations look that are due."""
    for look in [each.look for each in evaluations if each.due(step)]:
        unet.eval()
        with average.swapped(), subset.generating(), forked(device):
            look(step)
        unet.train()


def backward(task: Denoising, step: int, drawn: Drawn, scaler: torch.amp.GradScaler, parameters: Sequence[torch.nn.Parameter]) -> tuple[torch.Tensor, int]:
    """Add up the gradients of the mean loss over the samples that are kept, one part of the batch after another. Gives the batch's plain loss,
    () without gradient, and how many samples are kept; where none is, no parameter has a gradient."""
    states = task.mitigations.states(step, task.examples, drawn)
    plain, kept = torch.zeros((), device=states.device), 0
    for place, part in drawn.parts(task.plan.accumulate):
        loss, share = task.loss(step, part, states[place]), len(part) / len(drawn)
        if loss.trained is not None:
            scaler.scale(loss.trained * share).backward()
        plain, kept = plain + loss.plain * share, kept + loss.kept
    if 0 < kept < len(drawn):  # a mean over the kept ones, as Wen et al. 2024 train on what is left of a batch
        for gradient in [parameter.grad for parameter in parameters if parameter.grad is not None]:
            gradient.mul_(len(drawn) / kept)
    return plain, kept


def check_gradients(unet, subset: Subset) -> None:
    """Every selected parameter has a gradient and no other one: compiled or wrapped graphs have got this wrong before."""
    selected = {id(parameter) for parameter in subset.parameters.values()}
    for name, parameter in unet.named_parameters():
        if (parameter.grad is not None) != (id(parameter) in selected):
            raise AssertionError(f"{name}: selected {id(parameter) in selected}, gradient {parameter.grad is not None}")
