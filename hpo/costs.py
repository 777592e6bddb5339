"""What a launch will cost, before it starts: a few steps and pictures are measured on this machine, the rest is arithmetic. `--plan` prints it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from hpo import keeping
from hpo.identity import model_folder
from hpo.inner_loop import check_usable, is_prepared, pick_device
from hpo.preparation import SPLITS, Dealt
from hpo.settings import Settings
from hpo.spaces.reference import BASELINES, reference_candidate
from hpo.tuning import Tuning
from hpo.unscored import Unscored
from trainers import base_model, denoising
from trainers.candidate import Candidate
from trainers.errors import BadSelection

METHODS = ("full", "lora", "bias")  # a step costs most, something in between, and least
STEPS = 3  # that are measured, after one that warms up
PICTURES = 16  # that are encoded, generated and measured, at most
STATES = 3  # a training's state: values and two moments of AdamW
FLOAT = 4  # bytes
GB, HOUR = 1e9, 3600


@dataclass(frozen=True)
class Costs:
    """Seconds are of one worker. trials: that are left to run; is_prepared: whether what is computed once is in this machine's cache; sides: patients and
    pictures by split; caches: bytes by name; step: seconds a training step by method; picture: of a generated picture; loss: of a picture's
    loss at all draws; encode: of a picture that is encoded; load: of the base model."""

    settings: Settings
    trials: int
    is_prepared: bool
    sides: dict[str, tuple[int, int]]
    caches: dict[str, int]
    step: dict[str, float]
    picture: float
    loss: float
    encode: float
    load: float
    workers: int
    device: str

    @property
    def evaluation(self) -> float:
        """Seconds of one evaluated rung: pictures and losses of both sides."""
        return 2 * (self.settings.generated * self.picture + self.settings.train_images * self.loss)

    @property
    def preparation(self) -> float:
        """Seconds before the first trial: where nothing is cached, pictures are encoded, and the untouched base is measured."""
        return self.load if self.is_prepared else self.load + sum(pictures for _, pictures in self.sides.values()) * self.encode + self.evaluation

    def trial(self, steps: int) -> float:
        """Seconds of a trial of so many steps that is never stopped."""
        return steps * fmean(self.step.values()) + len(self.settings.rungs_of(steps)) * self.evaluation

    @property
    def all(self) -> float:
        """Seconds of all trials, if every one runs to the last rung, and none of the yardstick and the baselines is done."""
        steps, baselines = self.settings.steps, len(BASELINES) if self.settings.baselines else 1
        more = len(self.settings.rungs_of(steps, baseline=True)) - len(self.settings.rungs_of(steps))  # evaluations of these
        return self.trials * self.trial(steps) + min(self.trials, baselines) * more * self.evaluation

    def lines(self) -> Iterator[str]:
        settings, rungs = self.settings, self.settings.rungs_of(self.settings.steps)
        yield "sides:       " + ", ".join(f"{name.replace('_', ' ')} {pictures} pictures of {patients} patients" for name, (patients, pictures) in self.sides.items())
        yield "caches:      " + ", ".join(f"{name} {size / GB:.3f} GB" for name, size in self.caches.items()) + f"; {sum(self.caches.values()) / GB:.3f} GB in all"
        yield (f"measured:    on {self.device}, a step of {settings.batch_size} " + ", ".join(f"{name} {seconds:.3g} s" for name, seconds in self.step.items())
               + f"; a generated picture {self.picture:.3g} s, an encoded one {self.encode:.3g} s; loading the base {self.load:.3g} s")
        yield f"preparation: {spoken(self.preparation)}, {'the rest is kept from before' if self.is_prepared else 'once'}"
        yield (f"a trial:     {spoken(self.trial(rungs[-1]))} to {rungs[-1]} steps, {spoken(self.evaluation)} of which for each of its {len(rungs)} evaluations; "
               + (f"{spoken(self.trial(rungs[0]))} where it is stopped at the first" if settings.pruner != "none" and len(rungs) > 1 else "none is stopped"))
        unit = "GPU" if self.device.startswith("cuda") else "worker"
        yield (f"{self.trials} trials:  about {self.all / HOUR:.2f} {unit}-hours, {spoken(self.preparation + self.all / self.workers)} with {self.workers} at a time if none is stopped"
               + (f" (--hours {settings.hours:g} ends it before)" if settings.hours is not None and settings.hours * HOUR < self.all / self.workers else ""))
        yield keeping.disk_need(model_folder(settings), settings.keep, settings.trials).replace("disk: ", "disk:        ", 1)
        largest = base_model.unet_elements(model_folder(settings)) * FLOAT * STATES
        yield f"states:      at most {largest / GB:.3f} GB a trial that runs, {largest * self.workers / GB:.3f} GB with {self.workers}, and as much for each trial that is kept"


def costs(settings: Settings, dealt: Dealt, what: dict[str, str | int], trials: int, workers: int) -> Costs:
    """dealt, what: the settings' data and the identity of model and data. trials: that are left to run. Raises what a launch would: BadModel, BadSetting, in
    one line each."""
    device = pick_device(settings.device)
    check_usable(device)
    few = min(PICTURES, settings.train_images)
    started = time.monotonic()
    inner = Unscored(replace(settings, train_images=few, generated=min(PICTURES, settings.generated)), device)
    load = time.monotonic() - started
    encode = per_picture(few, lambda: base_model.encode_pictures(inner.pipeline.vae, inner.prepared.train.pixels))
    picture = per_picture(inner.settings.generated, lambda: inner.generate("train"))
    loss = per_picture(few, lambda: inner.losses("train", draws=1)) * denoising.DRAWS
    step = {name: seconds for name in METHODS if (seconds := step_seconds(inner, reference_candidate(name, STEPS + 1, settings.learning_rate_scale)))}
    mean, states = inner.prepared.train.mean, inner.states
    pictures = sum(len(dealt.pictures[name]) for name in SPLITS)
    captions = len({picture.caption for name in SPLITS for picture in dealt.pictures[name]})
    caches = {"latents": 2 * pictures * int(np.prod(mean.shape[1:])) * FLOAT, "captions": (captions + 1) * int(np.prod(states.shape[1:])) * FLOAT,
              "pixels": sum(dealt.pixels[name].nbytes for name in SPLITS) + 2 * settings.generated * int(np.prod(dealt.pixels["train"].shape[1:]))}
    sides = {name: (len({picture.patient for picture in dealt.pictures[name]}), len(dealt.pictures[name])) for name in SPLITS}
    prepared = is_prepared(what, settings, device)
    return Costs(settings, trials, prepared, sides, caches, step, picture, loss, encode, max(load - few * encode, 0.0), workers, device)


def per_picture(count: int, call) -> float:
    """Seconds a picture of a call on `count` of them, the second time."""
    call()
    started = time.monotonic()
    call()
    return (time.monotonic() - started) / count


def step_seconds(inner: Unscored, candidate: Candidate) -> float | None:
    """Seconds of a training step, None where this model cannot have the candidate."""
    try:
        with Tuning(inner, candidate) as tuning:
            tuning.train(1)
            started = time.monotonic()
            tuning.train(1 + STEPS)
            return (time.monotonic() - started) / STEPS
    except BadSelection:
        return None


def spoken(seconds: float) -> str:
    """A duration in words.

    >>> spoken(95.0)
    '95 s'
    """
    for limit, size, unit in ((120, 1, "s"), (120 * 60, 60, "min"), (72 * HOUR, HOUR, "h")):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / HOUR / 24:.3g} days"
