"""The lower level of the bi-level problem: one candidate in, all its scores out. Knows no study and no database."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpo import home
from hpo.errors import BadSetting
from hpo.identity import SHORT, encoder_spec, model_folder, resolution_of
from hpo.preparation import Pictures, Prepared, prepare
from hpo.settings import Settings
from metrics import encoders
from metrics.evaluate import Generated, Measured, PictureSet, References, evaluate, projection_for, real_floor
from metrics.scores import Scores
from trainers import base_model, denoising, held_out, mitigations, sampling
from trainers.cache import key_of, remember
from trainers.candidate import Candidate
from trainers.captions import CaptionEncoder
from trainers.errors import BadModel, BadSelection, NoMemory, NotFinite
from trainers.loss import AUTOCAST
from trainers.methods import BaseCache, Subset, method
from trainers.mitigations.hooks import Guard, Learned
from trainers.plan import Examples, Plan
from trainers.resuming import Checkpoints
from trainers.training import Evaluation, Training
from trainers.units import walk

LOSS_STREAM, NOISE_STREAM, TRAINING_STREAM, MITIGATION_STREAM = range(4)  # independent random streams of one study seed
LOSS_SPAN = (0.0, 0.5)  # part of the noise schedule that the loss gap looks at: there patients differ least (benchmarks/loss_span.py)

BASE = "base"  # the kind of the cached measurements of the untouched base
BASE_VERSION = 3  # of what is cached under "base"
CPU_IS_FULL = "DefaultCPUAllocator: can't allocate memory"  # in the words of torch's plain RuntimeError
LOSS_CURVE = "held-out loss"
STAGES = ("training", LOSS_CURVE, "generating", "scoring")  # what a trial is for; what its seconds are told by
LONGEST_SAID = 200  # characters of torch's words
LOADING = "the base model and the caches, before any training"

Stage = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """What a candidate came to at a number of steps. pictures: (k, H, W) uint8, generated from twin captions, for the trial's note.

    seconds: of each of STAGES, and "total", in which the subset is also applied and kept. curve: the
    held-out loss, (mean on train, mean on twin) by step. memory: bytes at the peak, None where this system does not say.
    """

    scores: Scores
    steps: int
    trainable: int
    trainable_share: float
    training_loss: float
    seconds: dict[str, float]
    pictures: np.ndarray
    curve: dict[int, tuple[float, float]] = field(default_factory=dict)
    memory: int | None = None

    @property
    def spent(self) -> str:
        """The seconds in words."""
        parts = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in self.seconds.items() if stage in STAGES)
        return f"{self.seconds['total']:.2f} s ({parts})"


def seed_of(*parts: int) -> int:
    """One 63-bit seed from several numbers; different numbers give independent streams."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def pick_device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_usable(device: str) -> None:
    """BadSetting where torch has no such device here."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0][:LONGEST_SAID]
        raise BadSetting(f"--device {device}: this machine cannot compute on it ({said}), take cpu or a GPU that nvidia-smi lists") from error


def meaning_of(identity: dict[str, str | int], settings: Settings, device: str) -> str:
    """Key of whatever is measured of a study with that identity: contents, settings that decide what a score means, and the kind of arithmetic."""
    return key_of(BASE_VERSION, identity, settings.meaning(), LOSS_SPAN, denoising.DRAWS, torch.__version__, device.split(":")[0])


def is_prepared(identity: dict[str, str | int], settings: Settings, device: str) -> bool:
    """Whether this machine has in its cache all that is computed once: the untouched base is measured last."""
    return (home.cache_folder() / BASE / meaning_of(identity, settings, device)).is_dir()


class InnerLoop:
    """The loaded base model, the prepared data and the references, for any number of candidates, one at a time.

    The U-Net is the untouched base, bit for bit, before and after `evaluate`, also when that raises.
    """

    def __init__(self, settings: Settings, device: str, on_stage: Stage = lambda stage: None,
                 accept: Callable[[Mapping[str, str | int]], object] = lambda identity: None):
        """accept: is given the identity before anything is measured, and raises what refuses it."""
        on_stage("loading the base model")
        self.settings, self.device = settings, device
        self.pipeline = base_model.load(model_folder(settings), device, AUTOCAST[settings.precision])
        self.units = walk(self.pipeline.unet)
        self.cache = BaseCache(home.cache_folder(), self.pipeline.hash)
        self.resolution = resolution_of(settings)
        self.encoder = encoders.load(encoder_spec(settings), device)
        on_stage("filling the caches")
        self.prepared: Prepared = prepare(settings, self.pipeline, self.resolution)
        accept(self.identity)
        self.states = torch.from_numpy(np.array(self.prepared.states)).to(device)
        self.captions = CaptionEncoder(self.pipeline.source, device, known=([*self.prepared.captions, ""], self.states))
        self.scheduler = self.pipeline.scheduler()
        self.examples = {name: self.examples_of(getattr(self.prepared, name)) for name in ("train", "twin", "second_twin")}
        on_stage("measuring the untouched base")
        self.references = self.measure_base()

    @contextmanager
    def seen_working(self, sign: Callable[[], None]) -> Iterator[None]:
        """`sign` is called whenever a network computes, in whatever thread: at each training and denoising step, and each batch that is decoded or encoded."""
        networks = [self.pipeline.unet, self.pipeline.vae.decoder, *self.encoder.networks]
        hooks = [each.register_forward_pre_hook(lambda *_: sign()) for each in networks]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def examples_of(self, side: Pictures) -> Examples:
        def tensor(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.array(array)).to(self.device)

        return Examples(tensor(side.mean), tensor(side.deviation), self.states, tensor(side.caption))

    @property
    def identity(self) -> dict[str, str | int]:
        """What the scores depend on beside the settings: contents, not paths."""
        return {"resolution": self.resolution.written, "model": self.pipeline.hash[:SHORT], "encoder": self.encoder.content_hash[:SHORT], "data": self.prepared.content}

    @property
    def meaning(self) -> str:
        return meaning_of(self.identity, self.settings, self.device)

    def measure_base(self) -> References:
        """References with the untouched base's own pictures and losses, from the cache if they are there."""
        def make() -> dict[str, np.ndarray]:
            arrays = {}
            for side in ("train", "twin"):
                try:
                    latents, pixels = self.generate(side)
                except NotFinite as error:
                    raise BadModel(f"--model {model_folder(self.settings)}: its U-Net generates latents that are not finite before any training; "
                                   "its weights are damaged, take another copy") from error
                arrays[f"{side}_copies"], arrays[f"{side}_features"] = latents, self.encoder.encode(pixels)
                arrays[f"{side}_losses"] = self.losses(side)
                arrays[f"{side}_pixels"] = pixels
            for name in ("train", "twin", "validate"):
                arrays[f"{name}_own_features"] = self.encoder.encode(getattr(self.prepared, name).pixels)
            return arrays

        found = remember(home.cache_folder(), BASE, self.meaning, make)
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

    def written(self, side: str) -> Said:
        """A side's captions as they are written."""
        examples = self.examples[side]
        return Said(self.states, examples.caption, examples.caption[torch.from_numpy(self.own())])

    def as_trained(self, side: str, candidate: Candidate, learned: Learned) -> Said | None:
        """A side's captions as the training heard them, anew for every picture; None where that is as they are written."""
        texts = [picture.caption for picture in getattr(self.prepared, side).pictures]
        heard = mitigations.as_trained(candidate.mitigations, [*texts, *(texts[row] for row in self.own())], learned)
        if heard is None:
            return None
        rows = torch.arange(len(heard), device=self.device)
        return Said(torch.cat([heard, self.states[-1:]]), rows[: len(texts)], rows[len(texts):])

    def generate(self, side: str, said: Said | None = None, guard: Guard | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Pictures from a side's captions with the U-Net as it is: latents (G, 4·h·w) float32 and pixels (G, H, W) uint8."""
        settings, said = self.settings, said or self.written(side)
        shape = tuple(self.examples[side].mean.shape[1:])
        noise = sampling.initial_noise(settings.generated, shape, seed_of(settings.seed, NOISE_STREAM, side == "twin"))
        latents = sampling.sample(self.pipeline.unet, self.pipeline.scheduler_config, said.states, said.generated.cpu(), noise,
                                  steps=settings.sampling_steps, guidance_scale=settings.guidance_scale,
                                  batch_size=settings.batch_size, precision=settings.precision, guard=guard)
        return latents.flatten(1).cpu().numpy(), sampling.decode(self.pipeline.vae, latents, settings.batch_size)

    def losses(self, side: str, draws: int = denoising.DRAWS, span: tuple[float, float] = LOSS_SPAN, said: Said | None = None) -> np.ndarray:
        said = said or self.written(side)
        examples = replace(self.examples[side], states=said.states, caption=said.pictures)
        return denoising.losses(self.pipeline.unet, self.scheduler, examples, seed_of(self.settings.seed, LOSS_STREAM, side == "twin"),
                                draws=draws, span=span, batch_size=self.settings.batch_size, precision=self.settings.precision)

    def base_scores(self) -> Scores:
        """The untouched base as a point: its copy_excess and loss_gap are 0 by construction."""
        return evaluate(self.references, self.references.base)

    def real_scores(self) -> Scores:
        """The floor: real pictures of both sides as if they had been generated. Quality only."""
        return real_floor(self.references)

    def measure(self, on_stage: Stage = lambda stage: None, train: Said | None = None, twin: Said | None = None,
                guard: Guard | None = None) -> tuple[Measured, np.ndarray]:
        """Pictures and losses of the U-Net as it is now, and the pixels made from twin captions. train, twin: what the captions of either side
        are said as, if not as they are written; guard: mitigations of generation."""
        on_stage("generating")
        (train_latents, train_pixels), (twin_latents, twin_pixels) = self.generate("train", train, guard), self.generate("twin", twin, guard)
        on_stage("scoring")
        own = self.own()
        measured = Measured(Generated(self.encoder.encode(train_pixels), own, train_latents),
                            Generated(self.encoder.encode(twin_pixels), own, twin_latents), self.losses("train", said=train), self.losses("twin", said=twin))
        return measured, twin_pixels

    def guard(self, candidate: Candidate, learned: Learned) -> Guard | None:
        """The candidate's mitigations of generation at work, None if it has none."""
        hooks = mitigations.generation_hooks(candidate.mitigations, learned)
        return Guard(tuple(hooks), [*self.prepared.captions, ""], self.captions.encode) if hooks else None

    def measure_all(self, candidate: Candidate, learned: Learned, on_stage: Stage = lambda stage: None) -> tuple[list[Measured], np.ndarray]:
        """As `measure`, with the captions as they are written, and once more as the training heard them where a mitigation changes that:
        else it would only hide what was copied."""
        guard = self.guard(candidate, learned)
        found = [self.measure(on_stage, guard=guard)]
        train, twin = (self.as_trained(side, candidate, learned) for side in ("train", "twin"))
        if train is not None:
            found.append(self.measure(on_stage, train, twin))
        return [measured for measured, _ in found], found[0][1]

    def scores(self, measured: list[Measured]) -> Scores:
        """Of several measurements of one model, of each score the worse."""
        return reduce(Scores.worse, (evaluate(self.references, each) for each in measured))

    def learned(self, side: str, seed: int) -> Learned:
        """What mitigations may know of what is learned from."""
        pictures: Pictures = getattr(self.prepared, side)
        return Learned([*self.prepared.captions, ""], np.array(pictures.caption), self.captions.encode, self.captions.random_word,
                       lambda: self.encoder.encode(pictures.pixels), seed_of(seed, MITIGATION_STREAM))

    def apply(self, candidate: Candidate, seed: int) -> Subset:
        """Make the candidate's parameters trainable; the caller must `restore` the subset. Raises BadSelection."""
        mitigations.check(candidate.mitigations)
        if self.settings.protects == mitigations.WEIGHTS and (others := mitigations.in_order(candidate.mitigations, mitigations.OUTPUTS)):
            raise BadSelection(f"mitigation {others[0].mitigation} protects outputs, this study's front is of released weights: "
                               "start a study with --protects outputs for it")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # an adapter's initial factors
            chosen = method(candidate.method)
            chosen.check(candidate)
            return chosen.apply(self.pipeline.unet, self.units, candidate, self.cache)

    def training(self, candidate: Candidate, seed: int, subset: Subset, learned: Learned, side: str = "train", on_step: Callable[[int], None] = lambda step: None,
                 evaluations: Sequence[Evaluation] = (), state: Path | None = None) -> Training:
        """Fine-tunes the subset in place. state: file from which a training that was stopped goes on; written when it is asked to."""
        return Training(self.pipeline.unet, self.scheduler, subset, self.examples[side], self.plan(candidate, seed), rates=subset.rates(candidate),
                        hooks=mitigations.training_hooks(candidate.mitigations, learned), encode=self.captions.encode, evaluations=evaluations,
                        checkpoints=None if state is None else self.checkpoints(candidate, side, state), on_step=on_step)

    def checkpoints(self, candidate: Candidate, side: str, state: Path) -> Checkpoints:
        belongs = {"candidate": candidate.root, "base": self.pipeline.hash, "data": self.prepared.content, "side": side}
        return Checkpoints(state, 0, belongs, anew=True)

    def kept_step(self, candidate: Candidate, repeat: int, state: Path) -> int | None:
        """How far a state goes from which this candidate could go on; None where there is none, or one of another training."""
        return self.checkpoints(candidate, "train", state).step(self.plan(candidate, self.training_seed(candidate, repeat)))

    def evaluate(self, candidate: Candidate, repeat: int = 0, on_stage: Stage = lambda stage: None, keep: Path | None = None) -> Result:
        """Fine-tune for all steps, generate, score. repeat: another one is another seed. keep: file for the subset's tensors, or None.

        Raises TrainingDiverged, BadSelection, NoMemory, NotFinite: the candidate's own fault.
        """
        from hpo.tuning import Tuning

        with Tuning(self, candidate, repeat, on_stage) as tuning:
            result = tuning.to(candidate.steps)
            if keep is not None:
                tuning.keep(keep)
        return result

    def held_out(self, found: held_out.Curve) -> list[Evaluation]:
        """The curve of the held-out loss, if the settings ask for one."""
        settings = self.settings
        if not settings.held_out_every:
            return []
        return [held_out.curve(self.pipeline.unet, self.scheduler, self.examples["train"], self.examples["twin"], every=settings.held_out_every,
                               seed=seed_of(settings.seed, LOSS_STREAM), found=found, batch_size=settings.batch_size, precision=settings.precision)]

    def plan(self, candidate: Candidate, seed: int) -> Plan:
        given = self.settings
        return Plan(candidate.steps, candidate.learning_rate, given.batch_size, seed, caption_dropout=given.caption_dropout,
                    max_grad_norm=given.max_grad_norm, precision=given.precision, optimizer=given.optimizer, schedule=given.schedule,
                    schedule_steps=given.steps, warmup_steps=given.warmup_steps, accumulate=given.accumulate, min_snr_gamma=given.min_snr_gamma,
                    noise_offset=given.noise_offset, ema_decay=given.ema_decay, gradient_checkpointing=given.gradient_checkpointing)

    def seed(self, *parts: int) -> int:
        """Of a training; different parts give independent ones."""
        return seed_of(self.settings.seed, TRAINING_STREAM, *parts)

    def training_seed(self, candidate: Candidate, repeat: int = 0) -> int:
        """The same for all numbers of steps, so that a rung is the candidate with fewer steps."""
        return self.seed(int(candidate.root, 16), repeat)

    def path(self, candidate: Candidate, seed: int, at: tuple[int, ...], side: str = "train",
             measure: Callable[[], Any] | None = None) -> dict[int, Any]:
        """One training of max(at) steps, measured at several numbers of steps: what each shorter training would have been.

        That holds because the learning rate does not depend on the steps to come. Gives, by steps, what `measure` gives
        there: by default as `measure_all`. `side` is learned from; measured is always train against twin.
        """
        learned = self.learned(side, seed)
        measure = measure or (lambda: self.measure_all(candidate, learned))
        longest = replace(candidate, steps=max(at))
        found: dict[int, Any] = {}
        subset = self.apply(longest, seed)
        try:
            with self.training(longest, seed, subset, learned, side) as training:
                for steps in sorted(at):
                    training.run_to(steps)
                    with training.evaluating():
                        found[steps] = measure()
        finally:
            subset.restore()
        return found


@dataclass(frozen=True)
class Said:
    """What the U-Net is given for the captions of a side. states: (k, tokens, width), the empty caption's last; pictures: (n,) rows of it for
    the side's pictures, generated: (G,) for those that are generated."""

    states: torch.Tensor
    pictures: torch.Tensor
    generated: torch.Tensor


class Clock:
    """Seconds by stage, from one `stage` to the next or to `stop`; stages are passed on."""

    def __init__(self, on_stage: Stage):
        self.on_stage, self.seconds, self.stage, self.since = on_stage, {}, None, 0.0

    def __call__(self, stage: str) -> None:
        self.stop()
        self.on_stage(stage)
        self.stage, self.since = stage, time.monotonic()

    def stop(self) -> None:
        if self.stage is not None:
            self.add(self.stage, time.monotonic() - self.since)
            self.stage = None

    def add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def timed(self, stage: str, work: Callable[[int], None]) -> Callable[[int], None]:
        """Work within other stages that is not passed on as one of its own."""
        def run(step: int) -> None:
            since = time.monotonic()
            work(step)
            self.add(stage, time.monotonic() - since)

        return run


@contextmanager
def memory_named(words: str, settings: Settings) -> Iterator[None]:
    """Raises NoMemory, with what was needed and the flags that lower it, where the memory is not enough. words: what it was needed for."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch has an error of its own for GPUs only
        said = (str(error).splitlines() or [type(error).__name__])[0]
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and CPU_IS_FULL not in said:
            raise
        torch.cuda.empty_cache()
        raise NoMemory(words, said.partition("DefaultCPUAllocator: ")[2] or said, settings.batch_size) from error
