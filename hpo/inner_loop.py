"""The lower level of the bi-level problem: one candidate in, all its scores out. Knows no study and no database."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpo import home
from hpo.identity import SHORT, encoder_spec, model_folder, resolution_of
from hpo.preparation import Pictures, Prepared, prepare
from hpo.settings import Settings
from metrics import encoders
from metrics.evaluate import Generated, Measured, PictureSet, References, evaluate, projection_for, real_floor
from metrics.scores import Scores
from trainers import base_model, checkpoint, denoising, sampling
from trainers.cache import key_of, remember
from trainers.candidate import Candidate
from trainers.fit import Examples, Plan, fit
from trainers.methods import Subset, method
from trainers.units import walk

LOSS_STREAM, NOISE_STREAM, TRAINING_STREAM = range(3)  # independent random streams of one study seed
LOSS_SPAN = (0.0, 0.5)  # part of the noise schedule that the loss gap looks at: there patients differ least (benchmarks/loss_span.py)

BASE_VERSION = 2  # of what is cached under "base"
STAGES_A_TRAINING = 20  # reports of a step that was reached

Stage = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """What a finished trial reports. pictures: (k, R, R) uint8, generated from twin captions, for the trial's note.

    seconds: of "training", "generating", "scoring", and "total", in which the subset is also applied, kept and restored.
    """

    scores: Scores
    trainable: int
    trainable_share: float
    training_loss: float
    seconds: dict[str, float]
    pictures: np.ndarray


def seed_of(*parts: int) -> int:
    """One 63-bit seed from several numbers; different numbers give independent streams."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def pick_device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


class InnerLoop:
    """The loaded base model, the prepared data and the references, for any number of candidates, one at a time.

    The U-Net is the untouched base, bit for bit, before and after `evaluate`, also when that raises.
    """

    def __init__(self, settings: Settings, device: str, on_stage: Stage = lambda stage: None):
        on_stage("loading the base model")
        self.settings, self.device = settings, device
        self.pipeline = base_model.load(model_folder(settings), device)
        self.units = walk(self.pipeline.unet)
        self.resolution = resolution_of(settings)
        self.encoder = encoders.load(encoder_spec(settings), device)
        on_stage("filling the caches")
        self.prepared: Prepared = prepare(settings, self.pipeline, self.resolution)
        self.states = torch.from_numpy(np.array(self.prepared.states)).to(device)
        self.scheduler = self.pipeline.scheduler()
        self.examples = {name: self.examples_of(getattr(self.prepared, name)) for name in ("train", "twin", "second_twin")}
        on_stage("measuring the untouched base")
        self.references = self.measure_base()

    def examples_of(self, side: Pictures) -> Examples:
        def tensor(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.array(array)).to(self.device)

        return Examples(tensor(side.mean), tensor(side.deviation), self.states, tensor(side.caption))

    @property
    def identity(self) -> dict[str, str | int]:
        """What the scores depend on beside the settings: contents, not paths."""
        return {"resolution": self.resolution, "model": self.pipeline.hash[:SHORT], "encoder": self.encoder.content_hash[:SHORT], "data": self.prepared.content}

    @property
    def meaning(self) -> str:
        """Key of whatever is measured here: contents, settings that decide what a score means, and the kind of arithmetic."""
        return key_of(BASE_VERSION, self.identity, self.settings.meaning(), LOSS_SPAN, denoising.DRAWS, torch.__version__, self.device.split(":")[0])

    def measure_base(self) -> References:
        """References with the untouched base's own pictures and losses, from the cache if they are there."""
        def make() -> dict[str, np.ndarray]:
            arrays = {}
            for side in ("train", "twin"):
                latents, pixels = self.generate(side)
                arrays[f"{side}_copies"], arrays[f"{side}_features"] = latents, self.encoder.encode(pixels)
                arrays[f"{side}_losses"] = self.losses(side)
                arrays[f"{side}_pixels"] = pixels
            for name in ("train", "twin", "validate"):
                arrays[f"{name}_own_features"] = self.encoder.encode(getattr(self.prepared, name).pixels)
            return arrays

        found = remember(home.cache_folder(), "base", self.meaning, make)
        self.base_pictures = found["twin_pixels"]
        own = self.own()
        real = {name: PictureSet(np.array(found[f"{name}_own_features"]), getattr(self.prepared, name).patients,
                                 getattr(self.prepared, name).mean.reshape(len(getattr(self.prepared, name).pictures), -1))
                for name in ("validate", "train", "twin")}
        base = Measured(*(Generated(np.array(found[f"{side}_features"]), own, np.array(found[f"{side}_copies"])) for side in ("train", "twin")),
                        np.array(found["train_losses"]), np.array(found["twin_losses"]))
        return References(**real, projection=projection_for(real["validate"], real["twin"], self.settings.generated), base=base)

    def own(self) -> np.ndarray:
        """For each generated picture the row of the picture whose caption calls it up: all captions equally often."""
        return np.arange(self.settings.generated) % self.settings.train_images

    def generate(self, side: str) -> tuple[np.ndarray, np.ndarray]:
        """Pictures from a side's captions with the U-Net as it is: latents (G, 4·h·w) float32 and pixels (G, R, R) uint8."""
        examples, settings = self.examples[side], self.settings
        noise = sampling.initial_noise(settings.generated, tuple(examples.mean.shape[1:]), seed_of(settings.seed, NOISE_STREAM, side == "twin"))
        caption = examples.caption.cpu()[torch.from_numpy(self.own())]
        latents = sampling.sample(self.pipeline.unet, self.pipeline.scheduler_config, self.states, caption, noise,
                                  steps=settings.sampling_steps, guidance_scale=settings.guidance_scale,
                                  batch_size=settings.batch_size, precision=settings.precision)
        return latents.flatten(1).cpu().numpy(), sampling.decode(self.pipeline.vae, latents, settings.batch_size)

    def losses(self, side: str, draws: int = denoising.DRAWS, span: tuple[float, float] = LOSS_SPAN) -> np.ndarray:
        return denoising.losses(self.pipeline.unet, self.scheduler, self.examples[side], seed_of(self.settings.seed, LOSS_STREAM, side == "twin"),
                                draws=draws, span=span, batch_size=self.settings.batch_size, precision=self.settings.precision)

    def base_scores(self) -> Scores:
        """The untouched base as a point: its copy_excess and loss_gap are 0 by construction."""
        return evaluate(self.references, self.references.base)

    def real_scores(self) -> Scores:
        """The floor: real pictures of both sides as if they had been generated. Quality only."""
        return real_floor(self.references)

    def measure(self, on_stage: Stage = lambda stage: None) -> tuple[Measured, np.ndarray]:
        """Pictures and losses of the U-Net as it is now, and the pixels made from twin captions."""
        on_stage("generating")
        (train_latents, train_pixels), (twin_latents, twin_pixels) = self.generate("train"), self.generate("twin")
        on_stage("scoring")
        own = self.own()
        measured = Measured(Generated(self.encoder.encode(train_pixels), own, train_latents),
                            Generated(self.encoder.encode(twin_pixels), own, twin_latents), self.losses("train"), self.losses("twin"))
        return measured, twin_pixels

    def apply(self, candidate: Candidate, seed: int) -> Subset:
        """Make the candidate's parameters trainable; the caller must `restore` the subset."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # an adapter's initial factors
            return method(candidate.method).apply(self.pipeline.unet, self.units, candidate)

    def evaluate(self, candidate: Candidate, number: int, on_stage: Stage = lambda stage: None, keep: Path | None = None) -> Result:
        """Fine-tune, generate, score. `number` is the trial's: it seeds training, so that a trial can be repeated exactly.

        keep: file for the subset's tensors, or None. Raises TrainingDiverged, BadSelection: the candidate's own fault.
        """
        started = time.monotonic()
        seed = seed_of(self.settings.seed, TRAINING_STREAM, number)
        every = max(candidate.steps // STAGES_A_TRAINING, 1)
        begun: dict[str, float] = {}

        def begin(stage: str) -> None:
            on_stage(stage)
            begun[stage] = time.monotonic()

        subset = self.apply(candidate, seed)
        try:
            done = fit(self.pipeline.unet, self.scheduler, subset, self.examples["train"], self.plan(candidate, seed),
                       lambda step: on_stage(f"step {step} of {candidate.steps}") if step == 1 or step % every == 0 else None)
            measured, twin_pixels = self.measure(begin)
            encoded = time.monotonic()
            if keep is not None:
                checkpoint.save(keep, subset, candidate, self.pipeline.hash)
            trainable = subset.count
        finally:
            subset.restore()
        restored = time.monotonic()
        scores = evaluate(self.references, measured)
        ended = time.monotonic()
        seconds = {"training": done.seconds, "generating": begun["scoring"] - begun["generating"],
                   "scoring": encoded - begun["scoring"] + ended - restored, "total": ended - started}
        return Result(scores, trainable, trainable / self.units.total, done.loss, seconds, twin_pixels)

    def plan(self, candidate: Candidate, seed: int) -> Plan:
        return Plan(candidate.steps, candidate.learning_rate, self.settings.batch_size, seed, precision=self.settings.precision)

    def path(self, candidate: Candidate, number: int, at: tuple[int, ...], side: str = "train",
             measure: Callable[[], Any] | None = None) -> dict[int, Any]:
        """One training of max(at) steps, measured at several numbers of steps: what each shorter training would have been.

        That holds because the learning rate does not depend on the steps to come. Gives, by steps, what `measure` gives
        there: by default what was measured and the pixels made from twin captions, as `self.measure`. `side` is learned
        from; measured is always train against twin.
        """
        measure = measure or self.measure
        seed = seed_of(self.settings.seed, TRAINING_STREAM, number)
        longest = replace(candidate, steps=max(at))
        subset = self.apply(longest, seed)
        found: dict[int, Any] = {}

        def on_step(step: int) -> None:
            if step in at:
                self.pipeline.unet.eval()
                found[step] = measure()
                self.pipeline.unet.train()

        try:
            fit(self.pipeline.unet, self.scheduler, subset, self.examples[side], self.plan(longest, seed), on_step)
        finally:
            subset.restore()
        return found
