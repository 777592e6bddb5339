"""A training of the candidate's subset that pauses where it is told to: repeatable, resumable, with the mitigations' hooks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

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
from trainers.resuming import Checkpoints, RandomStates, Stateful, Values, forked
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


class Training:
    """Trains the subset in place, from one pause to the next; a context manager, to be entered once. On a CPU the same plan on the same machine
    gives the same weights, bit for bit, wherever it paused, was evaluated or written, and also when it was stopped and goes on from `checkpoints`.

        with Training(unet, scheduler, subset, examples, plan, checkpoints=checkpoints) as training:
            for rung in rungs:
                training.run_to(rung)
                with training.evaluating():
                    ...
                training.save()
        done = training.fit()

    plan: its `steps` are the most that is trained. rates: learning rate of each parameter by name (default: the plan's). encode: texts →
    (k, tokens, width) states, for hooks that change captions. on_step: is told each step when it is done, all evaluations included; where it
    raises, the training can still be saved. done: steps so far, those of the state that was gone on from included.

    The U-Net is in training mode, with gradients, inside `run_to` only, and torch's own generators, which dropout layers draw from, are the training's
    there only: between two calls both are the caller's. Left in the ordinary way, also before the last step, the subset has the values that
    `evaluating` shows: the averaged ones if there is an EMA. Left by an exception it has the trained ones of that moment; `subset.restore` is the caller's.
    Raises BadSelection when it is made, BadModel when it is entered, for a training state of something else.
    """

    def __init__(self, unet, scheduler, subset: Subset, examples: Examples, plan: Plan, *, rates: Mapping[str, float] | None = None,
                 hooks: Sequence[TrainingHooks] = (), encode: Encode | None = None, evaluations: Sequence[Evaluation] = (),
                 checkpoints: Checkpoints | None = None, on_step: Callable[[int], None] = lambda step: None):
        self.unet, self.subset, self.plan, self.evaluations, self.checkpoints, self.on_step = unet, subset, plan, evaluations, checkpoints, on_step
        self.device, self.parameters = examples.mean.device, list(subset.parameters.values())
        mitigations = Mitigations(hooks, encode)
        self.task = Denoising(unet, scheduler, examples, plan, mitigations)
        self.draws = Draws(mitigations.kept(len(examples)), examples.mean.shape[1:], scheduler.config.num_train_timesteps, plan)
        self.optimizer = optimizers.optimizer_of(plan.optimizer, subset.parameters, rates or dict.fromkeys(subset.parameters, plan.learning_rate))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=plan.precision == "fp16")
        self.average, self.record, self.random = Average(self.parameters, plan.ema_decay), Record(plan.batch_size), RandomStates(self.device, plan.seed)
        self.state = {"values": Values(subset), "optimizer": self.optimizer, "scaler": self.scaler, "average": self.average, "draws": self.draws,
                      "hooks": mitigations, "random": self.random, "record": self.record}
        self.state |= {f"evaluation {number}": each.keeps for number, each in enumerate(evaluations) if each.keeps is not None}
        mitigations.expect(Ahead(self.draws), plan.steps)
        self.done = self.written = 0
        self.gradients_checked = False
        self.hindrance = "it is not entered"  # why it cannot go on now; empty if it can

    def __enter__(self) -> Training:
        if self.checkpoints:
            self.done = self.written = self.checkpoints.load(self.plan, self.state)
        if not self.done:
            self.evaluate(0)
        self.hindrance = ""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.hindrance = "it is over"
        if kind is None:
            self.average.adopt()

    def run_to(self, rung: int) -> None:
        """Train until `rung` steps are done; nothing if they are. Raises ValueError for a rung beyond the plan's steps, TrainingDiverged at
        the first loss that is not finite and for such values at the rung, AssertionError if gradients reach other parameters than the subset's."""
        self.check_ready()
        if rung > self.plan.steps:
            raise ValueError(f"rung {rung} is beyond the plan's {self.plan.steps} steps: plan the most that is going to be trained")
        with self.in_training():
            for step in range(self.done + 1, rung + 1):
                self.hindrance = f"step {step} was broken off"
                with self.record.timed():
                    self.take(step)
                self.evaluate(step)
                self.done, self.hindrance = step, ""
                if self.checkpoints and self.checkpoints.due(step, self.plan.steps):
                    self.save()
                self.on_step(step)
        if not all(parameter.isfinite().all() for parameter in self.parameters):  # spoilt by the very last step: the next loss would be
            raise TrainingDiverged(self.done, math.nan, self.plan.learning_rate)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The subset has the values that this training would end with here: the averaged ones if there is an EMA, and is generating. The U-Net is
        in evaluation mode. What is drawn inside from torch's own generators leaves no trace, and none of the time is training's."""
        self.check_ready()
        self.hindrance = "it is being evaluated"
        try:
            with self.shown():
                yield
        finally:
            self.hindrance = ""

    def save(self) -> None:
        """Write the state to `checkpoints`, whatever its `every` says; nothing if it is there already, or if there are no checkpoints. Raises OSError if the
        disk is full; the former state is then still there."""
        self.check_ready()
        if self.checkpoints and self.written != self.done:
            self.checkpoints.save(self.done, self.plan, self.state)
            self.written = self.done

    def fit(self) -> Fit:
        """What training left behind so far, at any time from the first step on."""
        return self.record.fit()

    def check_ready(self) -> None:
        """Whether values and state are those of the step that is done; else training or writing them would spoil them silently."""
        if self.hindrance:
            raise AssertionError(f"the training at step {self.done} cannot go on, be evaluated or be written: {self.hindrance}")

    @contextmanager
    def in_training(self) -> Iterator[None]:
        """The U-Net in training mode inside; in evaluation mode and without gradients after it, whatever happens."""
        self.unet.train()
        try:
            with self.random.used(), gradient_checkpointing(self.unet, self.plan.gradient_checkpointing):
                yield
        finally:
            self.unet.eval()
            for parameter in self.parameters:
                parameter.grad = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The network as evaluations see it; in the mode that it had, after it."""
        training = self.unet.training
        self.unet.eval()
        try:
            with self.average.swapped(), self.subset.generating(), forked(self.device):
                yield
        finally:
            self.unet.train(training)

    def evaluate(self, step: int) -> None:
        """Let those evaluations look that are due."""
        for look in [each.look for each in self.evaluations if each.due(step)]:
            with self.shown():
                look(step)

    def take(self, step: int) -> None:
        """One step of the optimizer."""
        plan = self.plan
        optimizers.scale_rates(self.optimizer, factor(plan.schedule, step, plan.warmup_steps, plan.schedule_steps or plan.steps))
        self.optimizer.zero_grad(set_to_none=True)
        loss, kept = backward(self.task, step, self.draws.next().to(self.device), self.scaler, self.parameters)
        if kept:  # else every sample is skipped, and the step changes nothing
            if not self.gradients_checked:
                check_gradients(self.unet, self.subset)
                self.gradients_checked = True
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.parameters, plan.max_grad_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.average.update()
        self.record.add(float(loss), kept)
        if not math.isfinite(self.record.losses[-1]):
            raise TrainingDiverged(step, self.record.losses[-1], plan.learning_rate)


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
