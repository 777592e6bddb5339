"""One candidate in training: to a rung, measured there, kept, and on to the next. Knows no study and no database."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hpo.inner_loop import LOSS_CURVE, Clock, Result, Stage, memory_named
from hpo.memory import Peak
from trainers import checkpoint, held_out
from trainers.candidate import Candidate
from trainers.training import Training

if TYPE_CHECKING:
    from hpo.inner_loop import InnerLoop

STAGES_A_TRAINING = 20  # reports of a step that was reached


class Tuning:
    """A context manager, to be entered once; the U-Net is the untouched base, bit for bit, before and after it, also when something is raised in it.

        with Tuning(inner, candidate, state=path) as tuning:
            for steps in (67, 200):
                result = tuning.to(steps)
                tuning.save()

    state: file for the state of the training, or None; what is there already is gone on from; written by `save`, and every --checkpoint-every steps. on_save: is
    called before each writing, and may forbid it by raising. on_loss: is told each point of the held-out loss.
    Raises TrainingDiverged, BadSelection, NoMemory, NotFinite: the candidate's own fault.
    """

    def __init__(self, inner: InnerLoop, candidate: Candidate, repeat: int = 0, on_stage: Stage = lambda stage: None, state: Path | None = None,
                 on_loss: held_out.Report = lambda step, train, twin: None, on_save: Callable[[], None] = lambda: None):
        self.inner, self.candidate, self.state, self.on_save = inner, candidate, state, on_save
        self.on_stage, self.clock, self.curve = on_stage, Clock(on_stage), held_out.Curve(candidate.learning_rate, on_loss)
        self.seed = inner.training_seed(candidate, repeat)
        self.stack = ExitStack()
        self.training: Training | None = None

    def __enter__(self) -> Tuning:
        self.started = time.monotonic()
        inner, candidate = self.inner, self.candidate
        self.peak = Peak(inner.device)
        with ExitStack() as stack, memory_named(candidate.words, inner.settings):
            self.learned = inner.learned("train", self.seed)
            self.clock("applying the method")
            self.subset = inner.apply(candidate, self.seed)
            stack.callback(self.subset.restore)
            self.clock.stop()
            looks = [replace(each, look=self.clock.timed(LOSS_CURVE, each.look)) for each in inner.held_out(self.curve)]
            self.training = stack.enter_context(inner.training(candidate, self.seed, self.subset, self.learned, on_step=self.told,
                                                            evaluations=looks, state=self.state))
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *raised) -> bool | None:
        try:
            return self.stack.__exit__(*raised)
        finally:  # they know one another, so that their tensors would stay until the next collection of garbage
            self.training = self.subset = self.learned = None

    @property
    def done(self) -> int:
        """Steps so far, those of the state that was gone on from included."""
        return self.training.done

    def carried(self, reached: int) -> float:
        """Seconds of the steps of the state that was gone on from beyond `reached`, the last evaluated rung: those of a worker that died since."""
        return self.training.fit().seconds * (self.done - reached) / self.done if self.done > reached else 0.0

    def told(self, step: int) -> None:
        every = self.inner.settings.checkpoint_every
        if every and step % every == 0:
            self.save()
        if step == 1 or step % max(self.candidate.steps // STAGES_A_TRAINING, 1) == 0:
            self.on_stage(f"step {step} of {self.candidate.steps}")

    def train(self, steps: int) -> None:
        """Train to `steps`, without measuring there. Raises ValueError where the state that it went on from is beyond them."""
        if self.done > steps:
            raise ValueError(f"the training is at step {self.done}, beyond the {steps} that are to be measured")
        with memory_named(self.candidate.words, self.inner.settings):
            self.training.run_to(steps)

    def to(self, steps: int) -> Result:
        """Train to `steps`, generate and score. The result's seconds count from when this was entered. Raises RuntimeError for a state beyond them, whose scores
        would be another rung's."""
        if self.done > steps:
            raise RuntimeError(f"the training's state is at step {self.done}, beyond the rung at {steps} that is to be measured")
        self.train(steps)
        with memory_named(self.candidate.words, self.inner.settings):
            with self.training.evaluating():
                measured, pixels = self.inner.measure_all(self.candidate, self.learned, self.clock)
            self.clock("scoring")
            scores = self.inner.scores(measured)
            self.clock.stop()
        trained = self.training.fit()
        seconds = {"training": trained.seconds, **self.clock.seconds, "total": time.monotonic() - self.started}
        return Result(scores, steps, self.subset.count, self.subset.count / self.inner.units.total, trained.loss, seconds, pixels, dict(self.curve.points),
                      self.peak.bytes())

    def keep(self, path: Path) -> None:
        """Write the subset's tensors as they were just measured."""
        with self.training.average.swapped():
            checkpoint.save(path, self.subset, replace(self.candidate, steps=self.done), self.inner.pipeline.hash, self.inner.settings.precision)

    def save(self) -> None:
        """Write the state of the training, from which another worker, or a longer training, goes on. Raises OSError, and what `on_save` does."""
        if self.state is not None:
            self.on_save()
            self.training.save()
