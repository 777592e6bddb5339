"""Which trials' tensors stay on disk: --keep front deletes those of points that another one dominates."""

from __future__ import annotations

import json
import math
from pathlib import Path

from hpo import home
from hpo.study import Asked, Search
from storage import results

WEIGHTS = "weights"
BYTES_PER_ELEMENT = 4  # subsets are kept in fp32
USUAL_FRONT = 20  # points: fronts of two objectives rarely have more


def folder(search: Search) -> Path:
    return home.study_folder(search.settings.out, search.settings.study) / WEIGHTS


def path_for(search: Search, asked: Asked) -> Path | None:
    """Where this trial's tensors go, None with --keep none."""
    if search.settings.keep == "none":
        return None
    return folder(search).absolute() / f"trial-{asked.number:05d}-{asked.candidate.hash}.safetensors"


def record(search: Search, asked: Asked, path: Path) -> None:
    results.record_artifact(search.store, asked.id, WEIGHTS, str(path))


def tidy(search: Search) -> None:
    """Delete the tensors of finished trials that are off the front. A file that is on another machine is left to it."""
    if search.settings.keep != "front":
        return
    front = {row["trial"] for row in results.front(search.store, search.settings.study)}
    for number, paths in results.artifacts(search.store, search.id, WEIGHTS).items():
        if number in front:
            continue
        for path in paths:
            if search.study.trials[number].state.is_finished() and Path(path).exists():
                Path(path).unlink(missing_ok=True)
                results.forget_artifact(search.store, path)


def disk_need(model: Path, keep: str, trials: int) -> str:
    """In words, how much disk the kept tensors can take: full fine-tuning keeps all of the U-Net, in fp32."""
    if keep == "none":
        return "disk: no tensors are kept (--keep none)"
    largest = sum(elements(file) for file in (model / "unet").glob("*.safetensors")) * BYTES_PER_ELEMENT / 1e9
    count = trials if keep == "all" else min(trials, USUAL_FRONT)
    return f"disk: kept tensors (--keep {keep}) take at most {largest:.3f} GB a point, {largest * count:.2f} GB for {count} points"


def elements(file: Path) -> int:
    """Elements in a safetensors file, by its header alone."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
