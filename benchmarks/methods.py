"""`python -m benchmarks.methods` writes docs/methods.md: the methods, what each was seen to keep, and what of PEFT is left out and why.

The properties are checked by `trainers.methods.conformance`, as in the tests.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version

import torch

from benchmarks.documents import table, write_part
from trainers.errors import TrainingDiverged
from trainers.methods import METHODS, Method
from trainers.methods.conformance import LIMITS, PROPERTIES, Snapshot, Specimen, Verdict, base, close, examine, faultless, merging, output, specimen, train
from trainers.methods.peft_adapter import CONVOLUTION, LINEAR, Shape, Tuner
from trainers.methods.peft_tuners import TUNERS
from trainers.units import REGIONS, walk

FILE = "methods.md"
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16 base under autocast"}
PICTURES, REPEATS = 16, 7  # of a timed step; the quickest of the repeats counts, since other programs only add to the time
OWN = next(each for each in TUNERS if each.name == "oft")


def uncounted(shape: Shape, rank: int) -> int:
    raise NotImplementedError


def tried(name: str, config: str, layers: tuple[str, ...] = (LINEAR,), **more) -> Tuner:
    return Tuner(name, name, config, "", uncounted, (1e-3, 1e-3), 1e-3, layers=layers, rank_name=None, **more)


# (what, on which kinds, in which precision, why it fails as far as PEFT's code tells)
LEFT_OUT = (
    (replace(OWN, title="OFT on 3 × 3 convolutions", layers=(*OWN.layers, CONVOLUTION)), ("resnet",), "fp32",
     "in training it rotates unfolded patches and adds up their overlaps when it folds them, in merging it rotates the kernel"),
    (tried("FourierFT", "FourierFTConfig", options={"n_frequency": 100}), ("cross-attention",), "fp32",
     "its spectrum starts random; from zeros it would pass, at the price of a dense transform of each matrix at each step"),
    (tried("C3A", "C3AConfig", options={"block_size": 16}), ("cross-attention",), "fp32", "its kernels start random; from zeros it would pass"),
    (tried("VB-LoRA", "VBLoRAConfig", options={"num_vectors": 16, "vector_length": 16, "topk": 2, "r": 4}), ("cross-attention",), "fp32",
     "its bank of vectors starts random, and so does what is picked from it"),
    (tried("LoRA with PiSSA's start", "LoraConfig", options={"r": 4, "lora_alpha": 4, "init_lora_weights": "pissa"}), ("cross-attention",), "fp32",
     "takes the principal part out of the base's weights"),
    (tried("DeLoRA", "DeloraConfig", options={"r": 4}), ("cross-attention",), "fp16",
     "divides by the length of a factor that begins at 0, taken as 1e-4 at least, and the quotient overflows in fp16; in fp32 and bf16 it would pass"))
NOT_ADDED = """What is no line of the table for other reasons, and what is peculiar:

- **AdaLoRA** prunes its ranks on a schedule that the training loop has to drive, and adds to the loss.
- **BOFT with several butterfly factors**: PEFT sets the factor to 1 wherever its CUDA kernel does not compile, without an error, so that one candidate would be different
  methods on different machines. With one factor it is OFT by the exact Cayley transform with a scale for each output.
- **WaveFT** computes a dense wavelet transform of every adapted matrix at every step, and has a number of coefficients in the place of a rank.
- **X-LoRA, Poly, prompt and prefix tuning** are made for language models.
- **IA3** here scales the outputs of all layers that are chosen; the paper scales keys, values and the inner activations of the feed-forward layers.
- **BOFT and HRA on convolutions** turn them by a matrix of (inputs · k · k)², in SD v1.5 up to 23,040² or 2.1 GB in float32 for one layer.
- **HiRA**'s rank patterns are not heeded by PEFT 0.21.2, so that different ranks are adapters of their own here.
- **LoKr** trains its second factor whole where the rank is at least half of its larger side, so that higher ranks are the same method."""


def kept(methods: Iterable[Method], precision: str) -> str:
    """The table method × property."""
    rows = []
    for method in methods:
        verdicts = examine(specimen(method, precision))
        rows.append([method.title, *(mark(verdicts[name]) for name in PROPERTIES)])
        print(rows[-1], flush=True)
    return table(["method", *PROPERTIES], rows)


def mark(verdict: Verdict) -> str:
    return verdict.said if verdict.holds else f"**no**: {verdict.said}"


def overview(methods: Iterable[Method], steps: dict[str, float]) -> str:
    rows = []
    for method in methods:
        tuner = isinstance(method, Tuner)
        ranks = f"{method.rank_means}: {', '.join(map(str, method.ranks))}" if tuner and method.ranks else "–"
        rows.append([f"`{method.name}`", method.title, ", ".join(method.layers) if tuner else "–", ranks, "; ".join(", ".join(kinds) for kinds in method.kinds),
                     " … ".join(f"{rate:g}" for rate in method.learning_rates), f"{steps[method.name] / steps['bias']:.1f}", method.paper or "–"])
    return table(["name", "method", "layers that it wraps", "ranks of the search", "kinds of the search", "learning rates of the search", "time of a step", "paper"], rows)


def step_seconds(method: Method) -> float:
    """Seconds of the processor for one step on `PICTURES` pictures, with the method's first choice of kinds everywhere."""
    unet = base("fp32")
    subset = Specimen(method, REGIONS, method.kinds[0]).apply(unet, walk(unet))
    latents, states = torch.randn(PICTURES, 4, 8, 8), torch.randn(PICTURES, 77, 64)
    seconds = []
    for _ in range(REPEATS):
        started = time.process_time()
        unet(latents, torch.full((PICTURES,), 500), states).sample.square().mean().backward()
        seconds.append(time.process_time() - started)
    subset.restore()
    return min(seconds)


def failing(method: Tuner, kinds: tuple[str, ...], precision: str) -> dict[str, Verdict]:
    """What is left out, by the same checks as what is not."""
    subject, unet = Specimen(method, REGIONS, kinds, precision), base(precision)
    before, said, units = Snapshot(unet), output(unet, precision), walk(unet)
    subset = subject.apply(unet, units)
    start = close("start", output(unet, precision), said, precision)
    try:
        train(unet, subset, precision)
        merged = merging(unet, subset, output(unet, precision), precision)
    except TrainingDiverged as error:
        merged = Verdict(False, f"loss {error.loss} at step {error.step}")
    subset.restore()
    return {"start": start, "merging": merged, "restoring": faultless(before.faults())}


def left_out() -> str:
    rows = []
    for method, kinds, precision, reason in LEFT_OUT:
        verdicts = failing(method, kinds, precision)
        rows.append([method.title, precision, *(mark(verdict) for verdict in verdicts.values()), reason])
        print(rows[-1], flush=True)
        if all(verdict.holds for verdict in verdicts.values()):
            print(f"{method.title} passes with this version of PEFT: give it a line in trainers/methods/peft_tuners.py")
    return table(["tuner", "precision", "start", "merging", "restoring", "why"], rows)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    versions = ", ".join(f"{package} {version(package)}" for package in ("peft", "torch", "diffusers")) + f", Python {platform.python_version()}, CPU"
    made = f"Made by `python -m benchmarks.methods` with {versions}."
    steps = {name: step_seconds(method) for name, method in METHODS.items()}
    write_part(FILE, "overview", f"{made} The time of a step is the processor's on the miniature, of bias tuning = 1. A rank is at most what the narrowest "
               f"layer has room for; what has no rank is given none.\n\n{overview(METHODS.values(), steps)}")
    explained = "\n".join(f"- **{name}**: {words}" + (f" (float32: within {LIMITS[name]['fp32']:g} of the largest output)" if name in LIMITS else "")
                          for name, words in PROPERTIES.items())
    write_part(FILE, "properties", f"{explained}\n\nEach is looked at on the miniature's U-Net with random weights, tuners on every sort of layer that they wrap, "
               "after real training steps. A number is the largest difference in the output, relative to its largest value; in bfloat16 it is that of rounding, "
               "which falls otherwise where weights are merged or rotated.")
    for precision, words in PRECISIONS.items():
        write_part(FILE, precision, f"{made} {words[0].upper()}{words[1:]}.\n\n{kept(METHODS.values(), precision)}")
    write_part(FILE, "left out", f"{made} Of PEFT's tuners these fail:\n\n{left_out()}\n\n{NOT_ADDED}")


if __name__ == "__main__":
    main()
