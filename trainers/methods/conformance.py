"""What every method must keep, checked in one life of a subset on the miniature's U-Net with random weights: counted, applied,
trained, saved, merged, restored. The tests and docs/methods.md are made from the same checks."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from trainers import checkpoint
from trainers.candidate import Candidate
from trainers.errors import BadSelection, TrainingDiverged
from trainers.fit import fit
from trainers.loss import AUTOCAST, autocast
from trainers.methods.base import Method, Subset
from trainers.methods.peft_adapter import CONVOLUTION, LINEAR, POINTWISE, Tuner
from trainers.plan import Examples, Plan
from trainers.units import REGIONS, Units, walk

PROPERTIES = {
    "count": "the declared number of trainable elements is what the optimizer holds and steps, and counting changes nothing",
    "frozen": "all that is not selected is frozen, also in a U-Net that came trainable",
    "float32": "what is trained is float32",
    "start": "at the start the U-Net computes what the base does",
    "gradients": "each selected parameter has a gradient that is not zero, and no other parameter has one",
    "training": "training moves each selected tensor and no other bit",
    "generating": "while pictures are generated the U-Net computes what it does in training",
    "loading": "saved to a file and loaded into a new subset: the same output",
    "merging": "merged in float32 into a plain U-Net: the same output",
    "restoring": "after training the base is back bit for bit, with its modules, hooks and flags",
    "interrupted": "so it is after an exception in the middle of training",
    "not finite": "and after weights that are not finite",
    "refusing": "tensors of another candidate are refused before any is set, and so is a selection with nothing to train",
}
# Largest difference in the output, relative to its largest value. In bf16 it is that of rounding: a merged or rotated weight rounds otherwise.
LIMITS = {"start": {"fp32": 1e-5, "bf16": 5e-2, "fp16": 5e-3}, "generating": {"fp32": 1e-5, "bf16": 5e-2, "fp16": 5e-3},
          "loading": {"fp32": 1e-6, "bf16": 1e-6, "fp16": 1e-6}, "merging": {"fp32": 1e-5, "bf16": 5e-2, "fp16": 5e-3}}
LEAST_MOVE = 1e-4  # of the output by training, so that what is compared afterwards is no adapter at its start
STEPS, RATE = 2, 0.1  # the warm-up takes a tenth of the rate at the first
TOKENS = 5  # fewer than a text encoder's 77, for speed: the U-Net takes any number
SPECIMEN = {LINEAR: ("self-attention", "cross-attention", "feed-forward"), POINTWISE: ("projection",), CONVOLUTION: ("resnet",)}


@dataclass(frozen=True)
class Verdict:
    """holds: whether a property does; said: a measured difference, or the first fault."""

    holds: bool
    said: str


@dataclass(frozen=True)
class Specimen:
    """A method on some units in one precision."""

    method: Method
    regions: tuple[str, ...]
    kinds: tuple[str, ...]
    precision: str = "fp32"

    @property
    def candidate(self) -> Candidate:
        ranks = self.method.ranks
        return Candidate.of(self.method.name, self.regions, self.kinds, RATE, STEPS, ranks[min(1, len(ranks) - 1)] if ranks else None)

    def apply(self, unet, units: Units, seed: int = 0) -> Subset:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.method.apply(unet, units, self.candidate)


def specimen(method: Method, precision: str = "fp32") -> Specimen:
    """The method as the search uses it first; a tuner on each sort of layer that it wraps, in the middle block, for speed."""
    if isinstance(method, Tuner) and LINEAR in method.layers:
        return Specimen(method, ("mid",), tuple(kind for sort in method.layers for kind in SPECIMEN[sort]), precision)
    return Specimen(method, REGIONS, method.kinds[0], precision)


def examine(subject: Specimen) -> dict[str, Verdict]:
    """The verdict on each of `PROPERTIES`. What a method raises where it should not is raised."""
    unet, found = base(subject.precision), {}
    units, before, said = walk(unet), Snapshot(unet), output(unet, subject.precision)
    declared = subject.method.count(unet, units, subject.candidate)
    counting = before.faults()

    unet.requires_grad_(True)
    subset = subject.apply(unet, units)
    start, frozen = subset.tensors(), others(unet, subset)
    found["frozen"] = faultless([name for name, parameter in unet.named_parameters() if parameter.requires_grad and name in frozen])
    found["float32"] = faultless([name for name, parameter in subset.parameters.items() if parameter.dtype != torch.float32])
    found["start"] = close("start", output(unet, subject.precision), said, subject.precision)

    flat: list[str] = []
    held = train(unet, subset, subject.precision, lambda step: flat.extend(gradients(unet, subset) if step == STEPS else ()))
    found["count"] = faultless(counting + ([] if declared == subset.count == held else [f"{declared} declared, {subset.count} there, {held} held"]))
    found["gradients"] = faultless(flat)
    trained = output(unet.train(), subject.precision)
    unet.eval()
    found["training"] = moved(unet, subset, start, frozen, difference(trained, said))
    found["generating"] = generating(unet, subset, trained, subject.precision)
    found["merging"] = merging(unet, subset, trained, subject.precision)
    found["refusing"] = refusing(subset)

    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder) / "kept.safetensors", subset, subject.candidate, "base")
        subset.restore()
        found["restoring"] = faultless(before.faults() + ([] if torch.equal(output(unet, subject.precision), said) else ["another output"]))
        tensors = checkpoint.read(Path(folder) / "kept.safetensors").tensors
    again = subject.apply(unet, units, seed=99)
    again.load(tensors)
    found["loading"] = close("loading", output(unet, subject.precision), trained, subject.precision)
    again.restore()

    found["interrupted"] = spoilt(subject, unet, units, before, KeyboardInterrupt, interrupt)
    found["not finite"] = spoilt(subject, unet, units, before, TrainingDiverged, lambda step: None, float("nan"))
    found["refusing"] = faultless(empty(subject, unet, units) + before.faults()) if found["refusing"].holds else found["refusing"]
    return {name: found[name] for name in PROPERTIES}


@cache
def template(precision: str):
    from trainers.miniature import architecture

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = architecture.unet().eval().requires_grad_(False)
    for parameter in unet.parameters():
        parameter.data = parameter.data.to(AUTOCAST[precision] or torch.float32)
    return unet


def base(precision: str):
    """The miniature's U-Net with the same random weights each time, frozen, stored in the precision."""
    return copy.deepcopy(template(precision))


@cache
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, timesteps and text states of two pictures."""
    from trainers.miniature.architecture import TEXT_WIDTH

    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([10, 900]), torch.randn(2, TOKENS, TEXT_WIDTH, generator=generator)


def examples(mean: float | None = None) -> Examples:
    """Ten pictures with four captions; mean: all latents have it, if given."""
    from trainers.miniature.architecture import TEXT_WIDTH

    generator = torch.Generator().manual_seed(1)
    latents, deviation = torch.randn(10, 4, 8, 8, generator=generator), 0.1 * torch.rand(10, 4, 8, 8, generator=generator)
    states = torch.randn(5, TOKENS, TEXT_WIDTH, generator=generator)
    return Examples(latents if mean is None else torch.full_like(latents, mean), deviation, states, torch.arange(10) % 4)


@torch.no_grad()
def output(unet, precision: str) -> torch.Tensor:
    with autocast(torch.device("cpu"), precision):
        return unet(*inputs()).sample.float()


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest of two outputs, relative to the second's largest value."""
    return float((one - other).abs().max() / other.abs().max())


def close(name: str, one: torch.Tensor, other: torch.Tensor, precision: str) -> Verdict:
    far = difference(one, other)
    return Verdict(far <= LIMITS[name][precision], "exact" if far == 0 else f"{far:.0e}")


def faultless(faults: list[str]) -> Verdict:
    return Verdict(not faults, faults[0] if faults else "yes")


def others(unet, subset: Subset) -> dict[str, torch.Tensor]:
    """Copies of the parameters that are not the subset's."""
    own = {id(parameter) for parameter in subset.parameters.values()}
    return {name: parameter.detach().clone() for name, parameter in unet.named_parameters() if id(parameter) not in own}


def train(unet, subset: Subset, precision: str, on_step: Callable[[int], None] = lambda step: None, mean: float | None = None) -> int:
    """A short training. Gives the elements that the optimizer holds and has a state for."""
    from diffusers import DDPMScheduler

    from trainers.miniature import architecture

    scheduler = DDPMScheduler.from_config(architecture.scheduler().config)
    with optimizers() as seen:
        fit(unet, scheduler, subset, examples(mean), Plan(steps=STEPS, learning_rate=RATE, batch_size=3, seed=5, precision=precision), on_step)
    (optimizer,) = seen
    return sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"] if parameter in optimizer.state)


@contextmanager
def optimizers() -> Iterator[list[torch.optim.Optimizer]]:
    """The optimizers that take a step inside."""
    seen: list[torch.optim.Optimizer] = []
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: seen.append(optimizer) if optimizer not in seen else None)
    try:
        yield seen
    finally:
        hook.remove()


def gradients(unet, subset: Subset) -> list[str]:
    """Faults at the last step, when what began at zero, and so let no gradient through to others, no longer is."""
    own = {id(parameter) for parameter in subset.parameters.values()}
    faults = [f"{name} has no gradient" for name, parameter in subset.parameters.items() if parameter.grad is None or not parameter.grad.any()]
    return faults + [f"{name} has a gradient" for name, parameter in unet.named_parameters() if parameter.grad is not None and id(parameter) not in own]


def moved(unet, subset: Subset, start: dict[str, torch.Tensor], frozen: dict[str, torch.Tensor], by: float) -> Verdict:
    now = subset.tensors()
    faults = [f"{name} stood still" for name in now if torch.equal(now[name], start[name])]
    faults += [f"{name} moved" for name, tensor in others(unet, subset).items() if not torch.equal(tensor, frozen[name])]
    for tensor in now.values():
        tensor.fill_(7.0)
    faults += [f"{name} can be written through its copy" for name, parameter in subset.parameters.items() if (parameter == 7.0).all()]
    return faultless(faults + ([] if by > LEAST_MOVE else [f"the output moved by {by:.0e}"]))


def generating(unet, subset: Subset, trained: torch.Tensor, precision: str) -> Verdict:
    with subset.generating():
        inside = output(unet, precision)
    after = output(unet, precision)
    return close("generating", inside, trained, precision) if torch.equal(after, trained) else Verdict(False, "another output afterwards")


def merging(unet, subset: Subset, trained: torch.Tensor, precision: str) -> Verdict:
    merged, unwrapped = subset.merged(), base(precision).float()
    known = unwrapped.state_dict()
    faults = [f"{name} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device.type}" for name, tensor in merged.items()
              if name not in known or tensor.shape != known[name].shape or tensor.dtype != torch.float32 or tensor.device.type != "cpu"]
    if faults or not torch.equal(output(unet, precision), trained):
        return faultless(faults + ["the U-Net was touched"])
    unwrapped.load_state_dict(merged, strict=False)
    return close("merging", output(unwrapped, "fp32"), trained, precision)


def refusing(subset: Subset) -> Verdict:
    start, faults = subset.tensors(), []
    last = list(start)[-1]
    for spoil in (lambda tensors: tensors.pop(last), lambda tensors: tensors.update({last: torch.zeros(1, 2, 3, 4, 5)})):
        wrong = {name: torch.full_like(tensor, 7.0) for name, tensor in start.items()}
        spoil(wrong)
        try:
            subset.load(wrong)
            faults.append(f"{last} of another candidate was loaded")
        except BadSelection as error:
            faults += [] if last in str(error) and "\n" not in str(error) else [str(error)]
    return faultless(faults + [f"{name} was set" for name, tensor in subset.tensors().items() if not torch.equal(tensor, start[name])])


def empty(subject: Specimen, unet, units: Units) -> list[str]:
    """Faults on a selection with nothing to train: the middle block changes no resolution."""
    nothing, faults = Specimen(subject.method, ("mid",), ("resampling",)), []
    for ask in (lambda: nothing.apply(unet, units), lambda: subject.method.count(unet, units, nothing.candidate)):
        try:
            ask()
            faults.append("an empty selection was taken")
        except BadSelection as error:
            faults += [] if "\n" not in str(error) else [str(error)]
    return faults


def interrupt(step: int) -> None:
    if step == STEPS:
        raise KeyboardInterrupt


def spoilt(subject: Specimen, unet, units: Units, before: Snapshot, expected: type[BaseException], on_step: Callable[[int], None],
           mean: float | None = None) -> Verdict:
    """Whether the base is back after a training that ended in an exception."""
    subset = subject.apply(unet, units)
    start = subset.tensors()
    try:
        train(unet, subset, subject.precision, on_step, mean)
        faults = [f"no {expected.__name__} was raised"]
    except expected:
        faults = []
    still = all(torch.equal(tensor, start[name]) for name, tensor in subset.tensors().items())
    if still and subject.precision != "fp16":  # there the scaler of the loss leaves out steps whose gradients are not finite
        faults.append("nothing was trained, so nothing is proved")
    subset.restore()
    return faultless(faults + before.faults())


class Snapshot:
    """A U-Net as it is, to be compared with what it is later."""

    def __init__(self, unet):
        self.unet = unet
        self.tensors = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
        self.modules = self.structure()

    def structure(self) -> dict[str, tuple]:
        """Each module itself, its attributes, and how many hooks it has."""
        return {name: (module, set(vars(module)), getattr(module, "processor", None),
                       sum(len(hooks) for attribute, hooks in vars(module).items() if attribute.endswith("_hooks")))
                for name, module in self.unet.named_modules()}

    def faults(self) -> list[str]:
        """What differs, in words; nothing if all is as it was, in evaluation mode, frozen and without gradients."""
        now, modules = self.unet.state_dict(), self.structure()
        faults = [f"module {name}" for name in self.modules.keys() ^ modules.keys()]
        faults += [f"{name} is another module or was changed" for name in self.modules.keys() & modules.keys() if self.modules[name] != modules[name]]
        faults += [f"tensor {name}" for name in self.tensors.keys() ^ now.keys()]
        faults += [f"{name} has other bits" for name in self.tensors.keys() & now.keys() if not same(self.tensors[name], now[name])]
        faults += [f"{name} is trainable or has a gradient" for name, each in self.unet.named_parameters() if each.requires_grad or each.grad is not None]
        return faults + [f"{name} is in training mode" for name, module in self.unet.named_modules() if module.training]


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)
