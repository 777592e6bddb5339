"""`python -m benchmarks.sd15` writes docs/sd15.md: what memory each method needs on Stable Diffusion v1.5, and where it must be looked for.

What is said of GPUs is counted on tensors without values (`benchmarks.footprint`). With `--model DIR`, a folder of `benchmarks.random_sd15`, one
real trial each of `bias` and `svdiff` runs on this machine's CPU beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from benchmarks.documents import table, write_part
from benchmarks.footprint import Footprint, decoding, encoding, footprints, generating
from hpo.settings import READY, from_toml
from hpo.spaces.reference import reference_candidate
from trainers.data.resolution import Resolution
from trainers.methods import METHODS

DOCUMENT = "sd15.md"
GB = 1e9
SIZES = ((256, 1), (256, 8), (512, 1), (512, 8))  # pixels a side, pictures a batch
PRECISION = "bf16"
CHECKED = ("bias", "svdiff")
# Of the trial that is run: the issue's, of two steps and two pictures.
TRIAL = {"resolution": 256, "steps": 2, "generated": 2, "train-images": 2, "batch-size": 2, "sampling-steps": 2, "encoder": "pixels", "device": "cpu"}
VAE, TEXT_ENCODER = 83_653_863 * 4, 123_060_480 * 4  # bytes in fp32
OUTSIDE = 1.0  # GB: CUDA's context, work spaces of cuDNN and cuBLAS, what the allocator cannot use; a rule of thumb, no GPU was measured


def gb(size: float) -> str:
    return f"{size / GB:.2f}" if size < 10 * GB else f"{size / GB:.1f}"


def row(name: str) -> list[str]:
    """A line of the table of methods; dashes where PyTorch does not know the shapes of a method's backward pass."""
    method = METHODS[name]
    try:
        found = footprints(reference_candidate(name, 1), SIZES, PRECISION)
    except RuntimeError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return [f"`{name}`", method.title, *["–"] * (3 + len(SIZES))]
    one: Footprint = next(iter(found.values()))
    return [f"`{name}`", method.title, f"{one.trainable:,}", gb(one.resident), gb(one.state), *(gb(each.peak + VAE) for each in found.values())]


def methods_part(names: Iterable[str]) -> str:
    rows = []
    for name in names:
        rows.append(row(name))
        print(rows[-1], flush=True)
    head = ["`--method`", "", "trainable", "U-Net, GB", "gradients, AdamW", *(f"peak, {resolution} × {resolution}, batch {batch}" for resolution, batch in SIZES)]
    return ("Made by `python -m benchmarks.sd15`. A training step in bf16, on all blocks, of each method's first choice of kinds, rank 16 or its nearest. U-Net: the "
            f"frozen weights in bf16 with the trained values in fp32 and what the method adds. Peak: the most during a step, with the VAE ({gb(VAE)} GB, fp32) and "
            f"temporary tensors; a GPU needs about {OUTSIDE:g} GB more for CUDA itself. In GB, 10⁹ bytes. `--gradient-checkpointing` and `--accumulate` lower what "
            "the batch takes. A line of dashes: PyTorch does not know the shapes of that method's backward pass without values (SHiRA's sparse tensors).\n\n"
            + table(head, rows))


def around_part() -> str:
    """What else a trial does on the GPU, and when it is more than the training."""
    rows = []
    for resolution in sorted({resolution for resolution, _ in SIZES}):
        rows += [[f"{resolution} × {resolution}", str(batch), gb(generating(resolution, batch, PRECISION)), gb(decoding(resolution, batch))] for batch in (1, 8, 16)]
    return ("Generating and decoding keep nothing for a backward pass, but decode in fp32 at full size: with `--batch-size` pictures at a time this can be more than the "
            f"training step. In GB beside the U-Net (1.72) and the VAE ({gb(VAE)}). Encoding the data set, once, takes {gb(encoding())}; the text encoder, "
            f"{gb(TEXT_ENCODER)} in fp32, is there only while captions are encoded. SV-DIFF computes every weight once before it generates: 1.72 more.\n\n"
            + table(["", "`--batch-size`", "generating", "decoding"], rows))


def ready_part() -> str:
    rows = []
    for file in sorted(READY.glob("*.toml")):
        chosen = from_toml(file)
        size = Resolution.read(chosen.resolution)
        rows.append([f"`--config {file.stem}`", f"{size.width} × {size.height}", chosen.precision, str(chosen.batch_size), str(chosen.steps),
                     f"{chosen.learning_rate_scale:g}", str(chosen.train_images), str(chosen.generated)])
    return ("Flags win over a file. `--model`, `--encoder` and `--data` are yours to name.\n\n"
            + table(["", "pictures", "precision", "batch", "steps", "`--learning-rate-scale`", "`--train-images`", "`--generated`"], rows))


def trial(model: Path, method: str, out: Path) -> dict:
    """One real trial in a process of its own; gives its report."""
    flags = {"method": method, "model": model, "out": out, **TRIAL}
    command = [sys.executable, "-m", "hpo.once", *(f"--{name}={value}" for name, value in flags.items()), "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def check_part(model: Path) -> str:
    """What was counted, beside what the process took."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for method in CHECKED:
            candidate = reference_candidate(method, TRIAL["steps"])
            counted = footprints(candidate, [(TRIAL["resolution"], TRIAL["batch-size"])], "fp32")[TRIAL["resolution"], TRIAL["batch-size"]]
            report = trial(model, method, Path(folder) / method)
            spent = report["seconds"]
            rows.append([f"`{method}`", f"{report['trainable']:,}", gb(counted.resident + VAE), gb(counted.peak + VAE), gb(report["memory"]["host"]),
                         f"{spent['applying']:.0f}", f"{spent['training']:.0f}", f"{spent['generating']:.0f}", f"{report['loss']:.3f}"])
            print(rows[-1], flush=True)
    words = " ".join(f"--{name} {value}" for name, value in TRIAL.items())
    return (f"`python -m benchmarks.random_sd15 --out DIR`, then `python -m hpo.once --method METHOD --model DIR {words}`, in fp32 on two CPU cores. The process also holds "
            "Python with its libraries, about 0.7 GB, and the pages of memory-mapped files that it has read, which the system may take back at any time. "
            "Seconds are of a machine that was busy with other work.\n\n"
            + table(["", "trainable", "counted: before", "counted: peak of a step", "measured: peak of the process, GB", "s: applying", "training", "generating", "loss"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=None, help="folder that benchmarks.random_sd15 wrote; without it that part of the document stays as it is")
    parser.add_argument("--methods", default=",".join(METHODS), help="names with commas (default: all, which takes minutes)")
    given = parser.parse_args()
    write_part(DOCUMENT, "ready", ready_part())
    write_part(DOCUMENT, "methods", methods_part(given.methods.split(",")))
    write_part(DOCUMENT, "around", around_part())
    if given.model is not None:
        write_part(DOCUMENT, "check", check_part(given.model))


if __name__ == "__main__":
    main()
