"""A kept subset as a plain diffusers U-Net with merged weights, which needs nothing of ours to be loaded.

`python -m trainers.export CHECKPOINT --model DIR --out DIR` writes that of a kept trial.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from trainers import base_model, checkpoint
from trainers.errors import TrainerError
from trainers.methods import BaseCache, Subset
from trainers.model_files import find

USAGE = 2  # exit status


def export(folder: Path, subset: Subset, model: str | Path) -> int:
    """Write the U-Net of the base model with the subset's merged weights, float32 safetensors, to `folder`, which appears whole or not at
    all and which `UNet2DConditionModel.from_pretrained` loads. Gives the number of tensors that differ from the base's.

    model: the base model, as `model_files.find` takes it. Raises TrainerError where `folder` is there already and not empty, BadModel
    where the base model cannot be used, OSError if the disk is full.
    """
    import torch
    from diffusers import UNet2DConditionModel
    from safetensors import SafetensorError

    check_new(folder)
    merged = subset.merged()
    unet = base_model.read_part(find(model), "unet", UNet2DConditionModel, torch_dtype=torch.float32)
    own = dict(unet.named_parameters())
    with torch.no_grad():
        for name, tensor in merged.items():
            own[name].copy_(tensor)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    try:
        unet.save_pretrained(unfinished, safe_serialization=True)
        os.replace(unfinished, folder)
    except SafetensorError as error:
        raise checkpoint.system_error(error, folder) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return len(merged)


def check_new(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise TrainerError(f"--out {folder}: it is there already; give a new or an empty folder")


class Parser(argparse.ArgumentParser):
    """A mistake is one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise TrainerError(f"{message}: see {self.prog} --help")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m trainers.export", description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a file from the weights folder of a study")
    parser.add_argument("--model", required=True, metavar="DIR", help="the base model that it was trained on")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new folder for the U-Net")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="the study's cache, where SV-DIFF's decompositions are (default: computed anew)")
    return parser.parse_args(arguments)


def run(arguments: Sequence[str] | None) -> None:
    from trainers.loss import AUTOCAST
    from trainers.units import walk

    given = parse(arguments)
    check_new(given.out)
    kept = checkpoint.read(given.checkpoint)  # before the model is, which may take a while
    pipeline = base_model.load(given.model, dtype=AUTOCAST[kept.precision])
    cache = BaseCache(given.cache, pipeline.hash) if given.cache else None
    subset = checkpoint.load(given.checkpoint, pipeline.unet, walk(pipeline.unet), pipeline.hash, cache)
    changed = export(given.out, subset, given.model)
    print(f"{kept.candidate.words}: the U-Net with {changed} changed tensors is in {given.out}; "
          f"load it with diffusers' UNet2DConditionModel.from_pretrained")


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        run(arguments)
        return 0
    except TrainerError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    except OSError as error:
        print(f"error: --out {error.filename}: {error.strerror}", file=sys.stderr)
    return USAGE


if __name__ == "__main__":
    sys.exit(main())
